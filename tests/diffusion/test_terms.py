"""Terms that weights add to the losses: each against its formula, written out for one place and one image."""

import math

import pytest
import torch
from torch import nn

from gspn_dit.diffusion import create_diffusion
from gspn_dit.evaluation.validation import Validator


def draw(batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise, guess, early, contrast = (torch.randn(batch, 2, 4, 4, generator=generator) for _ in range(5))
    return x0, noise, guess, early, contrast


class Two:
    """A model that predicts the given maps, and others by its auxiliary head."""

    def __init__(self, last, early=None):
        self.last, self.early, self.asked = last, early, []

    def __call__(self, x, t, y, **options):
        self.asked.append(options)
        return (self.last, self.early) if options.get("auxiliary") else self.last


def losses(diffusion, model, x0, noise, **more):
    t = torch.tensor([0.0, 300.0, 999.0]) if diffusion.objective == "ddpm" else torch.tensor([0.1, 0.5, 1.0])
    return diffusion.losses(model, x0, t, torch.zeros(3).long(), noise, **more)


def cosine_error(u, v):
    """Of one image (C, H, W): 1 - cos over the channels of each place, and the mean over places."""
    places = []
    for row in range(u.shape[1]):
        for column in range(u.shape[2]):
            a, b = u[:, row, column].tolist(), v[:, row, column].tolist()
            product = sum(p * q for p, q in zip(a, b, strict=True))
            places.append(1 - product / math.hypot(*a) / math.hypot(*b))
    return sum(places) / len(places)


def test_the_cosine_is_over_the_channels_of_each_place():
    x0, noise, guess, _, _ = draw()
    found = losses(create_diffusion("flow", cosine_weight=0.7), Two(guess), x0, noise)
    plain = losses(create_diffusion("flow"), Two(guess), x0, noise)
    expected = torch.tensor([cosine_error(u, v) for u, v in zip(guess, noise - x0, strict=True)])
    assert list(found) == ["loss", "mse", "cosine"]
    torch.testing.assert_close(found["cosine"], expected)
    torch.testing.assert_close(found["loss"], plain["loss"] + 0.7 * expected)
    assert torch.equal(found["mse"], plain["mse"])


def test_the_cosine_sees_no_length():
    x0, noise, _, _, _ = draw()
    diffusion = create_diffusion("flow", cosine_weight=1.0)
    for factor, expected in ((3.0, 0.0), (-0.5, 2.0)):
        found = losses(diffusion, Two(factor * (noise - x0)), x0, noise)
        torch.testing.assert_close(found["cosine"], torch.full((3,), expected), rtol=0, atol=1e-5)


def test_a_fresh_network_has_a_bounded_gradient_of_the_cosine():
    """A prediction of zero has no direction: without a bound the gradient is 1e8 there."""
    x0, noise, _, _, _ = draw()
    zero = torch.zeros_like(x0, requires_grad=True)
    found = losses(create_diffusion("flow", cosine_weight=1.0), Two(zero), x0, noise)
    torch.testing.assert_close(found["cosine"], torch.ones(3))
    found["cosine"].sum().backward()
    length = zero.grad.norm(dim=1) * 16  # of each place, whose share of the mean is 1 / 16
    torch.testing.assert_close(length, torch.full((3, 4, 4), 100.0))


def test_the_contrast_is_subtracted():
    x0, noise, guess, _, contrast = draw()
    found = losses(
        create_diffusion("flow", contrastive_weight=0.05), Two(guess), x0, noise, contrast=contrast
    )
    for i in range(3):
        near = sum(float(d) ** 2 for d in (guess[i] - (noise[i] - x0[i])).flatten()) / 32
        far = sum(float(d) ** 2 for d in (guess[i] - contrast[i]).flatten()) / 32
        assert float(found["mse"][i]) == pytest.approx(near, rel=1e-5)
        assert float(found["contrastive"][i]) == pytest.approx(far, rel=1e-5)
        assert float(found["loss"][i]) == pytest.approx(near - 0.05 * far, rel=1e-5)
    assert list(found) == ["loss", "mse", "contrastive"]


def test_the_best_prediction_under_contrast_is_the_one_documented():
    x0, noise, _, _, contrast = draw()
    best = (((noise - x0) - 0.05 * contrast) / 0.95).requires_grad_()
    found = losses(create_diffusion("flow", contrastive_weight=0.05), Two(best), x0, noise, contrast=contrast)
    found["loss"].sum().backward()
    assert best.grad.abs().max() < 1e-6


def test_what_is_contrasted_is_the_velocity_and_asked_for_by_the_weight():
    x0, noise, _, _, _ = draw()
    assert torch.equal(create_diffusion("flow", contrastive_weight=0.05).contrast(x0, noise), noise - x0)
    assert create_diffusion("flow").contrast is None and create_diffusion("ddpm").contrast is None


@pytest.mark.parametrize("contrast", [None, torch.zeros(1, 2, 4, 4)])
def test_a_contrast_that_is_missing_or_would_be_broadcast_is_refused(contrast):
    x0, noise, guess, _, _ = draw()
    with pytest.raises(ValueError, match="contrast"):
        losses(create_diffusion("flow", contrastive_weight=0.05), Two(guess), x0, noise, contrast=contrast)


TERMS = {"cosine_weight": 0.5, "contrastive_weight": 0.1}


@pytest.mark.parametrize(("objective", "terms"), [("flow", {}), ("flow", TERMS), ("ddpm", {})])
def test_the_auxiliary_head_has_the_same_loss_times_its_weight(objective, terms):
    x0, noise, last, early, contrast = draw()
    if objective == "ddpm":
        last, early = torch.cat([last, last / 3], dim=1), torch.cat([early, early / 3], dim=1)
    more = {"contrast": contrast} if terms else {}
    both = Two(last, early)
    found = losses(create_diffusion(objective, auxiliary_weight=0.25, **terms), both, x0, noise, **more)
    alone = [
        losses(create_diffusion(objective, **terms), Two(maps), x0, noise, **more) for maps in (last, early)
    ]
    assert both.asked == [{"auxiliary": True}]
    torch.testing.assert_close(found["auxiliary"], alone[1]["loss"])
    torch.testing.assert_close(found["loss"], alone[0]["loss"] + 0.25 * alone[1]["loss"])
    assert all(torch.equal(found[name], alone[0][name]) for name in alone[0] if name != "loss")


@pytest.mark.parametrize(("objective", "names"), [("flow", ["loss", "mse"]), ("ddpm", ["loss", "mse", "vb"])])
def test_without_weights_the_model_is_called_and_the_loss_made_as_ever(objective, names):
    x0, noise, guess, _, _ = draw()
    model = Two(torch.cat([guess, guess], dim=1) if objective == "ddpm" else guess)
    found = losses(create_diffusion(objective), model, x0, noise)
    assert list(found) == names and model.asked == [{}]
    if objective == "flow":
        assert found["loss"] is found["mse"]
        assert torch.equal(found["mse"], (guess - (noise - x0)).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("flow", {"cosine_weight": -0.1}, "cosine_weight is -0.1; expected a finite number, at least 0"),
        ("flow", {"cosine_weight": math.inf}, "cosine_weight is inf; expected a finite number"),
        ("flow", {"cosine_weight": math.nan}, "cosine_weight is nan"),
        (
            "flow",
            {"contrastive_weight": 1.0},
            "contrastive_weight is 1.0; expected a number below 1, at least 0",
        ),
        ("flow", {"auxiliary_weight": True}, "auxiliary_weight is True"),
        ("ddpm", {"auxiliary_weight": -1}, "auxiliary_weight is -1"),
        ("ddpm", {"cosine_weight": 1.0}, "'cosine_weight' is unknown to ddpm"),
        ("ddpm", {"contrastive_weight": 0.05}, "'contrastive_weight' is unknown to ddpm"),
    ],
)
def test_bad_weights_are_named(objective, settings, message):
    with pytest.raises(ValueError, match=message):
        create_diffusion(objective, **settings)


def test_validation_knows_none_of_the_terms():
    """Its objective is made without settings, and it calls the network as ever."""

    class Pictures:
        def __len__(self):
            return 6

        def draw(self, indices, numbers, seed):
            generator = torch.Generator().manual_seed(1)
            return torch.randn(len(indices), 2, 4, 4, generator=generator), torch.zeros(len(indices)).long()

    class Zero(nn.Module):
        def forward(self, x, t, y):
            return torch.zeros_like(x)

    class Alone:
        device, gather = torch.device("cpu"), staticmethod(lambda values: values)

    validator = Validator(Pictures(), "flow")
    (batch,) = validator.batches
    assert batch.contrast is None
    expected = (batch.noise - batch.x).square().mean(dim=(1, 2, 3)).double().numpy()
    assert validator(Zero(), Alone()).values == pytest.approx(expected, rel=1e-6)
