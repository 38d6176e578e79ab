"""The compiled depthwise convolution, channels last: checks, autograd and fake kernels.

    y[p, c] = sum over the taps d of weight[c, d] x[p + d, c] + bias[c]

zeros around the map. Compiled by torch, traced and under a transform it is torch's convolution.
"""

import torch
import torch.nn.functional as F

from ops.arguments import check_conv
from ops.library import BACKENDS, autocast, require_backend
from ops.transforms import under_transform


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """Convolve each channel with a kernel of its own, zero-padded to the same size.

    Args:
        x: (B, H, W, C), may be non-contiguous.
        weight: (C, 1, k, k), k one of 3, 5 and 7, as torch.nn.Conv2d with groups = C has it.
        bias: (C,), or None.
        activation: None, or "relu_squared": y = relu(convolution)^2.

    All are float32, bfloat16, float16 or (CPU) float64; the arithmetic is float32 (float64 for float64) and the result
    is rounded once. Under autocast they are cast to its dtype. Differentiable as torch's convolution is; the gradient
    of the weights is summed in two stages, in a fixed order: on the CPU within each image, then over the images, for
    any number of threads; on CUDA within each block, then over the blocks.

    Returns:
        (B, H, W, C), in the dtype of `x`.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.
        RuntimeError: the library has no kernels for the tensors' device; the message says how to build them.
    """
    x, weight, bias = autocast(x, weight, bias)
    check_conv(x, weight, bias, activation)
    require_backend("x", x)
    square = activation == "relu_squared"
    if (
        x.device.type == "meta"
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or under_transform()
    ):
        return depthwise_conv_formula(x, weight, bias, square)
    tensors = (x.contiguous(), weight.contiguous(), bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _DepthwiseConv.apply(*tensors, square)
    return torch.ops.gspn.conv(*tensors, square, False)[0]


def depthwise_conv_formula(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, square: bool
) -> torch.Tensor:
    """The same by torch's convolution, on views of channels_last memory."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    y = y.permute(0, 2, 3, 1)
    return F.relu(y).square() if square else y


class _DepthwiseConv(torch.autograd.Function):
    """Derivatives of the gradient, where they are asked for, are those of the formula."""

    @staticmethod
    def forward(ctx, x, weight, bias, square):
        y, relu = torch.ops.gspn.conv(x, weight, bias, square, True)
        ctx.square, ctx.has_bias = square, bias is not None
        ctx.save_for_backward(x, weight, relu, *([bias] if ctx.has_bias else []))
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, weight, relu, *bias = ctx.saved_tensors
        bias = bias[0] if bias else None
        if torch.is_grad_enabled():
            y = depthwise_conv_formula(x, weight, bias, ctx.square)
            wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=True))
            gradients = [
                next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias)
            ]
            return *gradients, None
        inputs = (grad_y.contiguous(), relu, x, weight, ctx.has_bias, ctx.square)
        dx, dweight, dbias = torch.ops.gspn.conv_backward(*inputs)
        return dx, dweight, dbias if ctx.has_bias else None, None


def _fake_conv(x, weight, bias, square, keep):
    return torch.empty_like(x), torch.empty_like(x) if square and keep else x.new_empty(0)


def _fake_conv_backward(grad_y, relu, x, weight, bias, square):
    return torch.empty_like(x), torch.empty_like(weight), x.new_empty(x.shape[3] if bias else 0)


if BACKENDS:
    torch.library.register_fake("gspn::conv", _fake_conv)
    torch.library.register_fake("gspn::conv_backward", _fake_conv_backward)
