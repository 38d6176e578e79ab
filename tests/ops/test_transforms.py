"""The operators under torch's transforms: forward mode, torch.func, vmap, compile, export, trace."""

import io

import pytest
import torch
from torch.autograd import forward_ad

from ops import (
    gated_merge,
    gated_merge_reference,
    gspn_mix,
    gspn_mix_reference,
    gspn_scan,
    gspn_scan_reference,
)
from ops.arguments import DIRECTIONS, NORMALIZATIONS
from tests.ops.cases import SHAPES, make_inputs
from tests.utils import assert_near

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SCALES = {"row_stochastic": (2.0, 0.0), "sigmoid": (1.0, -1.5), "none": (0.2, 0.0)}
OPERATORS = {
    "gspn_scan": (gspn_scan, gspn_scan_reference),
    "gated_merge": (gated_merge, gated_merge_reference),
    "gspn_mix": (gspn_mix, gspn_mix_reference),
}
BOTH_MODES = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
both_operators = pytest.mark.parametrize("name", OPERATORS)


def detached(tensors):
    return tuple(tensor.detach() for tensor in tensors)


def example(name, dtype=torch.float64, device="cpu", seed=0):
    """Inputs of an operator; another seed gives tangents for them."""
    inputs = detached(make_inputs(3, 3, 4, 4, 2, 4, dtype, device, seed=seed))
    u = inputs[1].flip(0) + 1
    return {"gspn_scan": inputs, "gated_merge": (inputs[1], u), "gspn_mix": (*inputs, u)}[name]


def wide(tensors):
    return tuple(tensor.detach().cpu().double() for tensor in tensors)


def compare(actual, expected, tolerance=None):
    """Two trees of tensors."""
    actual, expected = (torch.utils._pytree.tree_leaves(tree) for tree in (actual, expected))
    for i, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert mine is not None, f"result {i} is lost"
        assert_near(mine, theirs, f"result {i}", tolerance)


def tangent(scan, inputs, tangents, **settings):
    return torch.func.jvp(lambda *tensors: scan(*tensors, **settings), tuple(inputs), tuple(tangents))


def skip_unsupported(dtype, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 is for the CPU alone")


# Forward mode


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_tangent_of_the_scan(shape, dtype, device, poisoned_memory):
    """Against forward mode through the reference in float64; h in storage is rounded, which the tangent inherits."""
    skip_unsupported(dtype, device)
    *sizes, segment = shape
    for normalization in NORMALIZATIONS:
        scale = SCALES[normalization]
        inputs, tangents = (
            detached(make_inputs(*sizes, 4, dtype, device, *scale, seed=seed)) for seed in (0, 1)
        )
        settings = {"segment": segment, "normalization": normalization}
        h, dh = tangent(gspn_scan, inputs, tangents, **settings)
        assert dh.dtype == dtype and torch.equal(h, gspn_scan(*inputs, **settings))
        _, expected = tangent(gspn_scan_reference, wide(inputs), wide(tangents), **settings)
        assert_near(dh, expected, f"dh, {normalization}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tangent_of_the_merge(dtype, device):
    skip_unsupported(dtype, device)
    inputs, tangents = (example("gated_merge", dtype, device, seed) for seed in (0, 1))
    y, dy = tangent(gated_merge, inputs, tangents)
    assert dy.dtype == dtype and torch.equal(y, gated_merge(*inputs))
    assert_near(dy, tangent(gated_merge_reference, wide(inputs), wide(tangents))[1], "dy")


@pytest.mark.parametrize(
    "directions", [*[(name,) for name in DIRECTIONS], ("up", "left", "right")], ids="-".join
)
def test_tangent_along_each_direction(directions, device):
    inputs, tangents = (
        detached(make_inputs(2, 4, 6, 12, 3, len(directions), torch.float32, device, seed=seed))
        for seed in (0, 1)
    )
    settings = {"directions": directions, "segment": 3}
    _, dh = tangent(gspn_scan, inputs, tangents, **settings)
    assert_near(dh, tangent(gspn_scan_reference, wide(inputs), wide(tangents), **settings)[1], "dh")


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("segment", [0, 2])
def test_both_modes_match_finite_differences(normalization, segment):
    """Forward and reverse mode, each alone and for a batch of directions at once (vmap of either)."""
    inputs = make_inputs(1, 3, 3, 2, 1, 2, torch.float64)
    run = lambda *tensors: gspn_scan(*tensors, ("right", "up"), segment, normalization)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs, **BOTH_MODES)


def test_both_modes_of_the_merge_match_finite_differences():
    maps = [tensor[:1, :2, :1].clone().requires_grad_() for tensor in example("gated_merge")]
    assert torch.autograd.gradcheck(gated_merge, maps, **BOTH_MODES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tangent_at_extreme_logits(dtype, device):
    skip_unsupported(dtype, device)
    inputs, tangents = (example("gspn_scan", dtype, device, seed) for seed in (0, 1))
    values = torch.tensor([-1e4, 1e4, -88.0, 30.0, -30.0, 0.0], dtype=dtype, device=device)
    choice = torch.randint(6, inputs[2].shape, generator=torch.Generator().manual_seed(2)).to(device)
    inputs = (*inputs[:2], values[choice])
    for normalization in ("row_stochastic", "sigmoid"):
        _, dh = tangent(gspn_scan, inputs, tangents, normalization=normalization)
        _, expected = tangent(gspn_scan_reference, wide(inputs), wide(tangents), normalization=normalization)
        assert_near(dh, expected, "dh")


@both_operators
def test_tangent_of_one_input_alone(name):
    operator, reference = OPERATORS[name]
    inputs, tangents = example(name), example(name, seed=1)
    for i in range(len(inputs)):
        before, after = inputs[:i], inputs[i + 1 :]
        rates = [
            torch.func.jvp(lambda t, run=run, b=before, a=after: run(*b, t, *a), (inputs[i],), (tangents[i],))
            for run in (operator, reference)
        ]
        compare(*rates)


@both_operators
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("graph", [torch.no_grad, torch.enable_grad])
def test_dual_numbers(name, tracked, graph):
    operator, reference = OPERATORS[name]
    inputs, tangents = example(name), example(name, seed=1)
    leaves = [tensor.clone().requires_grad_(tracked) for tensor in inputs]
    with graph(), forward_ad.dual_level():
        output = operator(*map(forward_ad.make_dual, leaves, tangents))
        output = tuple(forward_ad.unpack_dual(output))
    compare(output, torch.func.jvp(reference, inputs, tangents))
    if tracked and graph is torch.enable_grad:  # the level has ended: reverse mode over both
        loss = lambda pair: (pair[0] * pair[1]).sum()  # noqa: E731
        expected = torch.func.grad(
            lambda *tensors: loss(torch.func.jvp(reference, tensors, tangents)), (0, 1)
        )
        compare(torch.autograd.grad(loss(output), leaves[:2]), expected(*inputs))


@both_operators
def test_strided_tangents(name):
    operator, _ = OPERATORS[name]
    inputs, tangents = example(name), example(name, seed=1)
    strided = tuple(tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tangents)
    assert not any(tensor.is_contiguous() for tensor in strided)
    compare(torch.func.jvp(operator, inputs, strided), torch.func.jvp(operator, inputs, tangents))


@pytest.mark.parametrize("detach", [True, False], ids=["tangent detached", "through the tangent"])
@both_operators
def test_loss_of_a_function_and_its_tangent(name, detach):
    """As MeanFlow and consistency models train: jvp inside of a loss that reverse mode then differentiates."""
    operator, reference = OPERATORS[name]
    tangents, gradients = example(name, seed=1), []
    for run in (operator, reference):
        leaves = [tensor.clone().requires_grad_() for tensor in example(name)]
        value, rate = torch.func.jvp(run, tuple(leaves), tangents)
        loss = (value - (rate.detach() if detach else rate)).square().sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    compare(*gradients, tolerance=1e-11)


@both_operators
def test_tangent_of_a_tangent(name):
    first, second = example(name, seed=1), example(name, seed=2)
    run = lambda operator: torch.func.jvp(  # noqa: E731
        lambda *tensors: torch.func.jvp(operator, tensors, first), example(name), second
    )
    compare(*map(run, OPERATORS[name]), tolerance=1e-11)


@both_operators
def test_tangent_under_autocast_and_of_meta_tensors(name):
    operator, _ = OPERATORS[name]
    inputs, tangents = example(name, torch.float32), example(name, torch.float32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        value, rate = torch.func.jvp(operator, inputs, tangents)
    rounded = lambda tensors: tuple(tensor.bfloat16() for tensor in tensors)  # noqa: E731
    assert value.dtype == rate.dtype == torch.bfloat16
    compare((value, rate), torch.func.jvp(operator, rounded(inputs), rounded(tangents)))
    meta = [tuple(tensor.to("meta") for tensor in tensors) for tensors in (inputs, tangents)]
    assert [t.shape for t in torch.func.jvp(operator, *meta)] == [value.shape, value.shape]


# torch.func in reverse mode, and vmap


def total(operator):
    return lambda *tensors: operator(*tensors).sin().sum()


def alone(operator):
    """The operator on one image."""
    return lambda *tensors: operator(*(tensor[None] for tensor in tensors))[0]


def every(operator, count):
    return torch.func.grad(total(operator), tuple(range(count)))


def shared(count):
    """in_dims by which the first input is the same for all."""
    return (None, *[0] * (count - 1))


TRANSFORMS = {
    "grad": lambda f, a: every(f, len(a))(*a),
    "grad_and_value": lambda f, a: torch.func.grad_and_value(total(f))(*a),
    "vjp": lambda f, a: (lambda out, pull: pull(out.cos()))(*torch.func.vjp(f, *a)),
    "jacrev": lambda f, a: torch.func.jacrev(lambda b: f(*(t[:1, :2] for t in a[:-1]), b))(a[-1][:1, :2]),
    "jacfwd": lambda f, a: torch.func.jacfwd(lambda b: f(*(t[:1, :2] for t in a[:-1]), b))(a[-1][:1, :2]),
    "linearize": lambda f, a: torch.func.linearize(f, *a)[1](*(t.flip(0) for t in a)),
    "gradients in a batch": lambda f, a: every(torch.vmap(f), len(a))(*(torch.stack([t, t + 1]) for t in a)),
    "vmap": lambda f, a: torch.vmap(alone(f))(*a),
    "vmap of vmap": lambda f, a: torch.vmap(torch.vmap(alone(f)))(*(torch.stack([t, t + 1]) for t in a)),
    "vmap, one input shared": lambda f, a: torch.vmap(alone(f), shared(len(a)))(a[0][0], *a[1:]),
    "per-sample gradients": lambda f, a: torch.vmap(every(alone(f), len(a)))(*a),
    "per-sample gradients, one input shared": lambda f, a: torch.vmap(
        every(alone(f), len(a)), shared(len(a))
    )(a[0][0], *a[1:]),
    "gradient of a shared input": lambda f, a: torch.func.grad(total(torch.vmap(alone(f), shared(len(a)))))(
        a[0][0], *a[1:]
    ),
    "vmap of jvp": lambda f, a: torch.vmap(lambda *t: torch.func.jvp(alone(f), t, tuple(b.sin() for b in t)))(
        *a
    ),
    "jvp of vmap": lambda f, a: torch.func.jvp(torch.vmap(alone(f)), a, tuple(b.sin() for b in a)),
}


@both_operators
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms(transform, name):
    operator, reference = OPERATORS[name]
    compare(transform(operator, example(name)), transform(reference, example(name)), tolerance=1e-11)


@both_operators
@pytest.mark.parametrize("transform", ["grad", "vmap", "per-sample gradients", "vmap of jvp", "jvp of vmap"])
def test_transforms_compiled(transform, name):
    torch._dynamo.reset()  # its limit of recompilations counts those of every test
    operator, _ = OPERATORS[name]
    run = lambda *tensors: TRANSFORMS[transform](operator, tensors)  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    compare(compiled(*example(name)), run(*example(name)), tolerance=1e-11)


@both_operators
def test_loss_of_a_tangent_compiled(name):
    torch._dynamo.reset()
    operator, _ = OPERATORS[name]
    tangents = example(name, seed=1)

    def loss(*tensors):
        value, rate = torch.func.jvp(operator, tensors, tangents)
        return (value - rate.detach()).square().sum()

    compiled, gradients = torch.compile(loss, fullgraph=True, backend="aot_eager"), []
    for run in (compiled, loss):
        leaves = [tensor.clone().requires_grad_() for tensor in example(name)]
        gradients.append(torch.autograd.grad(run(*leaves), leaves))
    compare(*gradients, tolerance=1e-11)


RAW = {
    "gspn_scan": lambda *tensors: torch.ops.gspn.scan(*tensors, [0, 1, 2, 3], 0, 0),
    "gated_merge": torch.ops.gspn.merge,
    "gspn_mix": lambda *tensors: torch.ops.gspn.mix(*tensors, [0, 1, 2, 3], 0, 0, False)[0],
}


@both_operators
def test_raw_operators_know_the_transforms_too(name):
    """What a compiled graph calls."""
    inputs, tangents = example(name), example(name, seed=1)
    compare(torch.func.jvp(RAW[name], inputs, tangents), torch.func.jvp(OPERATORS[name][1], inputs, tangents))
    compare(every(RAW[name], 2)(*inputs), every(OPERATORS[name][1], 2)(*inputs), tolerance=1e-11)


@both_operators
def test_vmap_takes_its_axis_from_anywhere(name):
    inputs = tuple(torch.stack([tensor, tensor + 1], dim=2) for tensor in example(name))
    for in_dims in (2, (2, *[0] * (len(inputs) - 1))):
        moved = inputs if in_dims == 2 else (inputs[0], *(tensor.movedim(2, 0) for tensor in inputs[1:]))
        outputs = [torch.vmap(f, in_dims, out_dims=1)(*moved) for f in (RAW[name], OPERATORS[name][1])]
        compare(*outputs)


# Second derivatives


def double_backward(f, a):
    leaves = [tensor.clone().requires_grad_() for tensor in a]
    (gradient,) = torch.autograd.grad(total(f)(*leaves), leaves[0], create_graph=True)
    return torch.autograd.grad(gradient.sum(), leaves)


def forward_over_reverse(f, a):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a[0].clone().requires_grad_(), a[0])
        return torch.autograd.grad(f(dual, *a[1:]).sum(), dual)


SECOND = {
    "grad of grad": lambda f, a: torch.func.grad(lambda *t: torch.func.grad(total(f))(*t).sin().sum())(*a),
    "jvp of grad": lambda f, a: torch.func.jvp(every(f, len(a)), a, a),
    "hessian": lambda f, a: torch.func.hessian(total(f))(*a),
    "hessian in reverse": lambda f, a: torch.func.jacrev(torch.func.jacrev(total(f)))(*a),
    "double backward": double_backward,
    "jvp by double backward": lambda f, a: torch.autograd.functional.jvp(f, a, a),
    "backward of dual numbers": forward_over_reverse,
}


@both_operators
@pytest.mark.parametrize("derive", SECOND.values(), ids=SECOND.keys())
def test_derivatives_of_the_gradient_are_refused(derive, name):
    with pytest.raises(RuntimeError, match=f"^{name} is differentiable once: .*") as refusal:
        derive(OPERATORS[name][0], example(name))
    assert "\n" not in str(refusal.value)


# Export and trace


class Mixed(torch.nn.Module):
    def forward(self, x, lam, logits):
        return gated_merge(gspn_scan(x, lam, logits, segment=2), lam.sin())


def test_export_with_a_free_batch():
    inputs, batch = example("gspn_scan", torch.float32), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Mixed(), inputs, dynamic_shapes=({0: batch},) * 3)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    more = tuple(torch.cat([tensor, tensor + 1]) for tensor in inputs)
    assert_near(torch.export.load(file).module()(*more), Mixed()(*more))


def test_trace_and_save():
    inputs, file = example("gspn_scan", torch.float32), io.BytesIO()
    torch.jit.save(torch.jit.trace(Mixed(), inputs), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    leaves = [(tensor + 1).requires_grad_() for tensor in inputs]
    compare(
        torch.autograd.grad(loaded(*leaves).sum(), leaves),
        torch.autograd.grad(Mixed()(*leaves).sum(), leaves),
    )
