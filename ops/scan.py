"""The compiled scan: checks, autograd and fake kernels. The maths is in README.md."""

from functools import partial

import torch

from ops.arguments import DIRECTIONS, NORMALIZATIONS, check_arguments
from ops.library import BACKENDS, autocast, require_backend
from ops.tangent import scan_tangent
from ops.transforms import fold, register_derivatives, register_once_differentiable


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
    (float64 for float64). Under autocast they are cast to its dtype. Differentiable once, in reverse and in forward
    mode.

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


def _save(ctx, inputs, output):
    x, lam, logits, *ctx.settings = inputs
    ctx.save_for_backward(x, lam, logits, output)
    ctx.save_for_forward(x, lam, logits, output)


def _backward(ctx, grad_h):
    x, lam, logits, h = ctx.saved_tensors
    gradients = torch.ops.gspn.scan_backward(grad_h.contiguous(), x, lam, logits, h, *ctx.settings)
    return (*gradients, None, None, None)


def _jvp(ctx, saved, dx, dlam, dlogits, *_):
    *inputs, h = saved
    return scan_tangent(inputs, (dx, dlam, dlogits), h, *ctx.settings)


def _vmap(operator, info, in_dims, *inputs):
    """The axis of vmap joins the batch."""
    tensors, settings = inputs[:-3], inputs[-3:]
    folded = fold(tensors, in_dims[:-3], info.batch_size)
    outputs = operator(*(tensor.flatten(0, 1) for tensor in folded), *settings)
    unflatten = lambda tensor: tensor.unflatten(0, folded[0].shape[:2])  # noqa: E731
    if isinstance(outputs, torch.Tensor):
        return unflatten(outputs), 0
    return tuple(map(unflatten, outputs)), (0,) * len(outputs)


if BACKENDS:
    torch.library.register_fake("gspn::scan", _fake_scan)
    torch.library.register_fake("gspn::scan_backward", _fake_scan_backward)
    torch.library.register_vmap("gspn::scan", partial(_vmap, torch.ops.gspn.scan))
    torch.library.register_vmap("gspn::scan_backward", partial(_vmap, torch.ops.gspn.scan_backward))
    register_derivatives("scan", _save, _backward, _jvp)
    register_once_differentiable("scan_backward", "gspn_scan")
