"""The compiled gated merge: checks, autograd and fake kernels. The maths is in README.md."""

import torch

from ops.arguments import check_merge
from ops.library import BACKENDS, autocast, require_backend
from ops.reference import gated_merge_reference


def gated_merge(h: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Read the hidden states of all directions with their gates and add them up, in one pass over memory.

        y[..., c] = sum over k of u[..., k, c] h[..., k, c]

    Args:
        h: (..., K, C) hidden states, such as `gspn_scan` returns them.
        u: (..., K, C) gates.

    Both are float32, bfloat16, float16 or (CPU) float64 and may be non-contiguous; the arithmetic is float32 (float64
    for float64) and the result is rounded once. Under autocast they are cast to its dtype. Differentiable once. Under
    torch.compile the formula itself is traced, so that the compiler can join it with what follows.

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


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_y):
    return torch.ops.gspn.merge_backward(grad_y.contiguous(), *ctx.saved_tensors)


def _second_backward(ctx, *gradients):
    raise RuntimeError("gated_merge is differentiable once: it has no second derivative")


if BACKENDS:
    torch.library.register_fake("gspn::merge", _fake_merge)
    torch.library.register_fake("gspn::merge_backward", _fake_merge_backward)
    torch.library.register_autograd("gspn::merge", _backward, setup_context=_save_for_backward)
    torch.library.register_autograd("gspn::merge_backward", _second_backward)
