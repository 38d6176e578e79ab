"""The depthwise convolution under torch's transforms: every derivative of every order, vmap, compile, export, trace."""

import io

import pytest
import torch
from torch.autograd import forward_ad

from ops import depthwise_conv, depthwise_conv_reference
from tests.ops.test_conv import ACTIVATIONS, by_definition, make_conv
from tests.ops.test_transforms import BOTH_MODES, compare, detached

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def example(seed=0, bias=True, dtype=torch.float64):
    """x, weight and bias; another seed gives tangents for them."""
    return detached(make_conv((3, 4, 5, 6), 3, dtype, bias, seed=seed))


def both(activation):
    """The operator and the definition, each of (x, weight, bias or none)."""
    return [lambda *t, f=f: f(*t, activation=activation) for f in (depthwise_conv, by_definition)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [3, 5])
@each_activation
def test_both_orders_in_both_modes_match_finite_differences(activation, size, bias):
    tensors = make_conv((1, 4, 3, 2), size, torch.float64, bias)
    run = lambda *t: depthwise_conv(*t, activation=activation)  # noqa: E731
    assert torch.autograd.gradcheck(run, tensors, **BOTH_MODES)
    assert torch.autograd.gradgradcheck(run, tensors, check_fwd_over_rev=True, check_rev_over_rev=True)


def total(run):
    return lambda *t: run(*t).sin().sum()


def every(run, count):
    return torch.func.grad(total(run), tuple(range(count)))


def rates(run, a):
    return torch.func.jvp(run, a, tuple(t.cos() for t in a))


def alone(run):
    """On one image, with weights of its own or shared ones."""
    return lambda x, *weights: run(x[None], *weights)[0]


def stacked(a):
    return tuple(torch.stack([t, t.flip(0), t + 1], dim=1) for t in a)


SHARED = (0, None, None)
TRANSFORMS = {
    "grad": lambda f, a: every(f, 3)(*a),
    "vjp": lambda f, a: (lambda out, pull: pull(out.cos()))(*torch.func.vjp(f, *a)),
    "jvp": rates,
    "jvp of x alone": lambda f, a: torch.func.jvp(lambda x: f(x, *a[1:]), a[:1], (a[0].cos(),)),
    "jvp of the bias alone": lambda f, a: torch.func.jvp(lambda b: f(*a[:2], b), a[2:], (a[2].cos(),)),
    "linearize": lambda f, a: torch.func.linearize(f, *a)[1](*(t.cos() for t in a)),
    "vmap": lambda f, a: torch.vmap(f, 1)(*stacked(a)),
    "vmap, weights shared": lambda f, a: torch.vmap(alone(f), SHARED)(*a),
    "vmap, x shared": lambda f, a: torch.vmap(f, (None, 1, 1))(a[0], *stacked(a)[1:]),
    "per-sample gradients": lambda f, a: torch.vmap(every(alone(f), 3), SHARED)(*a),
    "vmap of vmap": lambda f, a: torch.vmap(torch.vmap(alone(f), SHARED), 1)(*stacked(a)),
    "vmap of jvp": lambda f, a: torch.vmap(lambda *t: rates(f, t), 1)(*stacked(a)),
    "jvp of vmap": lambda f, a: rates(torch.vmap(f, 1), stacked(a)),
    "grad of grad": lambda f, a: torch.func.grad(
        lambda *t: sum(g.sin().sum() for g in every(f, 3)(*t)), (0, 1, 2)
    )(*a),
    "jvp of grad": lambda f, a: rates(every(f, 3), a),
    "grad of jvp": lambda f, a: torch.func.grad(lambda *t: rates(f, t)[1].sin().sum(), (0, 1, 2))(*a),
    "jvp of jvp": lambda f, a: rates(lambda *t: rates(f, t)[1], a),
    "hessian": lambda f, a: torch.func.hessian(lambda w: total(f)(a[0], w, a[2]))(a[1]),
    "hessian in reverse": lambda f, a: torch.func.jacrev(
        torch.func.jacrev(lambda w: total(f)(a[0], w, a[2]))
    )(a[1]),
    "third derivative": lambda f, a: torch.func.jvp(
        lambda w: torch.func.grad(lambda w: every(lambda x: f(x, w), 1)(a[0])[0].sin().sum())(w),
        a[1:2],
        (a[1].cos(),),
    ),
}


@each_activation
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms(transform, activation):
    mine, definition = both(activation)
    compare(transform(mine, example()), transform(definition, example()), tolerance=1e-11)


@each_activation
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "per-sample gradients", "jvp of grad"])
def test_transforms_compiled(transform, activation):
    torch._dynamo.reset()  # its limit of recompilations counts those of every test
    mine, definition = both(activation)
    run = lambda *tensors: TRANSFORMS[transform](mine, tensors)  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    compare(compiled(*example()), TRANSFORMS[transform](definition, example()), tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_activation
def test_bit_equal_with_and_without_transforms(activation, dtype):
    """The same kernels run in either case, and compiled as well."""
    torch._dynamo.reset()
    run, inputs = both(activation)[0], example(dtype=dtype)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    plain = torch.autograd.grad(total(run)(*leaves), leaves)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for mine, traced, wanted in zip(
        every(run, 3)(*inputs), torch.autograd.grad(total(compiled)(*leaves), leaves), plain, strict=True
    ):
        assert torch.equal(mine, wanted) and torch.equal(traced, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_activation
def test_storage_dtypes(activation, dtype, device):
    """A tangent and a second derivative, of tensors in storage, against float64."""
    mine, definition = both(activation)
    inputs = tuple(tensor.to(device) for tensor in example(dtype=dtype))
    wide = tuple(tensor.double() for tensor in inputs)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    for transform in (rates, double_backward):
        compare(transform(mine, inputs), transform(definition, wide), tolerance)


def double_backward(f, a):
    leaves = [tensor.clone().requires_grad_() for tensor in a]
    (dx,) = torch.autograd.grad(f(*leaves).square().mean(), leaves[0], create_graph=True)
    return torch.autograd.grad(dx.square().sum(), leaves)


@pytest.mark.parametrize("graph", [torch.no_grad, torch.enable_grad])
@each_activation
def test_dual_numbers(activation, graph):
    mine, definition = both(activation)
    inputs, tangents = example(), example(seed=1)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    with graph(), forward_ad.dual_level():
        output = tuple(forward_ad.unpack_dual(mine(*map(forward_ad.make_dual, leaves, tangents))))
    compare(output, torch.func.jvp(definition, inputs, tangents))


def test_without_a_bias_and_frozen_inputs():
    for frozen in (0, 1):
        results = []
        for run in (depthwise_conv, by_definition):
            leaves = [t.clone().requires_grad_(i != frozen) for i, t in enumerate(example(bias=False))]
            y = run(*leaves, activation="relu_squared")
            (first,) = torch.autograd.grad(y.sin().sum(), leaves[1 - frozen], create_graph=True)
            results.append((first, *torch.autograd.grad(first.sin().sum(), leaves[1 - frozen])))
        compare(*results, tolerance=1e-11)


class Convolved(torch.nn.Module):
    def forward(self, x, weight, bias):
        return depthwise_conv(depthwise_conv(x, weight, bias, "relu_squared"), weight)


def test_export_and_trace_are_saved_and_loaded():
    inputs, batch = example(dtype=torch.float32), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Convolved(), inputs, dynamic_shapes=({0: batch}, None, None))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    more = (torch.cat([inputs[0], inputs[0] + 1]), *inputs[1:])
    assert torch.equal(torch.export.load(file).module()(*more), Convolved()(*more))
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Convolved(), inputs), file)
    file.seek(0)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    compare(
        torch.autograd.grad(torch.jit.load(file)(*leaves).sum(), leaves),
        torch.autograd.grad(Convolved()(*leaves).sum(), leaves),
    )


@each_activation
def test_reference(activation):
    for dtype in (torch.float32, torch.float64):
        mine = depthwise_conv_reference(*example(dtype=dtype), activation)
        compare(mine, by_definition(*example(), activation))
    with pytest.raises(ValueError, match="a kernel of 9"):
        depthwise_conv_reference(torch.zeros(2, 3, 4, 6), torch.zeros(6, 1, 9, 9))
