"""The compiled scan: loading, checks, autograd and fake kernels. The maths is in README.md."""

from pathlib import Path

import torch

from ops.arguments import DIRECTIONS, NORMALIZATIONS, check_arguments

LIBRARY = Path(__file__).resolve().parent / "lib" / "libgspn.so"


def _load() -> tuple[str, ...]:
    """Load the library if it is built; return the device types that it has kernels for."""
    if not LIBRARY.exists():
        return ()
    torch.ops.load_library(str(LIBRARY))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(kind for kind in ("cpu", "cuda") if has_kernel("gspn::scan", kind.upper()))


BACKENDS = _load()


def gspn_scan(
    x: torch.Tensor,
    lam: torch.Tensor,
    logits: torch.Tensor,
    directions: tuple[str, ...] = DIRECTIONS,
    segment: int = 0,
    normalization: str = "row_stochastic",
) -> torch.Tensor:
    """Propagate `x` line by line along each of `directions` (arXiv 2501.12381, section 3; README.md).

        h[t, n] = lam[t, n] x[t, n] + sum over d in {-1, 0, +1} of w_d[t, n] h[t-1, n+d]

    Args:
        x: (B, H, W, C) values, shared by the K directions.
        lam: (B, H, W, K, C) input gain, used as given.
        logits: (B, H, W, K, 3, G) raw propagation logits for d = -1, 0, +1 by rising n in image coordinates;
            G divides C and channel c uses group c // (C // G).
        directions: K distinct names out of "right", "left", "down", "up"; axis K follows them.
        segment: lines after which each pass starts anew (the local form); 0 never does (the global form).
        normalization: "row_stochastic" (sigmoids divided by their sum over the neighbours that exist), "sigmoid"
            (no division) or "none" (the logits are the weights).

    All three are float32, bfloat16, float16 or (CPU) float64 and may be non-contiguous; the arithmetic is float32
    (float64 for float64). Under autocast they are cast to its dtype. Differentiable once.

    Returns:
        (B, H, W, K, C) hidden states in image coordinates, in the dtype of `x`.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.
        RuntimeError: the library has no kernels for the tensors' device; the message says how to build them.
    """
    x, lam, logits = _autocast(x, lam, logits)
    check_arguments(x, lam, logits, directions, segment, normalization)
    _require_backend(x)
    codes = [DIRECTIONS.index(direction) for direction in directions]
    mode = NORMALIZATIONS.index(normalization)
    return torch.ops.gspn.scan(x.contiguous(), lam.contiguous(), logits.contiguous(), codes, segment, mode)


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    first = tensors[0]
    if not isinstance(first, torch.Tensor) or first.device.type == "meta":
        return tensors
    device = first.device.type
    if not torch.is_autocast_enabled(device) or first.dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in tensors)


def _require_backend(x: torch.Tensor) -> None:
    device = x.device.type
    if not BACKENDS:
        raise RuntimeError(
            "the scan is not built: run `make build` (or `python ops/build.py`) in the repository"
        )
    if device not in (*BACKENDS, "meta"):
        command = "make build CUDA=1" if device == "cuda" else "none exists"
        raise RuntimeError(
            f"the scan has no {device} kernels, only {', '.join(BACKENDS)}; to build them: {command}"
        )
    if device == "cuda" and x.dtype == torch.float64:
        raise TypeError(
            "x has dtype torch.float64, which the scan takes on the CPU alone; expected torch.float32"
        )


def _fake_scan(x, lam, logits, directions, segment, normalization):
    return torch.empty_like(lam, memory_format=torch.contiguous_format)


def _fake_scan_backward(grad_h, x, lam, logits, h, directions, segment, normalization):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, lam, logits))


def _save_for_backward(ctx, inputs, output):
    x, lam, logits, *ctx.settings = inputs
    ctx.save_for_backward(x, lam, logits, output)


def _backward(ctx, grad_h):
    x, lam, logits, h = ctx.saved_tensors
    gradients = torch.ops.gspn.scan_backward(grad_h.contiguous(), x, lam, logits, h, *ctx.settings)
    return (*gradients, None, None, None)


def _second_backward(ctx, *gradients):
    raise RuntimeError("gspn_scan is differentiable once: it has no second derivative")


if BACKENDS:
    torch.library.register_fake("gspn::scan", _fake_scan)
    torch.library.register_fake("gspn::scan_backward", _fake_scan_backward)
    torch.library.register_autograd("gspn::scan", _backward, setup_context=_save_for_backward)
    torch.library.register_autograd("gspn::scan_backward", _second_backward)
