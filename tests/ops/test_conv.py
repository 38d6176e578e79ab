"""The depthwise convolution against its definition in float64, and what surrounds the kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import ops.library
from ops import depthwise_conv
from tests.utils import assert_near

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ACTIVATIONS = [None, "relu_squared"]

# (B, H, W, C)
SHAPES = {
    "a grid": (2, 16, 16, 32),
    "ragged channels": (2, 5, 7, 37),
    "one channel": (3, 6, 4, 1),
    "one pixel": (2, 1, 1, 20),
    "one row": (1, 1, 19, 16),
    "one column": (1, 23, 1, 8),
    "more than a tile": (1, 33, 18, 24),
    "two tiles to the column": (1, 16, 32, 16),
}


def skip_unsupported(dtype, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 is for the CPU alone")


def make_conv(shape, size, dtype, bias=True, seed=0, device="cpu"):
    """Random x, weight and bias, drawn in float64 so that every dtype rounds the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *sizes: torch.randn(sizes, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = [draw(*shape), draw(shape[3], 1, size, size) / size, draw(shape[3])]
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors[: 3 if bias else 2]]


def by_definition(x, weight, bias=None, activation=None):
    """Tap by tap."""
    size, (_, height, width, _) = weight.shape[-1], x.shape
    padded = F.pad(x, (0, 0, size // 2, size // 2, size // 2, size // 2))
    y = torch.zeros_like(x) if bias is None else torch.zeros_like(x) + bias
    for row in range(size):
        for column in range(size):
            y = y + weight[:, 0, row, column] * padded[:, row : row + height, column : column + width]
    return y.relu().square() if activation else y


def compare(tensors, activation=None, conv=depthwise_conv):
    """Compare y and every gradient with those of the definition in float64."""
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y = conv(*tensors, activation=activation)
    expected = by_definition(*wide, activation=activation)
    assert y.device == tensors[0].device
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    assert_near(y, expected, "y")
    wanted = torch.autograd.grad(expected, wide, grad_y.double())
    for name, actual, gradient in zip(
        ("dx", "dweight", "dbias"), torch.autograd.grad(y, tensors, grad_y), wanted, strict=False
    ):
        assert_near(actual, gradient, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_definition(shape, size, dtype, device, poisoned_memory):
    skip_unsupported(dtype, device)
    for bias in (True, False):
        compare(make_conv(shape, size, dtype, bias, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [3, 7])
def test_gate(size, dtype, device, poisoned_memory):
    """Away from the ends, where rounding decides whether a gradient is 0."""
    skip_unsupported(dtype, device)
    for shape in SHAPES.values():
        compare(make_conv(shape, size, dtype, device=device), "relu_squared")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_non_contiguous_inputs_and_gradient(activation, device):
    x, weight, bias = make_conv((2, 6, 5, 12), 3, torch.float32, device=device)
    strided = [
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        weight.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_(),
        bias.detach().repeat_interleave(2)[::2].requires_grad_(),
    ]
    compare(strided, activation)
    (dx,) = torch.autograd.grad(depthwise_conv(*strided, activation).transpose(1, 2).sum(), strided[0])
    (wanted,) = torch.autograd.grad(by_definition(x, weight, bias, activation).sum(), x)
    assert_near(dx, wanted, "dx")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_not_dropped(dtype, device):
    skip_unsupported(dtype, device)
    x, weight, bias = (t.detach() for t in make_conv((2, 5, 6, 21), 3, dtype, device=device))
    x[0, 2, 3, 5] = torch.nan
    for activation in ACTIVATIONS:
        y = depthwise_conv(x, weight, bias, activation)
        assert y.isnan().sum() == 9 and torch.equal(
            y.isnan(), by_definition(x, weight, bias, activation).isnan()
        )


def test_empty(device):
    for shape in ((0, 4, 4, 6), (2, 0, 4, 6)):
        tensors = make_conv(shape, 3, torch.float32, device=device)
        y = depthwise_conv(*tensors)
        gradients = torch.autograd.grad(y.sum(), tensors)
        assert y.shape == shape and all(g.shape == t.shape for g, t in zip(gradients, tensors, strict=True))
        assert not gradients[1].any() and not gradients[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bit_equal_on_repeat_and_for_any_thread_count(dtype):
    tensors, threads = make_conv((3, 18, 17, 72), 7, dtype), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7, 1):
            torch.set_num_threads(count)
            y = depthwise_conv(*tensors, "relu_squared")
            results.append([y, *torch.autograd.grad(y.float().square().sum(), tensors)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_meta_tensors():
    x, weight, bias = (tensor.to("meta") for tensor in make_conv((2, 4, 5, 6), 3, torch.bfloat16))
    y = depthwise_conv(x, weight, bias)
    assert y.device.type == "meta" and y.shape == x.shape and y.dtype == torch.bfloat16


def test_fake_tensors_of_cuda_take_the_operator(monkeypatch):
    monkeypatch.setattr(ops.library, "BACKENDS", ("cpu", "cuda"))
    with FakeTensorMode():
        x, weight, bias = (torch.empty(s, device="cuda") for s in ((2, 4, 5, 6), (6, 1, 3, 3), (6,)))
        for tensor in (x, weight, bias):
            tensor.requires_grad_()
        y = depthwise_conv(x, weight, bias, "relu_squared")
        assert y.device.type == "cuda" and y.shape == x.shape and "gspn_conv" in y.grad_fn.name()
        gradients = torch.ops.gspn.conv_backward(y, y, x, weight, True, True)
    assert [g.shape for g in gradients] == [x.shape, weight.shape, bias.shape]


BAD = {
    "not a tensor": ({"x": [1.0]}, TypeError, "x is a list"),
    "three axes": ({"x": torch.zeros(3, 4, 6)}, ValueError, r"x has shape \(3, 4, 6\)"),
    "weight of other channels": ({"weight": torch.zeros(5, 1, 3, 3)}, ValueError, "weight has shape"),
    "weight of two inputs": ({"weight": torch.zeros(6, 2, 3, 3)}, ValueError, "weight has shape"),
    "an even kernel": ({"weight": torch.zeros(6, 1, 4, 4)}, ValueError, "a kernel of 4"),
    "a large kernel": ({"weight": torch.zeros(6, 1, 9, 9)}, ValueError, "a kernel of 9"),
    "an oblong kernel": ({"weight": torch.zeros(6, 1, 3, 5)}, ValueError, "weight has shape"),
    "bias of other channels": ({"bias": torch.zeros(5)}, ValueError, r"bias has shape \(5,\)"),
    "another dtype": (
        {"weight": torch.zeros(6, 1, 3, 3).half()},
        TypeError,
        "weight has dtype torch.float16",
    ),
    "another device": ({"bias": torch.zeros(6, device="meta")}, ValueError, "bias is on meta"),
    "unknown activation": ({"activation": "gelu"}, ValueError, "activation is 'gelu'"),
}


@pytest.mark.parametrize("changes, error, message", BAD.values(), ids=BAD.keys())
def test_bad_arguments(changes, error, message):
    arguments = {"x": torch.zeros(2, 3, 4, 6), "weight": torch.zeros(6, 1, 3, 3), "bias": torch.zeros(6)}
    with pytest.raises(error, match=message):
        depthwise_conv(**(arguments | changes))


def test_missing_library_names_the_command(monkeypatch):
    monkeypatch.setattr(ops.library, "BACKENDS", ())
    with pytest.raises(RuntimeError, match="make build"):
        depthwise_conv(torch.zeros(2, 3, 4, 6), torch.zeros(6, 1, 3, 3))


def test_raw_op_checks_what_it_reads(device):
    """A direct call of the op cannot make the kernel read outside its tensors."""
    sizes = (2, 3, 4, 6), (6, 1, 3, 3), (6,)
    x, weight, bias = (torch.zeros(size, device=device) for size in sizes)
    conv, backward = torch.ops.gspn.conv, torch.ops.gspn.conv_backward
    for args in (
        (x.transpose(1, 2), weight, bias),
        (x[0], weight, bias),
        (x, weight[:5], bias),
        (x, torch.zeros(6, 1, 4, 4, device=device), bias),
        (x, weight.half(), bias),
        (x, weight, bias[:5]),
    ):
        with pytest.raises(RuntimeError, match="gspn"):
            conv(*args, False, False)
    for grad_y, relu in ((x[:1], x), (x, x[:1]), (x.half(), x)):
        with pytest.raises(RuntimeError, match="gspn"):
            backward(grad_y, relu, x, weight, True, True)


@pytest.mark.parametrize("square", [False, True])
def test_opcheck(square, device):
    x, weight, bias = (t.detach() for t in make_conv((2, 4, 5, 6), 3, torch.float32, device=device))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.gspn.conv, (x, weight, bias, square, True), test_utils=tests)
    backward = (x, x.relu(), x, weight, True, square)
    torch.library.opcheck(torch.ops.gspn.conv_backward, backward, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_inputs(dtype, device):
    tensors = make_conv((2, 4, 5, 8), 3, torch.float32, device=device)
    with torch.autocast(device, dtype):
        y = depthwise_conv(*tensors)
    assert y.dtype == dtype and torch.equal(y, depthwise_conv(*(t.to(dtype) for t in tensors)))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().sum(), tensors))
