"""What only a GPU can show: streams, graphs, tensors past 2^31 elements, a second device, real sizes."""

import pytest
import torch

from ops import depthwise_conv, gated_merge, gspn_scan, gspn_scan_reference
from ops.arguments import DIRECTIONS
from ops.library import BACKENDS
from tests.ops.cases import make_inputs, widened
from tests.ops.test_conv import by_definition, compare, make_conv
from tests.utils import assert_near

pytestmark = pytest.mark.skipif(
    not ("cuda" in BACKENDS and torch.cuda.is_available()),
    reason="no GPU is visible, or no CUDA build",
)


def gradients(inputs, h):
    return torch.autograd.grad(h.float().square().sum(), inputs)


def scan_and_merge(x, lam, logits):
    """Both operators in turn, as a mixer calls them."""
    return gated_merge(gspn_scan(x, lam, logits), lam)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("segment", [0, 2])
@pytest.mark.parametrize(
    "side, channels, groups", [(16, 1500, 1500), (16, 1152, 72), (64, 128, 8), (256, 32, 2)]
)
def test_shapes_of_the_models(side, channels, groups, segment, dtype):
    """Larger than what the emulation can do in its time: every schedule at its real size."""
    inputs = make_inputs(2, side, side, channels, groups, 4, dtype, "cuda")
    h = gspn_scan(*inputs, segment=segment)
    double = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = gspn_scan_reference(*double, segment=segment)
    assert_near(h, expected, "h")
    grad_h = torch.randn_like(h)
    actual = torch.autograd.grad(h, inputs, grad_h)
    wanted = torch.autograd.grad(expected, double, grad_h.double())
    for name, one, other in zip(("dx", "dlam", "dlogits"), actual, wanted, strict=True):
        assert_near(one, other, name)


@pytest.mark.parametrize("height, width", [(3, 4096), (4096, 3), (2, 12000)])
def test_long_lines(height, width):
    inputs = make_inputs(1, height, width, 8, 8, 4, torch.float32, "cuda", scale=0.5)
    h = gspn_scan(*inputs)
    expected_inputs = widened(inputs)
    expected = gspn_scan_reference(*expected_inputs)
    assert_near(h, expected, "h")
    wanted = torch.autograd.grad(expected.sum(), expected_inputs)
    for one, other in zip(torch.autograd.grad(h.sum(), inputs), wanted, strict=True):
        assert_near(one, other, tolerance=1e-5)


def test_a_map_of_4096_by_4096():
    """Its first lines against the same lines alone, which a scan cannot tell apart from a map that ends there."""
    side, lines, channels = 4096, 24, 8
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = ((channels,), (4, channels), (4, 3, channels))
    x, lam, logits = (torch.randn(1, side, side, *s, device="cuda", generator=generator) for s in sizes)
    h = gspn_scan(x, lam, logits)
    assert h.isfinite().all()
    for k, direction in enumerate(DIRECTIONS):
        ends = slice(-lines, None) if direction in ("left", "up") else slice(lines)
        first = (slice(None), ends) if direction in ("down", "up") else (slice(None), slice(None), ends)
        maps = [lam[first][:, :, :, k : k + 1], logits[first][:, :, :, k : k + 1]]
        expected = gspn_scan_reference(*(tensor.double() for tensor in (x[first], *maps)), (direction,))
        assert_near(h[first][:, :, :, k : k + 1], expected, direction)


def test_lines_too_long_say_so():
    with pytest.raises(RuntimeError, match="lines of 200000 positions do not fit"):
        gspn_scan(*make_inputs(1, 1, 200_000, 8, 8, 4, torch.float32, "cuda"))


def test_runs_on_the_current_stream():
    """The operators must follow work that their stream is still busy with."""
    inputs = [tensor.detach() for tensor in make_inputs(4, 32, 32, 64, 64, 4, torch.float32, "cuda")]
    expected = scan_and_merge(*inputs)
    late = [torch.zeros_like(tensor) for tensor in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for tensor, value in zip(late, inputs, strict=True):
            tensor.copy_(value)
        y = scan_and_merge(*late)
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("groups", [64, 1])
def test_graph_capture(groups):
    inputs = make_inputs(2, 16, 16, 64, groups, 4, torch.bfloat16, "cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        gradients(inputs, scan_and_merge(*inputs))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = scan_and_merge(*inputs)
        captured = [y, *gradients(inputs, y)]
    with torch.no_grad():
        for tensor in inputs:
            tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    fresh = scan_and_merge(*inputs)
    for one, other in zip(captured, [fresh, *gradients(inputs, fresh)], strict=True):
        assert torch.equal(one, other)


def test_past_two_to_the_31_elements():
    """logits of 3.2e9 elements: the last image must equal the same image alone."""
    free, _ = torch.cuda.mem_get_info()
    if free < 40 * 2**30:
        pytest.skip(f"needs 40 GiB of GPU memory, {free / 2**30:.0f} are free")
    batch = 128
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(batch, 64, 64, 512, device="cuda", dtype=torch.bfloat16, generator=generator)
    lam = torch.randn(batch, 64, 64, 4, 512, device="cuda", dtype=torch.bfloat16, generator=generator)
    logits = torch.randn(batch, 64, 64, 4, 3, 512, device="cuda", dtype=torch.bfloat16, generator=generator)
    assert logits.numel() > 2**31
    inputs = [tensor.requires_grad_() for tensor in (x, lam, logits)]
    last = [tensor[-1:].detach().clone().requires_grad_() for tensor in inputs]
    h, alone = gspn_scan(*inputs), gspn_scan(*last)
    assert torch.equal(h[-1:], alone)
    grad_h = torch.randn_like(alone)
    of_all = torch.zeros_like(h)
    of_all[-1:] = grad_h
    wanted = torch.autograd.grad(alone, last, grad_h)
    for one, other in zip(torch.autograd.grad(h, inputs, of_all), wanted, strict=True):
        assert_near(one[-1:], other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pixels, channels", [(4096, 1152), (4096, 1500), (4096, 900), (1000, 37), (7, 18)])
def test_merges_of_the_models(pixels, channels, dtype):
    maps = [
        torch.randn(pixels, 4, channels, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2)
    ]
    grad_y = torch.randn(pixels, channels, device="cuda", dtype=dtype)
    h, u = (tensor.detach().double() for tensor in maps)
    y = gated_merge(*maps)
    assert_near(y, (h * u).sum(1), "y")
    dh, du = torch.autograd.grad(y, maps, grad_y)
    assert_near(dh, u * grad_y.double().unsqueeze(1), "dh")
    assert_near(du, h * grad_y.double().unsqueeze(1), "du")


def test_merge_past_two_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 30 * 2**30:
        pytest.skip(f"needs 30 GiB of GPU memory, {free / 2**30:.0f} are free")
    maps = [torch.randn(2**19, 4, 1152, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    assert maps[0].numel() > 2**31
    maps = [tensor.requires_grad_() for tensor in maps]
    last = [tensor[-100:].detach().clone().requires_grad_() for tensor in maps]
    y, alone = gated_merge(*maps), gated_merge(*last)
    assert torch.equal(y[-100:], alone)
    wanted = torch.autograd.grad(alone.sum(), last)
    for one, other in zip(torch.autograd.grad(y[-100:].sum(), maps), wanted, strict=True):
        assert torch.equal(one[-100:], other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize(
    "shape",
    [(4, 16, 16, 1152), (2, 32, 32, 1500), (1, 64, 64, 384), (3, 14, 14, 37), (1, 9, 1000, 8)],
    ids=str,
)
def test_convolutions_of_the_models(shape, size, dtype):
    for activation in (None, "relu_squared"):
        compare(make_conv(shape, size, dtype, device="cuda"), activation)


def test_convolution_past_two_to_the_31_elements():
    """x of 2.3e9 elements: the last image must equal the same image alone; the weights' gradient is of it alone."""
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip(f"needs 24 GiB of GPU memory, {free / 2**30:.0f} are free")
    x = torch.randn(500, 64, 64, 1152, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight, bias = (
        t.detach().requires_grad_() for t in make_conv((1, 1, 1, 1152), 7, x.dtype, device="cuda")[1:]
    )
    assert x.numel() > 2**31
    last = x[-1:].detach().clone().requires_grad_()
    y, alone = depthwise_conv(x, weight, bias), depthwise_conv(last, weight, bias)
    assert torch.equal(y[-1:], alone)
    grad_y, of_all = torch.randn_like(alone), torch.zeros_like(y)
    of_all[-1:] = grad_y
    wanted = torch.autograd.grad(alone, (last, weight, bias), grad_y)
    found = torch.autograd.grad(y, (x, weight, bias), of_all)
    assert torch.equal(found[0][-1:], wanted[0]) and not found[0][:-1].any()
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert_near(one, other)


def test_convolution_is_bit_equal_on_repeat_and_in_a_graph():
    tensors = make_conv((5, 33, 20, 72), 7, torch.bfloat16, device="cuda")
    run = lambda: (y := depthwise_conv(*tensors, "relu_squared"), *gradients(tensors, y))  # noqa: E731
    with torch.cuda.stream(torch.cuda.Stream()):
        first = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    for other in (captured, run()):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_convolution_of_misaligned_views():
    for offset in (1, 2, 4):
        inputs = []
        for tensor in make_conv((2, 9, 20, 64), 3, torch.bfloat16, device="cuda"):
            memory = torch.empty(tensor.numel() + offset, device="cuda", dtype=tensor.dtype)
            inputs.append(memory[offset:].view(tensor.shape).copy_(tensor.detach()).requires_grad_())
        y = depthwise_conv(*inputs)
        assert_near(y, by_definition(*(t.detach().double() for t in inputs)), "y")
        gradients(inputs, y)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_second_device():
    inputs = make_inputs(2, 8, 8, 16, 16, 4, torch.float32, "cuda:1")
    assert torch.cuda.current_device() == 0
    h = gspn_scan(*inputs)
    y = gated_merge(h, h)
    assert h.device == y.device == torch.device("cuda", 1)
    assert_near(h, gspn_scan_reference(*widened(inputs)), "h")
    assert_near(y, h.detach().double().square().sum(3), "y")
    gradients(inputs, y)
    assert torch.cuda.current_device() == 0


def test_misaligned_views_take_narrower_accesses():
    for offset in (1, 2, 4):
        inputs = []
        for tensor in make_inputs(2, 16, 16, 64, 64, 4, torch.bfloat16, "cuda"):
            memory = torch.empty(tensor.numel() + offset, device="cuda", dtype=tensor.dtype)
            inputs.append(memory[offset:].view(tensor.shape).copy_(tensor.detach()).requires_grad_())
        h = gspn_scan(*inputs)
        assert_near(h, gspn_scan_reference(*widened(inputs)), "h")
        gradients(inputs, h)
        lam = inputs[1]  # off its alignment by `offset` elements
        y = gated_merge(lam, lam)
        assert_near(y, lam.detach().double().square().sum(3), "y")
        gradients([lam], y)
