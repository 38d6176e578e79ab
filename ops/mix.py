"""Scan and read-out in one operator: checks, autograd and fake kernels. The maths is in README.md."""

from functools import partial

import torch

from ops.arguments import DIRECTIONS, NORMALIZATIONS, check_mix
from ops.library import BACKENDS, autocast, require_backend
from ops.tangent import scan_tangent
from ops.transforms import fold, register_derivatives, register_once_differentiable


def gspn_mix(
    x: torch.Tensor,
    lam: torch.Tensor,
    logits: torch.Tensor,
    u: torch.Tensor | None = None,
    directions: tuple[str, ...] = DIRECTIONS,
    segment: int = 0,
    normalization: str = "row_stochastic",
) -> torch.Tensor:
    """Scan x along `directions` and read the states out, `gated_merge(gspn_scan(x, lam, ...), u)` in one operator.

        y[..., c] = sum over k of u[..., k, c] h[..., k, c],    h = gspn_scan(x, lam, logits, ...)

    Args:
        x, lam, logits, directions, segment, normalization: see `gspn_scan`.
        u: (B, H, W, K, C) gates; None: the states are added up as they are.

    All tensors are float32, bfloat16, float16 or (CPU) float64 and may be non-contiguous; the arithmetic is float32
    (float64 for float64) and y is rounded once. Under autocast they are cast to its dtype. Differentiable once, in
    reverse and in forward mode: h is written, in the dtype of `x`, if a derivative will need it, and otherwise is not.

    Returns:
        (B, H, W, C), in the dtype of `x`.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.
        RuntimeError: the library has no kernels for the tensors' device; the message says how to build them.
    """
    x, lam, logits, u = autocast(x, lam, logits, u)
    check_mix(x, lam, logits, u, directions, segment, normalization)
    require_backend("x", x)
    codes = [DIRECTIONS.index(direction) for direction in directions]
    mode = NORMALIZATIONS.index(normalization)
    maps = (x.contiguous(), lam.contiguous(), logits.contiguous(), None if u is None else u.contiguous())
    return torch.ops.gspn.mix(*maps, codes, segment, mode, False)[0]


def _fake_mix(x, lam, logits, u, directions, segment, normalization, states):
    h = torch.empty_like(lam, memory_format=torch.contiguous_format) if states else lam.new_empty(0)
    return torch.empty_like(x, memory_format=torch.contiguous_format), h


def _fake_mix_backward(grad_y, x, lam, logits, u, h, directions, segment, normalization):
    gradients = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, lam, logits))
    du = lam.new_empty(0) if u is None else torch.empty_like(u, memory_format=torch.contiguous_format)
    return *gradients, du


def _with_states(inputs):
    """The inputs of a call whose derivatives are asked for: they need h."""
    return *inputs[:-1], True


def _save(ctx, inputs, outputs):
    x, lam, logits, u, *settings, _ = inputs
    ctx.settings, ctx.gated = settings, u is not None
    saved = (x, lam, logits, *([u] if ctx.gated else []), outputs[1])
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)
    ctx.set_materialize_grads(False)


def _saved(ctx, saved):
    """x, lam, logits, u or None, h."""
    return saved if ctx.gated else (*saved[:3], None, saved[3])


def _backward(ctx, grad_y, grad_h):
    x, lam, logits, u, h = _saved(ctx, ctx.saved_tensors)
    none = [None] * 4  # of the settings and of `states`
    if grad_h is None:
        if grad_y is None:
            return *none, *none
        inputs = (grad_y.contiguous(), x, lam, logits, u, h)
        *gradients, du = torch.ops.gspn.mix_backward(*inputs, *ctx.settings)
        return *gradients, du if ctx.gated else None, *none
    # What reads h itself: the gradient of a tangent.
    du = None
    if grad_y is not None and ctx.gated:
        through_y, du = torch.ops.gspn.merge_backward(grad_y.contiguous(), h, u)
        grad_h = grad_h + through_y
    elif grad_y is not None:
        grad_h = grad_h + grad_y.unsqueeze(3)
    gradients = torch.ops.gspn.scan_backward(grad_h.contiguous(), x, lam, logits, h, *ctx.settings)
    return *gradients, du, *none


def _jvp(ctx, saved, dx, dlam, dlogits, du, *_):
    x, lam, logits, u, h = _saved(ctx, saved)
    dh = scan_tangent((x, lam, logits), (dx, dlam, dlogits), h, *ctx.settings)
    if u is None:
        return dh.sum(3), dh
    dy = torch.ops.gspn.merge(dh, u)
    if du is not None:
        dy = dy + torch.ops.gspn.merge(h, du.contiguous())
    return dy, dh


def _vmap(operator, count, info, in_dims, *inputs):
    """The axis of vmap joins the batch; the first `count` inputs are tensors, or None. So may outputs be empty."""
    present = [i for i in range(count) if inputs[i] is not None]
    folded = fold(tuple(inputs[i] for i in present), tuple(in_dims[i] for i in present), info.batch_size)
    tensors: list[torch.Tensor | None] = [None] * count
    for i, tensor in zip(present, folded, strict=True):
        tensors[i] = tensor.flatten(0, 1)
    outputs = operator(*tensors, *inputs[count:])
    absent = [tensor.dim() == 1 for tensor in outputs]
    sizes = folded[0].shape[:2]
    unfolded = [t if none else t.unflatten(0, sizes) for t, none in zip(outputs, absent, strict=True)]
    return tuple(unfolded), tuple(None if none else 0 for none in absent)


if BACKENDS:
    torch.library.register_fake("gspn::mix", _fake_mix)
    torch.library.register_fake("gspn::mix_backward", _fake_mix_backward)
    torch.library.register_vmap("gspn::mix", partial(_vmap, torch.ops.gspn.mix, 4))
    torch.library.register_vmap("gspn::mix_backward", partial(_vmap, torch.ops.gspn.mix_backward, 6))
    register_derivatives("mix", _save, _backward, _jvp, prepare=_with_states)
    register_once_differentiable("mix_backward", "gspn_mix")
