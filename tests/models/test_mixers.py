"""The mixers: the line scan against its formula, and what each lets a token see."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ops.library
from gspn_dit.models import mixers
from gspn_dit.models.basics import relu_squared
from gspn_dit.models.line_scan import DIRECTIONS, LineScan
from gspn_dit.models.mixers import DepthwiseConv, SelfAttention, TokenConv, create_mixer
from gspn_dit.models.settings import resolve_settings
from ops import gspn_scan_reference
from tests.utils import assert_near


def settings_of(name="GSPN-DiT-S/4", **overrides):
    return resolve_settings(name, width=16, depth=2, input_size=32, **overrides)


def line_scan(segment=0, **overrides):
    torch.manual_seed(0)
    scan = LineScan(settings_of(bottleneck=4, **overrides), segment)
    for parameter in scan.parameters():
        parameter.data = torch.randn_like(parameter)
    return scan.double()


def tokens(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("merge", ["scalar", "channel", "linear"])
def test_line_scan_follows_its_formula(merge, groups, skip):
    scan = line_scan(merge=merge, groups=groups, direction_skip=skip)
    x = tokens(2, 5, 6, 16)
    z = x @ scan.bottleneck.weight.T
    lam, u = ((z @ p.weight.T).reshape(2, 5, 6, 4, 16) for p in (scan.to_lam, scan.to_u))
    logits = (z @ scan.to_logits.weight.T).reshape(2, 5, 6, 4, 3, groups)
    maps = u * gspn_scan_reference(x, lam, logits)
    if skip:
        maps = maps + (z @ scan.to_skip.weight.T).reshape(2, 5, 6, 4, 16) * x[:, :, :, None]
    if merge == "linear":
        expected = maps.reshape(2, 5, 6, 64) @ scan.merge_linear.weight.T
    else:
        expected = sum(scan.merge_weight[k] * maps[:, :, :, k] for k in range(4))
    torch.testing.assert_close(scan(x), expected)


@pytest.mark.parametrize("normalization", ["row_stochastic", "sigmoid", "none"])
def test_line_scan_normalizes_as_it_is_told(normalization):
    scan = line_scan(normalization=normalization)
    x = tokens(2, 5, 6, 16)
    z = x @ scan.bottleneck.weight.T
    lam, u = ((z @ p.weight.T).reshape(2, 5, 6, 4, 16) for p in (scan.to_lam, scan.to_u))
    logits = (z @ scan.to_logits.weight.T).reshape(2, 5, 6, 4, 3, 1)
    maps = u * gspn_scan_reference(x, lam, logits, normalization=normalization)
    torch.testing.assert_close(scan(x), sum(scan.merge_weight[k] * maps[:, :, :, k] for k in range(4)))


@pytest.mark.parametrize("merge", ["scalar", "channel"])
def test_the_module_is_the_same_on_each_device(merge, device):
    """Output and every gradient of the mixer with its compiled operators, against float64 on the CPU."""
    mixer = fresh_mixer(merge=merge, direction_skip=True)
    wide = copy.deepcopy(mixer).double()
    mixer = mixer.to(device)
    x = tokens(2, 8, 6, 64)
    with torch.backends.cudnn.flags(allow_tf32=False):
        y, expected = mixer(x.to(device, torch.float32)), wide(x)
        gradients = torch.autograd.grad(y.square().sum(), mixer.parameters())
    assert_near(y, expected, tolerance=1e-5)
    wanted = torch.autograd.grad(expected.square().sum(), wide.parameters())
    for (name, _), actual, gradient in zip(mixer.named_parameters(), gradients, wanted, strict=True):
        assert_near(actual, gradient, name, tolerance=1e-4)


def influence(mixer, size=8):
    """Which tokens (H, W) of the output move when the token at (0, 0) of the input does."""
    x = tokens(1, size, size, 16).requires_grad_()
    moved = x.detach().clone()
    moved[0, 0, 0] += 1
    return (mixer(moved) - mixer(x)).abs().sum(-1)[0] > 0


def test_a_global_scan_reaches_every_token_and_a_local_one_its_segment():
    assert influence(line_scan(segment=0)).all()
    near = torch.zeros(8, 8, dtype=torch.bool)
    near[:2, 0] = near[0, :2] = near[1, 1] = True
    assert torch.equal(influence(line_scan(segment=2)), near)


def test_identity_scan_moves_nothing_between_tokens():
    alone = torch.zeros(8, 8, dtype=torch.bool)
    alone[0, 0] = True
    assert torch.equal(influence(line_scan(scan="identity")), alone)


def test_directions_meet_in_image_coordinates():
    """A mirrored image through a scan with right and left exchanged is the mirrored result."""
    scan, mirrored = line_scan(), line_scan()
    exchange = [DIRECTIONS.index(name) for name in ("left", "right", "down", "up")]
    for projection, parts in ((mirrored.to_lam, 1), (mirrored.to_u, 1), (mirrored.to_logits, 3)):
        rows = projection.weight.data.unflatten(0, (4, parts, -1))[exchange]
        if parts == 3:  # rows run across the mirror: their neighbours -1 and +1 change places
            rows[2:] = rows[2:].flip(1)
        projection.weight.data = rows.flatten(0, 2)
    mirrored.merge_weight.data = mirrored.merge_weight.data[exchange]
    x = tokens(2, 5, 6, 16)
    torch.testing.assert_close(mirrored(x.flip(2)), scan(x).flip(2))
    assert not torch.allclose(scan(x.flip(2)), scan(x).flip(2))


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    attention = SelfAttention(16, heads=2).double()
    x = tokens(2, 3, 4, 16)
    q, k, v = attention.to_qkv(x).reshape(2, 12, 3, 2, 8).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / 8**0.5).softmax(-1)
    expected = (weights @ v).transpose(1, 2).reshape(2, 3, 4, 16)
    torch.testing.assert_close(attention(x), expected)


def fresh_mixer(**overrides):
    torch.manual_seed(0)
    settings = resolve_settings("GSPN-DiT-S/4", width=64, depth=2, **overrides)
    mixer = create_mixer(settings, settings.segment_of(0))
    for module in mixer.modules():
        if hasattr(module, "initialize_weights"):
            module.initialize_weights()
    return mixer


@pytest.mark.parametrize("mixer", ["gspn", "attention", "conv_attention"])
def test_every_mixer_keeps_shape_and_layout(mixer):
    out = fresh_mixer(mixer=mixer)(torch.randn(2, 8, 6, 64))
    assert out.shape == (2, 8, 6, 64)
    assert out.is_contiguous()


@pytest.mark.parametrize("merge", ["scalar", "channel", "linear"])
def test_a_fresh_gspn_module_neither_shrinks_nor_blows_up_its_input(merge):
    out = fresh_mixer(merge=merge, direction_skip=True)(torch.randn(4, 16, 16, 64))
    assert 0.2 < out.std() < 20


def test_the_gate_sees_normalised_maps():
    mixer, x = fresh_mixer(), torch.randn(2, 8, 8, 64)
    out = mixer(x)
    mixer.core.to_u.weight.data *= 100
    torch.testing.assert_close(mixer(x), out, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("merge", ["scalar", "channel", "linear"])
def test_a_fresh_line_scan_keeps_the_scale_and_spreads_evenly(merge):
    scan = fresh_mixer(merge=merge).core
    x = torch.randn(4, 16, 16, 64)
    logits = scan.to_logits(scan.bottleneck(x))
    assert 0.3 < scan(x).std() < 3
    assert 0.01 < logits.std() < 0.3


def test_relu_squared_is_x_times_relu_of_x_with_its_gradient():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    y = relu_squared(x)
    assert torch.equal(y, x * x.relu())
    assert torch.autograd.gradcheck(relu_squared, torch.randn(4, 5, dtype=torch.float64, requires_grad=True))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, 2 * x.relu())
    assert torch.equal(torch.compile(relu_squared, fullgraph=True, backend="aot_eager")(x), y)


def test_relu_squared_has_every_derivative_of_its_formula():
    x, tangent = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(relu_squared, x, check_forward_ad=True, check_batched_grad=True)
    twice = lambda x: relu_squared(relu_squared(x) - 0.3)  # noqa: E731
    assert torch.autograd.gradgradcheck(twice, x)
    rate = lambda f: lambda x: torch.func.jvp(f, (x,), (tangent,))[1]  # noqa: E731
    formula = lambda x: x.relu() ** 2  # noqa: E731
    for transform in (
        rate,
        lambda f: rate(rate(f)),
        torch.vmap,
        lambda f: torch.func.hessian(lambda x: f(x).sum()),
    ):
        torch.testing.assert_close(transform(relu_squared)(x), transform(formula)(x))


def test_large_depthwise_convolutions_are_the_operator_where_it_has_kernels(monkeypatch):
    taken = []
    monkeypatch.setattr(mixers, "convolve", lambda x, *_: taken.append("operator"))
    monkeypatch.setattr(mixers.TokenConv, "forward", lambda self, x: taken.append("torch"))
    for backends, device, dtype, kernel_size, expected in (
        (("cpu", "cuda"), "cpu", torch.float64, 7, "operator"),
        (("cpu", "cuda"), "cuda", torch.float32, 7, "operator"),
        (("cpu", "cuda"), "cuda", torch.bfloat16, 5, "operator"),
        (("cpu", "cuda"), "cuda", torch.float64, 7, "torch"),  # float64 is for the CPU alone
        (("cpu", "cuda"), "cuda", torch.bfloat16, 3, "operator"),
        (("cpu", "cuda"), "cuda", torch.float32, 3, "torch"),
        (("cpu", "cuda"), "cpu", torch.float32, 3, "torch"),
        (("cpu",), "cuda", torch.float32, 7, "torch"),
    ):
        monkeypatch.setattr(ops.library, "BACKENDS", backends)
        with FakeTensorMode():
            x = torch.empty(2, 5, 6, 16, device=device, dtype=dtype)
        DepthwiseConv(16, kernel_size, bias=True)(x)
        assert taken.pop() == expected, (backends, device, dtype, kernel_size)


def test_depthwise_convolution_sees_each_channel_alone_and_copies_nothing():
    conv = DepthwiseConv(16, kernel_size=3, bias=True)
    x = torch.randn(2, 5, 6, 16)
    moved = x.clone()
    moved[..., 3] += 1
    changed = (conv(moved) - conv(x)).abs().amax((0, 1, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [3]
    assert conv(x).is_contiguous()


@pytest.mark.parametrize(
    "kernel_size, dtype, own",
    [(7, torch.float32, True), (3, torch.float32, False), (3, torch.bfloat16, True)],
)
def test_depthwise_convolution_takes_the_kernels_where_they_are_faster(monkeypatch, kernel_size, dtype, own):
    taken = []
    convolve = mixers.convolve
    monkeypatch.setattr(mixers, "convolve", lambda *a: taken.append(a) or convolve(*a))
    conv = DepthwiseConv(16, kernel_size, bias=True).to(dtype)
    x = torch.randn(2, 5, 6, 16, dtype=dtype)
    assert_near(conv(x), TokenConv.forward(conv, x), tolerance=1e-5 if dtype == torch.float32 else 0.02)
    assert len(taken) == own
