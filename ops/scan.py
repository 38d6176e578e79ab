"""The compiled scan: checks, autograd and fake kernels. The maths is in README.md."""

import torch

from ops.arguments import DIRECTIONS, NORMALIZATIONS, check_arguments
from ops.library import BACKENDS, autocast, require_backend


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
    x, lam, logits = autocast(x, lam, logits)
    check_arguments(x, lam, logits, directions, segment, normalization)
    require_backend("x", x)
    codes = [DIRECTIONS.index(direction) for direction in directions]
    mode = NORMALIZATIONS.index(normalization)
    return torch.ops.gspn.scan(x.contiguous(), lam.contiguous(), logits.contiguous(), codes, segment, mode)


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
