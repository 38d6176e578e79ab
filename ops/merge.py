"""The compiled gated merge: checks, autograd and fake kernels. The maths is in README.md."""

from functools import partial

import torch

from ops.arguments import check_merge
from ops.library import BACKENDS, autocast, require_backend
from ops.reference import gated_merge_reference
from ops.transforms import fold, register_derivatives, register_once_differentiable


def gated_merge(h: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Read the hidden states of all directions with their gates and add them up, in one pass over memory.

        y[..., c] = sum over k of u[..., k, c] h[..., k, c]

    Args:
        h: (..., K, C) hidden states, such as `gspn_scan` returns them.
        u: (..., K, C) gates.

    Both are float32, bfloat16, float16 or (CPU) float64 and may be non-contiguous; the arithmetic is float32
    (float64 for float64) and the result is rounded once. Under autocast they are cast to its dtype. Differentiable
    once, in reverse and in forward mode. Under torch.compile the formula itself is traced, so that the compiler can
    join it with what follows.

    Returns:
        (..., C), in the dtype of `h`.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.
        RuntimeError: the library has no kernels for the tensors' device; the message says how to build them.
    """
    h, u = autocast(h, u)
    if torch.compiler.is_compiling():
        return gated_merge_reference(h, u)
    check_merge(h, u)
    require_backend("h", h)
    return torch.ops.gspn.merge(h.contiguous(), u.contiguous())


def _fake_merge(h, u):
    return h.new_empty((*h.shape[:-2], h.shape[-1]))


def _fake_merge_backward(grad_y, h, u):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (h, u))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.save_for_forward(*inputs)


def _backward(ctx, grad_y):
    return torch.ops.gspn.merge_backward(grad_y.contiguous(), *ctx.saved_tensors)


def _jvp(ctx, saved, dh, du):
    h, u = saved
    pairs = [pair for pair in ((dh, u), (h, du)) if None not in pair]
    return sum(torch.ops.gspn.merge(*(tensor.contiguous() for tensor in pair)) for pair in pairs)


def _vmap(operator, outputs, info, in_dims, *tensors):
    """The axis of vmap is one more leading axis."""
    return operator(*fold(tensors, in_dims, info.batch_size)), outputs


if BACKENDS:
    torch.library.register_fake("gspn::merge", _fake_merge)
    torch.library.register_fake("gspn::merge_backward", _fake_merge_backward)
    torch.library.register_vmap("gspn::merge", partial(_vmap, torch.ops.gspn.merge, 0))
    torch.library.register_vmap("gspn::merge_backward", partial(_vmap, torch.ops.gspn.merge_backward, (0, 0)))
    register_derivatives("merge", _save, _backward, _jvp)
    register_once_differentiable("merge_backward", "gated_merge")
