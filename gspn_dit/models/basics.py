"""Norm and weight initialisation that every part of the models uses."""

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import _has_any_global_hook

from ops.transforms import under_transform

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HALVES = (torch.bfloat16, torch.float16)


def normalize(x: torch.Tensor, kind: str = "layer", eps: float = 1e-6) -> torch.Tensor:
    """LayerNorm ("layer") or RMSNorm ("rms", arXiv 1910.07467) over channels, without learned scale and shift.

    The statistics are float32 in any dtype. So a map of half precision stays one under autocast, which would have it
    widened, read and written in float32, and narrowed by the next projection.
    """
    norm = F.layer_norm if kind == "layer" else F.rms_norm
    device = x.device.type
    if x.dtype in _HALVES and device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return norm(x, x.shape[-1:], eps=eps)
    return norm(x, x.shape[-1:], eps=eps)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x * (1 + scale) + shift in one pass over x."""
    return torch.addcmul(shift, x, 1 + scale)


class _ReluSquared(torch.autograd.Function):
    """relu(x)^2, and relu(x), an output so that the gradient that it makes has derivatives too.

    relu(x) is all that is saved: where x < 0 it is 0, and its product with the gradient needs no mask.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        ctx.set_materialize_grads(False)
        return positive.square(), positive

    @staticmethod
    def backward(ctx, grad: torch.Tensor | None, grad_positive: torch.Tensor | None) -> torch.Tensor | None:
        (positive,) = ctx.saved_tensors
        if grad_positive is not None:
            grad_positive = grad_positive * (positive > 0)
        if grad is None:
            return grad_positive
        rest = grad.new_zeros(()) if grad_positive is None else grad_positive
        return torch.addcmul(rest, grad, positive, value=2)


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """x * relu(x) = relu(x)^2; its gradient 2 relu(x) in one pass where autograd's takes three.

    Compiled, traced or under a transform it is the formula itself: a compiler joins its passes, and torch knows every
    derivative of it.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or under_transform():
        return F.relu(x).square()
    return _ReluSquared.apply(x)[0]


PLAIN = (nn.Parameter, torch.Tensor, FakeTensor)
"""Types of a weight that is one tensor: the last stands for one where memory is computed, or a network exported."""


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a call of `module` is the product with its weight and nothing else.

    Not so of an adapter or a quantised layer in its place, nor with a bias, a hook or a forward of its own.
    """
    return (
        type(module) is nn.Linear
        and module.bias is None
        and type(module.weight) in PLAIN
        and "forward" not in vars(module)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and not _has_any_global_hook()
    )


def fan_in_normal_(weight: torch.Tensor, gain: float = 1.0) -> None:
    """Normal weights that keep the variance of a unit-variance input, times gain^2."""
    nn.init.normal_(weight, std=gain * weight[0].numel() ** -0.5)


def zero_(module: nn.Module) -> None:
    """Zero in every parameter."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def xavier_(linear: nn.Linear) -> None:
    """Xavier-uniform weight and zero bias, as in DiT."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
