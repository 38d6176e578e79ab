"""Scan and read-out in one: against the float64 reference, and to the bit against the two operators it joins."""

import pytest
import torch

import ops.library
from ops import gated_merge, gspn_mix, gspn_mix_reference, gspn_scan
from ops.arguments import NORMALIZATIONS
from tests.ops.cases import SHAPES, SUBSETS, make_inputs, widened
from tests.utils import assert_near

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = ("dx", "dlam", "dlogits", "du")


def make_mix(batch, height, width, channels, groups, directions, dtype, device="cpu", scale=2.0, shift=0.0):
    """Random x, lam, logits and u."""
    sizes = (batch, height, width, channels, groups, directions, dtype, device)
    u = make_inputs(*sizes, seed=7)[1]
    return [*make_inputs(*sizes, scale, shift), u]


def compare(inputs, gated=True, mix=gspn_mix, **settings):
    """Compare y and all gradients with those of the reference in float64."""
    inputs = inputs if gated else inputs[:3]
    wide = widened(inputs)
    y, expected = mix(*inputs, **settings), gspn_mix_reference(*wide, **settings)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad_y = grad_y.to(y.device, y.dtype)
    assert_near(y, expected, "y")
    wanted = torch.autograd.grad(
        expected, wide, grad_y.cpu().double(), materialize_grads=True, allow_unused=True
    )
    for name, actual, gradient in zip(NAMES, torch.autograd.grad(y, inputs, grad_y), wanted, strict=False):
        assert_near(actual, gradient, name)


def skip_unsupported(dtype, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 is for the CPU alone")


@pytest.mark.parametrize("gated", [True, False], ids=["gates", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shape, dtype, gated, device, poisoned_memory):
    skip_unsupported(dtype, device)
    *sizes, segment = shape
    for normalization in NORMALIZATIONS:
        scale = {"row_stochastic": (2.0, 0.0), "sigmoid": (1.0, -1.5), "none": (0.2, 0.0)}[normalization]
        inputs = make_mix(*sizes, 4, dtype, device, *scale)
        compare(inputs, gated, segment=segment, normalization=normalization)


def test_reference_is_its_formula():
    inputs = make_mix(1, 3, 4, 6, 2, 4, torch.float64)
    h = gspn_scan(*inputs[:3])
    assert_near(gspn_mix_reference(*inputs), (inputs[3] * h).sum(3), "y")
    assert_near(gspn_mix_reference(*inputs[:3]), h.sum(3), "y")


@pytest.mark.parametrize("directions", SUBSETS, ids="-".join)
def test_each_subset_of_directions(directions, device, poisoned_memory):
    for groups in (1, 3, 12):
        inputs = make_mix(2, 4, 6, 12, groups, len(directions), torch.float32, device)
        compare(inputs, directions=directions, segment=3)
    backwards = tuple(reversed(directions))
    compare(make_mix(1, 3, 5, 4, 4, len(directions), torch.float32, device), directions=backwards)


def in_two(x, lam, logits, u, **settings):
    return gated_merge(gspn_scan(x, lam, logits, **settings), u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [(2, 7, 9, 48, 48, 0), (2, 7, 9, 48, 3, 2), (1, 5, 6, 21, 7, 0), (1, 40, 40, 512, 512, 0)],
    ids=str,
)
def test_bits_of_scan_and_merge_in_full_precision_on_the_cpu(sizes, dtype):
    """What was trained with the two operators goes on as if nothing had happened."""
    *shape, segment = sizes
    inputs = make_mix(*shape, 4, dtype)
    results = []
    for mix in (gspn_mix, in_two):
        y = mix(*inputs, segment=segment)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for name, mine, theirs in zip(("y", *NAMES), *results, strict=True):
        assert torch.equal(mine, theirs), name
    with torch.no_grad():
        assert torch.equal(gspn_mix(*inputs, segment=segment), results[0][0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_states_are_read_before_they_are_rounded(dtype):
    """On the CPU h = 1 + e^2 lies between two numbers of half precision, and the sum leaves e^2."""
    e = 2**-7 if dtype == torch.bfloat16 else 2**-10
    x = torch.full((1, 2, 1, 24), 1 + e, dtype=dtype)
    lam = torch.full((1, 2, 1, 2, 24), 1 + e, dtype=dtype)
    u = torch.tensor([1.0, -1.0], dtype=dtype).view(1, 1, 1, 2, 1).expand(1, 2, 1, 2, 24)
    lam[:, :, :, 1] = 1
    logits = torch.zeros(1, 2, 1, 2, 3, 1, dtype=dtype)
    y = gspn_mix(x, lam, logits, u, ("right", "left"))  # maps one column wide: h = lam x
    assert torch.equal(y, torch.full_like(x, (1 + e) ** 2 - (1 + e)))
    assert not torch.equal(y, in_two(x, lam, logits, u, directions=("right", "left")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_contiguous_inputs_and_gradient(dtype, device):
    skip_unsupported(dtype, device)
    x, lam, logits, u = (t.detach() for t in make_mix(2, 5, 4, 12, 4, 4, dtype, device))
    strided = [
        x.transpose(1, 2).contiguous().transpose(1, 2),
        lam.repeat_interleave(2, dim=4)[..., ::2],
        logits.movedim(3, 0).contiguous().movedim(0, 3),
        u.transpose(0, 2).contiguous().transpose(0, 2),
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    compare([tensor.requires_grad_() for tensor in strided])
    y = gspn_mix(*strided)
    (du,) = torch.autograd.grad(y.transpose(1, 2).sum(), strided[3])
    assert_near(du, gspn_scan(*strided[:3]), "du")


def test_gradcheck():
    inputs = make_mix(1, 3, 3, 2, 1, 2, torch.float64)
    run = lambda *tensors: gspn_mix(*tensors, directions=("right", "up"), segment=2)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradcheck(lambda *t: gspn_mix(*t, directions=("right", "up")), inputs[:3])


def saved_sizes(inputs):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t):
        gspn_mix(*inputs)
    return sizes


def test_h_is_kept_only_for_a_derivative(device):
    inputs = make_mix(2, 3, 4, 6, 3, 4, torch.float32, device)
    lam = inputs[1].shape
    assert saved_sizes(inputs) == [inputs[0].shape, lam, inputs[2].shape, lam, lam]
    raw = lambda states: torch.ops.gspn.mix(*inputs, [0, 1, 2, 3], 0, 0, states)[1]  # noqa: E731
    assert raw(False).shape == lam
    with torch.no_grad():
        assert saved_sizes(inputs) == [] and raw(False).shape == (0,)
        assert_near(raw(True), gspn_scan(*inputs[:3]), "h")


def test_gradient_of_h_itself(device):
    """The raw operator's second output is differentiable too, alone and together with the first."""
    inputs = make_mix(2, 3, 4, 6, 3, 4, torch.float32, device)
    wide = widened(inputs)
    expected = (gspn_mix_reference(*wide), gspn_scan(*wide[:3]))
    for gated in (True, False):
        used = inputs if gated else [*inputs[:3], None]
        y, h = torch.ops.gspn.mix(*used, [0, 1, 2, 3], 0, 0, True)
        if not gated:
            expected = (gspn_mix_reference(*wide[:3]), gspn_scan(*wide[:3]))
        leaves = slice(None) if gated else slice(3)
        for mine, theirs in (
            (h.sin().sum(), expected[1].sin().sum()),
            (y.sum() + h.sum(), sum(t.sum() for t in expected)),
        ):
            found = torch.autograd.grad(
                mine, inputs[leaves], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            wanted = torch.autograd.grad(
                theirs, wide[leaves], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for name, a, b in zip(NAMES, found, wanted, strict=False):
                assert_near(a, b, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(dtype, device):
    skip_unsupported(dtype, device)
    inputs = make_mix(0, 4, 4, 6, 3, 4, dtype, device)
    y = gspn_mix(*inputs)
    assert y.shape == (0, 4, 4, 6)
    assert all(g.shape == t.shape for g, t in zip(torch.autograd.grad(y.sum(), inputs), inputs, strict=True))


def everything(inputs, **settings):
    y = gspn_mix(*inputs, **settings)
    return [y, *torch.autograd.grad(y.float().square().sum(), inputs)]


def test_bit_equal_on_repeat_and_for_any_thread_count():
    threads = torch.get_num_threads()
    try:
        for groups, dtype in ((1, torch.bfloat16), (16, torch.float32), (256, torch.float16)):
            results = []
            for count in (1, 2, 3, 7, 1):
                torch.set_num_threads(count)
                results.append(everything(make_mix(1, 6, 7, 256, groups, 4, dtype)))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_bit_equal_on_repeat_on_each_device(device):
    inputs = make_mix(2, 16, 16, 64, 4, 4, torch.bfloat16, device)
    runs = [everything(inputs) for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


BAD = {
    "u of another shape": (
        torch.zeros(2, 3, 4, 4, 5),
        ValueError,
        r"u has shape \(2, 3, 4, 4, 5\); expected",
    ),
    "u of another dtype": (torch.zeros(2, 3, 4, 4, 6).half(), TypeError, "u has dtype torch.float16"),
    "u on another device": (torch.zeros(2, 3, 4, 4, 6, device="meta"), ValueError, "u is on meta"),
    "u is no tensor": ([1.0], TypeError, "u is a list"),
}


@pytest.mark.parametrize("mix", [gspn_mix, gspn_mix_reference], ids=["compiled", "reference"])
@pytest.mark.parametrize("u, error, message", BAD.values(), ids=BAD.keys())
def test_bad_gates(mix, u, error, message):
    with pytest.raises(error, match=message):
        mix(*make_inputs(2, 3, 4, 6, 3, 4, torch.float32), u)


@pytest.mark.parametrize("mix", [gspn_mix, gspn_mix_reference], ids=["compiled", "reference"])
def test_bad_arguments_of_the_scan(mix):
    inputs = make_mix(2, 3, 4, 6, 3, 4, torch.float32)
    with pytest.raises(ValueError, match="'north'"):
        mix(*inputs, directions=("right", "left", "down", "north"))
    with pytest.raises(ValueError, match="segment is -1"):
        mix(*inputs, segment=-1)
    with pytest.raises(TypeError, match="x is a list"):
        mix([1.0], *inputs[1:])


def test_missing_library_names_the_command(monkeypatch):
    monkeypatch.setattr(ops.library, "BACKENDS", ())
    with pytest.raises(RuntimeError, match="make build"):
        gspn_mix(*make_mix(2, 3, 4, 6, 3, 4, torch.float32))


def test_raw_op_checks_what_it_reads():
    """A direct call of the op cannot make the kernel read outside its tensors."""
    x, lam, logits, u = (t.detach() for t in make_mix(2, 3, 4, 6, 3, 4, torch.float32))
    settings = ([0, 1, 2, 3], 0, 0)
    for bad in (u[:1], u.half(), u.transpose(1, 2).contiguous().transpose(1, 2)):
        with pytest.raises(RuntimeError, match="gspn: u"):
            torch.ops.gspn.mix(x, lam, logits, bad, *settings, False)
        with pytest.raises(RuntimeError, match="gspn: u"):
            torch.ops.gspn.mix_backward(x, x, lam, logits, bad, lam, *settings)
    with pytest.raises(RuntimeError, match="gspn: grad_y"):
        torch.ops.gspn.mix_backward(x[:1], x, lam, logits, u, lam, *settings)
    with pytest.raises(RuntimeError, match="gspn: h"):
        torch.ops.gspn.mix_backward(x, x, lam, logits, u, lam[:1], *settings)
    with pytest.raises(RuntimeError, match="unknown segment or normalization"):
        torch.ops.gspn.mix(x, lam, logits, u, [0, 1, 2, 3], -1, 0, False)


@pytest.mark.parametrize("gated", [True, False], ids=["gates", "sum"])
def test_opcheck(gated, device):
    inputs = make_mix(2, 3, 4, 6, 3, 4, torch.float32, device)
    inputs = inputs if gated else [*inputs[:3], None]
    settings = ([0, 1, 2, 3], 2, 0)
    torch.library.opcheck(torch.ops.gspn.mix, (*inputs, *settings, True))
    plain = [None if t is None else t.detach() for t in inputs]
    torch.library.opcheck(torch.ops.gspn.mix, (*plain, *settings, False))
    torch.library.opcheck(torch.ops.gspn.mix_backward, (plain[0], *plain, plain[1], *settings))


@pytest.mark.parametrize("gated", [True, False], ids=["gates", "sum"])
def test_compile_fullgraph(gated, device):
    inputs = make_mix(2, 4, 5, 8, 2, 4, torch.float32, device)
    compiled = torch.compile(gspn_mix, fullgraph=True, backend="aot_eager")
    compare(inputs, gated, compiled)
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), gspn_mix(*inputs))


def test_a_compiled_inference_writes_no_states(device):
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    inputs = make_mix(2, 4, 5, 8, 2, 4, torch.float32, device)
    with torch.no_grad():
        torch.compile(gspn_mix, fullgraph=True, backend=keep)(*inputs)
    (call,) = [node for node in graphs[0].graph.nodes if "gspn" in str(node.target)]
    assert call.args[-1] is False and call.meta["example_value"][1].shape == (0,)


def test_meta_tensors():
    inputs = [t.detach().to("meta").requires_grad_() for t in make_mix(2, 4, 5, 8, 2, 4, torch.bfloat16)]
    y = gspn_mix(*inputs)
    assert y.device.type == "meta" and y.shape == (2, 4, 5, 8) and y.dtype == torch.bfloat16
    assert [g.shape for g in torch.autograd.grad(y.sum(), inputs)] == [t.shape for t in inputs]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_inputs(dtype, device):
    inputs = make_mix(2, 4, 5, 8, 2, 4, torch.float32, device)
    with torch.autocast(device, dtype):
        y = gspn_mix(*inputs[:3], inputs[3].to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y, gspn_mix(*(tensor.to(dtype) for tensor in inputs)))
    (du,) = torch.autograd.grad(y.float().sum(), inputs[3])
    assert du.dtype == torch.float32
