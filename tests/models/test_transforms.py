"""Whole models under torch's transforms: forward mode, per-sample gradients, export and trace."""

import io

import pytest
import torch
from torch.autograd import forward_ad

from tests.models.test_adapters import batch, small_model

MODELS = {
    "GSPN-DiT": ("GSPN-DiT-S/4", {}),
    "GSPN": ("GSPN-S/4", {"segment": 2}),
    "DiT": ("DiT-S/4", {}),
    "forget gates": ("GSPN-DiT-S/4", {"forget": "learned", "scan_order": "sequential"}),
    "sigmoid weights": ("GSPN-DiT-S/4", {"normalization": "sigmoid", "direction_skip": True}),
}
each_model = pytest.mark.parametrize("name, overrides", MODELS.values(), ids=MODELS.keys())
TWO = ("GSPN-DiT", "DiT")
two_models_or_each = pytest.mark.parametrize(
    "name, overrides",
    [
        pytest.param(*model, id=key, marks=() if key in TWO else pytest.mark.slow)
        for key, model in MODELS.items()
    ],
)
"""For what takes long."""


def directions():
    """Of x and of t, as a flow's path has them."""
    x, t, _ = batch()
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype), torch.ones_like(t)


@each_model
@pytest.mark.parametrize("trained", [True, False])
def test_forward_mode_is_the_slope_along_the_path(name, overrides, trained):
    model = small_model(name, **overrides).requires_grad_(trained)
    (x, t, y), (dx, dt) = batch(), directions()
    value, rate = torch.func.jvp(lambda x, t: model(x, t, y), (x, t), (dx, dt))
    with torch.no_grad():
        torch.testing.assert_close(value, model(x, t, y))
        step = 1e-5  # t is embedded in float32, which a difference in t would see
        slope = (model(x + step * dx, t, y) - model(x - step * dx, t, y)) / (2 * step)
        with forward_ad.dual_level():
            along_x = forward_ad.unpack_dual(model(forward_ad.make_dual(x, dx), t, y)).tangent
            along_t = forward_ad.unpack_dual(model(x, forward_ad.make_dual(t, dt), y)).tangent
    torch.testing.assert_close(along_x, slope, rtol=1e-6, atol=1e-6 * float(slope.abs().max()))
    torch.testing.assert_close(along_x + along_t, rate)


@each_model
def test_a_loss_of_the_tangent_trains_every_weight(name, overrides):
    """The gradient, by backward and by torch.func alike, is that of a loss with the tangent as a constant."""
    model = small_model(name, **overrides)
    (x, t, y), (dx, dt) = batch(), directions()
    value, rate = torch.func.jvp(lambda x, t: model(x, t, y), (x, t), (dx, dt))
    (value - rate.detach()).square().mean().backward()
    constant, weights = rate.detach(), dict(model.named_parameters())

    def loss(weights):
        return (torch.func.functional_call(model, weights, (x, t, y)) - constant).square().mean()

    gradients = torch.func.grad(loss)({key: weight.detach() for key, weight in weights.items()})
    for key, weight in weights.items():
        assert weight.grad.any(), key
        torch.testing.assert_close(gradients[key], weight.grad, msg=lambda text, key=key: f"{key}: {text}")


@two_models_or_each
def test_linearized_it_has_the_same_tangent(name, overrides):
    """linearize folds what is constant: nothing that the model computes may be written in place."""
    model = small_model(name, **overrides).requires_grad_(False)
    (x, t, y), (dx, dt) = batch(), directions()
    run = lambda x, t: model(x, t, y)  # noqa: E731
    _, linear = torch.func.linearize(run, x, t)
    torch.testing.assert_close(linear(dx, dt), torch.func.jvp(run, (x, t), (dx, dt))[1])


def test_gradients_per_sample():
    model = small_model("GSPN-DiT-S/4")
    x, t, y = batch()
    weights = {key: weight.detach() for key, weight in model.named_parameters()}

    def loss(weights, *sample):
        return torch.func.functional_call(model, weights, tuple(v[None] for v in sample)).square().sum()

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(weights, x, t, y)
    for i in range(2):
        model.zero_grad()
        model(x[i : i + 1], t[i : i + 1], y[i : i + 1]).square().sum().backward()
        for key, weight in model.named_parameters():
            torch.testing.assert_close(gradients[key][i], weight.grad)


@two_models_or_each
def test_export_and_trace_are_saved_and_loaded(name, overrides):
    model, inputs = small_model(name, **overrides).float(), tuple(v.float() for v in batch()[:2])
    inputs = (*inputs, batch()[2])
    expected = model(*inputs)
    free = torch.export.Dim("batch", min=1, max=64)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=({0: free},) * 3), file)
    file.seek(0)
    more = tuple(torch.cat([v, v.flip(0), v]) for v in inputs)
    torch.testing.assert_close(torch.export.load(file).module()(*more), model(*more), rtol=1e-4, atol=1e-4)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, inputs), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(*inputs), expected, rtol=1e-4, atol=1e-4)
