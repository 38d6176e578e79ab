"""What surrounds the kernels: errors, autograd, torch.compile, fake tensors, autocast, the missing backend."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ops.library
from ops import gspn_scan, gspn_scan_reference
from tests.ops.cases import make_inputs
from tests.utils import assert_near


def arguments(**changes):
    x, lam, logits = make_inputs(2, 3, 4, 6, 3, 4, torch.float32)
    return {"x": x, "lam": lam, "logits": logits, **changes}


BAD_ARGUMENTS = {
    "G does not divide C": ({"logits": torch.zeros(2, 3, 4, 4, 3, 4)}, ValueError, "logits has G = 4"),
    "no group": ({"logits": torch.zeros(2, 3, 4, 4, 3, 0)}, ValueError, "logits has G = 0"),
    "lam of another map": (
        {"lam": torch.zeros(2, 4, 3, 4, 6)},
        ValueError,
        r"lam has shape \(2, 4, 3, 4, 6\)",
    ),
    "logits of two neighbours": ({"logits": torch.zeros(2, 3, 4, 4, 2, 6)}, ValueError, "logits has shape"),
    "x without channels": ({"x": torch.zeros(2, 3, 4)}, ValueError, r"x has shape \(2, 3, 4\); expected \(B"),
    "another dtype": ({"lam": torch.zeros(2, 3, 4, 4, 6).half()}, TypeError, "lam has dtype torch.float16"),
    "another dtype of logits": (
        {"logits": torch.zeros(2, 3, 4, 4, 3, 3).bfloat16()},
        TypeError,
        "logits has dtype torch.bfloat16",
    ),
    "integers": ({"x": torch.zeros(2, 3, 4, 6).int()}, TypeError, "x has dtype torch.int32"),
    "another device": ({"lam": torch.zeros(2, 3, 4, 4, 6, device="meta")}, ValueError, "lam is on meta"),
    "another device of logits": (
        {"logits": torch.zeros(2, 3, 4, 4, 3, 3, device="meta")},
        ValueError,
        "logits is on meta",
    ),
    "logits of another height": ({"logits": torch.zeros(2, 2, 4, 4, 3, 3)}, ValueError, "logits has shape"),
    "logits of another batch": ({"logits": torch.zeros(1, 3, 4, 4, 3, 3)}, ValueError, "logits has shape"),
    "not a tensor": ({"x": [1.0]}, TypeError, "x is a list"),
    "unknown direction": ({"directions": ("right", "left", "down", "north")}, ValueError, "'north'"),
    "repeated direction": ({"directions": ("right", "left", "down", "right")}, ValueError, "twice"),
    "no direction": ({"directions": ()}, ValueError, "directions is empty"),
    "a bare direction": ({"directions": "right"}, TypeError, "directions is 'right'"),
    "too few directions": ({"directions": ("right",)}, ValueError, "1 directions"),
    "negative segment": ({"segment": -1}, ValueError, "segment is -1"),
    "fractional segment": ({"segment": 1.5}, TypeError, "segment is 1.5"),
    "boolean segment": ({"segment": True}, TypeError, "segment is True"),
    "unknown normalization": ({"normalization": "softmax"}, ValueError, "normalization is 'softmax'"),
}


@pytest.mark.parametrize("scan", [gspn_scan, gspn_scan_reference], ids=["compiled", "reference"])
@pytest.mark.parametrize("changes, error, message", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments(scan, changes, error, message):
    with pytest.raises(error, match=message):
        scan(**arguments(**changes))


def test_missing_library_names_the_command(monkeypatch):
    monkeypatch.setattr(ops.library, "BACKENDS", ())
    with pytest.raises(RuntimeError, match="make build"):
        gspn_scan(**arguments())


def test_library_from_older_sources_counts_as_missing(monkeypatch):
    monkeypatch.setattr(ops.library, "OPERATORS", ("scan", "an_operator_of_tomorrow"))
    assert ops.library._load() == ()


def test_missing_backend_names_device_and_command(monkeypatch):
    monkeypatch.setattr(ops.library, "BACKENDS", ("cuda",))
    with pytest.raises(RuntimeError, match="no cpu kernels, only cuda"):
        gspn_scan(**arguments())
    monkeypatch.setattr(ops.library, "BACKENDS", ("cpu",))
    with (
        FakeTensorMode(),
        pytest.raises(RuntimeError, match=r"no cuda kernels, only cpu; .* make build CUDA=1"),
    ):
        gspn_scan(**fake_cuda_arguments(torch.float32))


def test_float64_is_for_the_cpu_alone(monkeypatch):
    monkeypatch.setattr(ops.library, "BACKENDS", ("cpu", "cuda"))
    with (
        FakeTensorMode(),
        pytest.raises(TypeError, match=r"x has dtype torch.float64.*expected torch.float32"),
    ):
        gspn_scan(**fake_cuda_arguments(torch.float64))


def fake_cuda_arguments(dtype):
    shapes = {"x": (2, 3, 4, 6), "lam": (2, 3, 4, 4, 6), "logits": (2, 3, 4, 4, 3, 3)}
    return {name: torch.empty(shape, device="cuda", dtype=dtype) for name, shape in shapes.items()}


def test_directions_may_be_a_list():
    inputs = make_inputs(2, 3, 4, 6, 3, 2, torch.float32)
    assert torch.equal(gspn_scan(*inputs, ["down", "left"]), gspn_scan(*inputs, ("down", "left")))


def test_raw_op_checks_what_it_reads():
    """A direct call of the op cannot make the kernel read outside its tensors."""
    inputs = make_inputs(2, 3, 4, 6, 3, 4, torch.float32)
    x, lam, logits = (tensor.detach() for tensor in inputs)
    op, settings = torch.ops.gspn.scan, ([0, 1, 2, 3], 0, 0)
    for i, tensor in enumerate((x, lam, logits)):
        strided = [x, lam, logits]
        strided[i] = tensor.transpose(1, 2).contiguous().transpose(1, 2)
        with pytest.raises(RuntimeError, match="contiguous"):
            op(*strided, *settings)
    for bad in ([0, 1], [0, 1, 2, 4]):
        with pytest.raises(RuntimeError, match="gspn"):
            op(x, lam, logits, bad, 0, 0)
    for segment, normalization in ((-1, 0), (0, -1), (0, 3)):
        with pytest.raises(RuntimeError, match="unknown segment or normalization"):
            op(x, lam, logits, [0, 1, 2, 3], segment, normalization)
    for axis in range(3):
        for i in range(3):
            short = [x, lam, logits]
            short[i] = short[i].narrow(axis, 0, 1)
            with pytest.raises(RuntimeError, match=r"share|contiguous"):
                op(*(tensor.contiguous() for tensor in short), *settings)
    with pytest.raises(RuntimeError, match="divides C"):
        op(x, lam, logits[..., :2].repeat(1, 1, 1, 1, 1, 2), *settings)
    h = op(x, lam, logits, *settings)
    for grad_h, states in ((h[:1], h), (h, h[:1]), (h.half(), h), (h.transpose(1, 2), h), (h, h[..., 0])):
        with pytest.raises(RuntimeError, match=r"gspn: (grad_h|h) "):
            torch.ops.gspn.scan_backward(grad_h, x, lam, logits, states, *settings)


@pytest.mark.parametrize("groups", [1, 6])
def test_opcheck(groups, device):
    x, lam, logits = make_inputs(2, 3, 4, 6, groups, 4, torch.float32, device)
    torch.library.opcheck(torch.ops.gspn.scan, (x, lam, logits, [0, 1, 2, 3], 2, 0))
    h = gspn_scan(x, lam, logits).detach()
    inputs = [tensor.detach() for tensor in (torch.randn_like(h), x, lam, logits, h)]
    torch.library.opcheck(torch.ops.gspn.scan_backward, (*inputs, [0, 1, 2, 3], 2, 0))


def test_second_derivative_raises(device):
    x, lam, logits = make_inputs(1, 3, 4, 4, 2, 4, torch.float32, device)
    (dx,) = torch.autograd.grad(gspn_scan(x, lam, logits).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        dx.sum().backward()


def test_compile_fullgraph(device):
    inputs = make_inputs(2, 4, 5, 8, 2, 4, torch.float32, device)
    run = lambda x, lam, logits: gspn_scan(2 * x, lam.sin(), logits, segment=2).square()  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected, actual = run(*inputs), compiled(*inputs)
    assert_near(actual, expected, "h")
    for mine, theirs in zip(
        torch.autograd.grad(actual.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        assert_near(mine, theirs, "gradient")


def test_compile_with_dynamic_shapes(device):
    compiled = torch.compile(gspn_scan, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, height in ((2, 4), (3, 5), (5, 7)):
        inputs = make_inputs(batch, height, 5, 8, 2, 4, torch.float32, device)
        assert_near(compiled(*inputs), gspn_scan(*inputs), "h")


def test_meta_and_fake_tensors():
    x, lam, logits = (tensor.to("meta") for tensor in make_inputs(2, 4, 5, 8, 2, 4, torch.bfloat16))
    h = gspn_scan(x, lam, logits)
    assert h.device.type == "meta" and h.shape == lam.shape and h.dtype == torch.bfloat16
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in make_inputs(2, 4, 5, 8, 2, 4, torch.float32)]
        assert gspn_scan(*fakes).shape == (2, 4, 5, 4, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_inputs(dtype, device):
    x, lam, logits = make_inputs(2, 4, 5, 8, 2, 4, torch.float32, device)
    with torch.autocast(device, dtype):
        h = gspn_scan(x, lam.to(dtype), logits)
    assert h.dtype == dtype
    assert torch.equal(h, gspn_scan(x.to(dtype), lam.to(dtype), logits.to(dtype)))
    (dx,) = torch.autograd.grad(h.float().sum(), x)
    assert dx.dtype == torch.float32


def test_autocast_leaves_float64():
    inputs = make_inputs(2, 4, 5, 8, 2, 4, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert gspn_scan(*inputs).dtype == torch.float64


def test_autocast_of_meta_tensors():
    inputs = [tensor.to("meta") for tensor in make_inputs(2, 4, 5, 8, 2, 4, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        assert gspn_scan(*inputs).device.type == "meta"


def test_inference_mode(device):
    inputs = [tensor.detach() for tensor in make_inputs(1, 3, 4, 4, 2, 4, torch.float32, device)]
    with torch.inference_mode():
        assert_near(gspn_scan(*inputs), gspn_scan_reference(*inputs), "h")
