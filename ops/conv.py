"""The compiled depthwise convolution, channels last: checks, derivatives, fake kernels. The maths is in README.md."""

import torch

from ops.arguments import check_conv
from ops.library import BACKENDS, autocast, require_backend
from ops.transforms import register_derivatives


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
    is rounded once. Under autocast they are cast to its dtype. Differentiable any number of times, in reverse and in
    forward mode, by the same kernels. The gradient of the weights is summed in two stages, in a fixed order: on the
    CPU within each image, then over the images, for any number of threads; on CUDA within each block, then over the
    blocks.

    Returns:
        (B, H, W, C), in the dtype of `x`.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.
        RuntimeError: the library has no kernels for the tensors' device; the message says how to build them.
    """
    x, weight, bias = autocast(x, weight, bias)
    check_conv(x, weight, bias, activation)
    require_backend("x", x)
    tensors = (x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous())
    return torch.ops.gspn.conv(*tensors, activation == "relu_squared", False)[0]


def _fake_conv(x, weight, bias, square, keep):
    return torch.empty_like(x), torch.empty_like(x) if square and keep else x.new_empty(0)


def _fake_conv_backward(grad_y, relu, x, weight, bias, square):
    return torch.empty_like(x), torch.empty_like(weight), x.new_empty(x.shape[3] if bias else 0)


# What follows is in terms of z = convolution(x, weight) + bias, of which y = z or y = relu(z)^2. With the two below
# every derivative is made of the operators themselves, so that it has derivatives of its own.


def _conv(x, weight):
    """The convolution alone."""
    return torch.ops.gspn.conv(x.contiguous(), weight.contiguous(), None, False, False)[0]


def _adjoint(grad_z, x, weight, bias=False):
    """dx, which takes the weights alone, dweight, which takes x alone, and dbias (of no elements without a bias)."""
    maps = (x.contiguous(), weight.contiguous())
    return torch.ops.gspn.conv_backward(grad_z.contiguous(), grad_z.new_empty(0), *maps, bias, False)


def _add(*terms):
    """The sum of the terms that are there; None if none is."""
    terms = [term for term in terms if term is not None]
    return sum(terms[1:], terms[0]) if terms else None


def _with_relu(inputs):
    """The inputs of a call whose derivatives are asked for: they need relu(z)."""
    return *inputs[:-1], True


def _save(ctx, inputs, outputs):
    x, weight, bias, ctx.square, _ = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, outputs[1])
    ctx.save_for_forward(x, weight, outputs[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_relu):
    x, weight, relu = ctx.saved_tensors
    if ctx.square and grad_relu is not None:
        # What reads relu itself: the gradient of a gradient, or of a tangent.
        through_y = None if grad_y is None else 2 * relu * grad_y
        grad_z = _add(torch.where(relu > 0, grad_relu, 0), through_y)
        dx, dweight, dbias = _adjoint(grad_z, x, weight, ctx.has_bias)
    elif grad_y is not None:
        inputs = (grad_y.contiguous(), relu, x, weight, ctx.has_bias, ctx.square)
        dx, dweight, dbias = torch.ops.gspn.conv_backward(*inputs)
    else:
        return (None,) * 5
    return dx, dweight, dbias if ctx.has_bias else None, None, None


def _jvp(ctx, saved, dx, dweight, dbias, *_):
    x, weight, relu = saved
    by_x = None if dx is None else _conv(dx, weight)
    by_weight = None if dweight is None else _conv(x, dweight)
    dz = _add(by_x, by_weight, None if dbias is None else dbias.expand_as(x))
    if not ctx.square:
        return dz, torch.zeros_like(relu)
    return 2 * relu * dz, torch.where(relu > 0, dz, 0)


def _save_backward(ctx, inputs, outputs):
    *maps, ctx.has_bias, ctx.square = inputs
    ctx.save_for_backward(*maps)
    ctx.save_for_forward(*maps)
    ctx.set_materialize_grads(False)


def _backward_of_backward(ctx, over_dx, over_dweight, over_dbias):
    """From the gradients with respect to dx, dweight and dbias those with respect to grad_y, relu, x and weight."""
    grad_y, relu, x, weight = ctx.saved_tensors
    by_dx = None if over_dx is None else _conv(over_dx, weight)
    by_dweight = None if over_dweight is None else _conv(x, over_dweight)
    by_dbias = over_dbias.expand_as(x) if ctx.has_bias and over_dbias is not None else None
    over_grad_z = _add(by_dx, by_dweight, by_dbias)
    if over_grad_z is None:
        return (None,) * 6
    over_x = over_weight = None
    if over_dx is not None or over_dweight is not None:
        grad_z = 2 * relu * grad_y if ctx.square else grad_y
        over_x, over_weight, _ = _adjoint(
            grad_z, x if over_dx is None else over_dx, weight if over_dweight is None else over_dweight
        )
    over_x = None if over_dweight is None else over_x
    over_weight = None if over_dx is None else over_weight
    if not ctx.square:
        return over_grad_z, None, over_x, over_weight, None, None
    return 2 * relu * over_grad_z, 2 * grad_y * over_grad_z, over_x, over_weight, None, None


def _jvp_of_backward(ctx, saved, dgrad_y, drelu, dx, dweight, *_):
    grad_y, relu, x, weight = saved
    grad_z, dgrad_z = grad_y, dgrad_y
    if ctx.square:
        grad_z = 2 * relu * grad_y
        by_relu = None if drelu is None else 2 * drelu * grad_y
        dgrad_z = _add(by_relu, None if dgrad_y is None else 2 * relu * dgrad_y)
    rates = [torch.zeros_like(x), torch.zeros_like(weight), x.new_zeros(x.shape[3] if ctx.has_bias else 0)]
    if dgrad_z is not None:
        rates = list(_adjoint(dgrad_z, x, weight, ctx.has_bias))
    if dx is not None or dweight is not None:
        moved = _adjoint(grad_z, x if dx is None else dx, weight if dweight is None else dweight)
        rates[0] = rates[0] if dweight is None else rates[0] + moved[0]
        rates[1] = rates[1] if dx is None else rates[1] + moved[1]
    return tuple(rates)


def _join(tensor, dim, size, channels):
    """The axis that vmap put at `dim` (None: nowhere) made a part of the axis `channels`, in front of what is there."""
    if dim is None:
        tensor = tensor.unsqueeze(channels).expand(*tensor.shape[:channels], size, *tensor.shape[channels:])
    else:
        tensor = tensor.movedim(dim, channels)
    return tensor.flatten(channels, channels + 1).contiguous()


def _vmap(info, in_dims, x, weight, bias, square, keep):
    """The axis of vmap joins the channels, each of which has its own weights anyway."""
    size, (x_dim, weight_dim, bias_dim, *_) = info.batch_size, in_dims
    bias = None if bias is None else _join(bias, bias_dim, size, 0)
    maps = (_join(x, x_dim, size, 3), _join(weight, weight_dim, size, 0), bias)
    y, relu = torch.ops.gspn.conv(*maps, square, keep)
    if square and keep:
        return (y.unflatten(3, (size, -1)), relu.unflatten(3, (size, -1))), (3, 3)
    return (y.unflatten(3, (size, -1)), relu), (3, None)


def _vmap_backward(info, in_dims, grad_y, relu, x, weight, bias, square):
    size, (grad_dim, relu_dim, x_dim, weight_dim, *_) = info.batch_size, in_dims
    relu = _join(relu, relu_dim, size, 3) if square else grad_y.new_empty(0)
    maps = (
        _join(grad_y, grad_dim, size, 3),
        relu,
        _join(x, x_dim, size, 3),
        _join(weight, weight_dim, size, 0),
    )
    dx, dweight, dbias = torch.ops.gspn.conv_backward(*maps, bias, square)
    dx, dweight = dx.unflatten(3, (size, -1)), dweight.unflatten(0, (size, -1))
    return (dx, dweight, dbias.unflatten(0, (size, -1)) if bias else dbias), (3, 0, 0 if bias else None)


if BACKENDS:
    torch.library.register_fake("gspn::conv", _fake_conv)
    torch.library.register_fake("gspn::conv_backward", _fake_conv_backward)
    torch.library.register_vmap("gspn::conv", _vmap)
    torch.library.register_vmap("gspn::conv_backward", _vmap_backward)
    register_derivatives("conv", _save, _backward, _jvp, prepare=_with_relu)
    register_derivatives("conv_backward", _save_backward, _backward_of_backward, _jvp_of_backward)
