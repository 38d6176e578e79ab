"""The gated merge against its formula: outputs, gradients, and what surrounds the kernels."""

import pytest
import torch

import ops.library
from ops import gated_merge, gated_merge_reference, gspn_scan
from tests.ops.cases import widened
from tests.utils import assert_near

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# (..., K, C)
SHAPES = {
    "whole vectors": (2, 3, 5, 4, 64),
    "ragged channels": (2, 3, 5, 4, 37),
    "rows of an odd number of pairs": (1, 2, 3, 4, 18),
    "one channel": (2, 3, 4, 4, 1),
    "one direction": (2, 3, 4, 1, 20),
    "seven directions": (5, 7, 24),
    "no leading axis": (4, 12),
    "shared out among threads": (1, 50, 30, 4, 40),
}


def make_maps(shape, dtype, device="cpu", seed=0):
    """Random h and u, drawn in float64 so that every dtype rounds the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [tensor.to(device, dtype).requires_grad_() for tensor in maps]


def compare(maps, merge=gated_merge):
    """Compare y, dh and du with those of the formula in float64."""
    wide = widened(maps)
    y, expected = merge(*maps), (wide[0] * wide[1]).sum(-2)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    assert_near(y, expected, "y")
    wanted = torch.autograd.grad(expected, wide, grad_y.cpu().double())
    for name, actual, gradient in zip(
        ("dh", "du"), torch.autograd.grad(y, maps, grad_y), wanted, strict=True
    ):
        assert_near(actual, gradient, name)


def skip_unsupported(dtype, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 is for the CPU alone")


@pytest.mark.parametrize("merge", [gated_merge, gated_merge_reference], ids=["compiled", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_formula(shape, dtype, merge, device, poisoned_memory):
    skip_unsupported(dtype, device)
    compare(make_maps(shape, dtype, device), merge)


@pytest.mark.parametrize("merge", [gated_merge, gated_merge_reference], ids=["compiled", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_only_the_sum_is_rounded(merge, dtype, device):
    """(1 + e)^2 - (1 + 2e) leaves e^2, which a product rounded to half precision has lost."""
    e = 2**-7 if dtype == torch.bfloat16 else 2**-10
    h = torch.tensor([1 + e, -1]).to(device, dtype).unsqueeze(1).expand(2, 24)
    u = torch.tensor([1 + e, 1 + 2 * e]).to(device, dtype).unsqueeze(1).expand(2, 24)
    assert torch.equal(merge(h, u), torch.full((24,), e * e, device=device, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_contiguous_inputs_and_gradient(dtype, device):
    skip_unsupported(dtype, device)
    h, u = make_maps((2, 5, 4, 4, 12), dtype, device)
    strided = [
        h.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        u.detach().repeat_interleave(2, dim=4)[..., ::2].requires_grad_(),
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    compare(strided)
    weight = (
        torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(3)).to(device, dtype).transpose(0, 1)
    )
    grads = torch.autograd.grad((gated_merge(*strided) * weight).sum(), strided)
    assert_near(grads[0], u.detach().double() * weight.double().unsqueeze(2), "dh")
    assert_near(grads[1], h.detach().double() * weight.double().unsqueeze(2), "du")


def test_gradcheck():
    assert torch.autograd.gradcheck(gated_merge, make_maps((2, 3, 4, 5), torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty(dtype, device):
    skip_unsupported(dtype, device)
    for shape in ((0, 4, 4, 4, 6), (2, 0, 4, 6), (3, 4, 0)):
        maps = make_maps(shape, dtype, device)
        y = gated_merge(*maps)
        assert y.shape == (*shape[:-2], shape[-1])
        gradients = torch.autograd.grad(y.sum(), maps)
        assert all(g.shape == m.shape for g, m in zip(gradients, maps, strict=True))


def everything(maps):
    y = gated_merge(*maps)
    return [y, *torch.autograd.grad(y.float().square().sum(), maps)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bit_equal_on_repeat_and_for_any_thread_count(dtype):
    maps, threads = make_maps((40, 40, 4, 37), dtype), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7, 1):
            torch.set_num_threads(count)
            results.append(everything(maps))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bit_equal_on_repeat_on_each_device(device):
    maps = make_maps((2, 16, 16, 4, 64), torch.bfloat16, device)
    results = [everything(maps) for _ in range(3)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("channels", [1024, 1020], ids=["whole cache lines", "ragged"])
def test_gradients_larger_than_the_caches(channels):
    """Past some size they are written around the caches: the same bits as in parts below that size."""
    maps = make_maps((33, 64, 4, channels), torch.float32)
    assert maps[0].numel() * 4 > 32 << 20
    _, *gradients = everything(maps)
    for part in (slice(0, 16), slice(16, 33)):
        parts = [tensor.detach()[part].clone().requires_grad_() for tensor in maps]
        for whole, mine in zip(gradients, everything(parts)[1:], strict=True):
            assert torch.equal(mine, whole[part])


BAD_ARGUMENTS = {
    "not a tensor": ([1.0], torch.zeros(2, 3), TypeError, "h is a list"),
    "u is none": (torch.zeros(2, 3), None, TypeError, "u is a NoneType"),
    "integers": (torch.zeros(2, 3).int(), torch.zeros(2, 3).int(), TypeError, "h has dtype torch.int32"),
    "another dtype": (torch.zeros(2, 3), torch.zeros(2, 3).half(), TypeError, "u has dtype torch.float16"),
    "another device": (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), ValueError, "u is on meta"),
    "one axis": (
        torch.zeros(3),
        torch.zeros(3),
        ValueError,
        r"h has shape \(3,\); expected \(\.\.\., K, C\)",
    ),
    "no direction": (torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), ValueError, "at least one direction"),
    "another shape": (torch.zeros(2, 3), torch.zeros(3, 2), ValueError, r"u has shape \(3, 2\)"),
}


@pytest.mark.parametrize("merge", [gated_merge, gated_merge_reference], ids=["compiled", "reference"])
@pytest.mark.parametrize("h, u, error, message", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments(merge, h, u, error, message):
    with pytest.raises(error, match=message):
        merge(h, u)


def test_missing_library_names_the_command(monkeypatch):
    monkeypatch.setattr(ops.library, "BACKENDS", ())
    with pytest.raises(RuntimeError, match="make build"):
        gated_merge(torch.zeros(2, 3), torch.zeros(2, 3))


def test_raw_op_checks_what_it_reads():
    """A direct call of the op cannot make the kernel read outside its tensors."""
    h, u = torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 4, 6)
    merge, backward = torch.ops.gspn.merge, torch.ops.gspn.merge_backward
    for bad in (h.transpose(0, 1), u[:1], u.half()):
        with pytest.raises(RuntimeError, match="gspn"):
            merge(h, bad)
    with pytest.raises(RuntimeError, match="h must be contiguous"):
        merge(h.transpose(0, 1), u.transpose(0, 1))
    with pytest.raises(RuntimeError, match="expected h"):
        merge(h.flatten(), u.flatten())
    for bad in (
        torch.zeros(2, 3, 5),
        torch.zeros(2, 6),
        torch.zeros(6, 3, 2).movedim(0, 2),
        torch.zeros(2, 3, 6).half(),
    ):
        with pytest.raises(RuntimeError, match="gspn: grad_y"):
            backward(bad, h, u)


def test_opcheck(device):
    h, u = make_maps((2, 3, 4, 6), torch.float32, device)
    torch.library.opcheck(torch.ops.gspn.merge, (h, u))
    grad_y = torch.randn(2, 3, 6, device=device)
    torch.library.opcheck(torch.ops.gspn.merge_backward, (grad_y, h.detach(), u.detach()))


def test_second_derivative_raises(device):
    maps = make_maps((2, 3, 4), torch.float32, device)
    (dh,) = torch.autograd.grad(gated_merge(*maps).square().sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        dh.sum().backward()


@pytest.mark.parametrize("merge", [gated_merge, torch.ops.gspn.merge], ids=["public", "raw"])
def test_compile_fullgraph(merge, device):
    maps = make_maps((2, 4, 5, 4, 8), torch.float32, device)
    compare(maps, torch.compile(merge, fullgraph=True, backend="aot_eager"))


def test_compile_with_dynamic_shapes(device):
    compiled = torch.compile(torch.ops.gspn.merge, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows, channels in ((2, 4), (3, 5), (5, 7)):
        compare(make_maps((rows, 3, 4, channels), torch.float32, device), compiled)


def test_the_compiler_sees_the_formula():
    """Traced as an operator of its own it could not be joined with the norm that follows."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph.print_readable(print_output=False))
        return graph

    torch.compile(gated_merge, fullgraph=True, backend=keep)(*make_maps((2, 4, 8), torch.float32))
    assert "sum" in graphs[0] and "gspn" not in graphs[0]


def test_meta_and_fake_tensors():
    maps = [tensor.to("meta") for tensor in make_maps((2, 4, 5, 4, 8), torch.bfloat16)]
    y = gated_merge(*maps)
    assert y.device.type == "meta" and y.shape == (2, 4, 5, 8) and y.dtype == torch.bfloat16
    assert [g.shape for g in torch.autograd.grad(y.sum(), maps)] == [maps[0].shape] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_inputs(dtype, device):
    h, u = make_maps((2, 4, 5, 4, 8), torch.float32, device)
    with torch.autocast(device, dtype):
        y = gated_merge(h, u.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y, gated_merge(h.to(dtype), u.to(dtype)))
    (dh,) = torch.autograd.grad(y.float().sum(), h)
    assert dh.dtype == torch.float32


def test_inference_mode(device):
    maps = [tensor.detach() for tensor in make_maps((2, 4, 8), torch.float32, device)]
    with torch.inference_mode():
        assert_near(gated_merge(*maps), gated_merge_reference(*maps), "y")


def test_only_h_and_u_are_saved(device):
    """No copy of either, and nothing as large as their product."""
    h, u = make_maps((2, 4, 8), torch.float32, device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        gated_merge(h, u)
    assert sorted(saved) == sorted([h.data_ptr(), u.data_ptr()])


def test_after_a_scan(device):
    """As the mixer uses it: the states of a scan, read by their gates."""
    x, lam = torch.randn(2, 3, 4, 6, device=device), torch.randn(2, 3, 4, 4, 6, device=device)
    h = gspn_scan(x, lam, torch.randn(2, 3, 4, 4, 3, 2, device=device))
    assert_near(gated_merge(h, lam), gated_merge_reference(h, lam), "y")
