"""Internal guidance and autoguidance against their formulas; published intervals in the units of t."""

import math

import pytest
import torch

from gspn_dit.diffusion import create_diffusion, keyed_noise, sample
from gspn_dit.diffusion.guidance import check_guidance, guided
from gspn_dit.errors import UserError
from gspn_dit.sampling.intervals import INTERVALS, parse_interval

NULL = 5


class Levels:
    """Predicts label + t + `shift` in every latent pixel, and by its auxiliary head the tenth of that."""

    num_classes = NULL
    auxiliary = "a head"

    def __init__(self, shift=0.0, variance=False):
        self.shift, self.variance, self.calls = shift, variance, []

    def __call__(self, x, t, y, auxiliary=False):
        self.calls.append((len(x), auxiliary))
        maps = (y + t + self.shift).view(-1, 1, 1, 1) * torch.ones_like(x)
        maps = torch.cat([maps, maps + 100], dim=1) if self.variance else maps
        return (maps, maps / 10) if auxiliary else maps


def values(prediction):
    return [image.unique().tolist() for image in prediction]


def test_internal_guidance_moves_from_the_early_prediction_past_the_last():
    model = Levels()
    predict = guided(model, torch.tensor([1, 3]), 1.0, internal=2.0)
    last = [1.5, 3.5]
    expected = [0.1 * d + 2.0 * (d - 0.1 * d) for d in last]
    assert values(predict(torch.zeros(2, 2, 4, 4), 0.5)) == [[pytest.approx(d)] for d in expected]
    assert model.calls == [(2, True)]  # one pass, of the batch as it is


def test_internal_guidance_comes_before_classifier_free_guidance_in_the_same_call():
    model = Levels()
    predict = guided(model, torch.tensor([1]), 3.0, (0.2, 0.8), internal=2.0)
    label, null = (0.1 * d + 2.0 * (d - 0.1 * d) for d in (1.5, NULL + 0.5))
    assert values(predict(torch.zeros(1, 2, 4, 4), 0.5)) == [[pytest.approx(null + 3.0 * (label - null))]]
    outside = 1.9 * 1.0  # t = 0: the interval is of classifier-free guidance alone
    assert values(predict(torch.zeros(1, 2, 4, 4), 0.0)) == [[pytest.approx(outside)]]
    assert model.calls == [(2, True), (1, True)]


def test_a_scale_of_one_asks_nothing_of_the_head():
    model = Levels()
    guided(model, torch.tensor([1]), 1.0, internal=1.0)(torch.zeros(1, 2, 4, 4), 0.5)
    assert model.calls == [(1, False)]


def test_autoguidance_moves_from_the_guide_past_the_model():
    model, guide = Levels(), Levels(shift=-4.0)
    predict = guided(model, torch.tensor([1, 3]), 1.0, guide=guide, guide_scale=2.5)
    expected = [d - 4 + 2.5 * (d - (d - 4)) for d in (1.5, 3.5)]
    assert values(predict(torch.zeros(2, 2, 4, 4), 0.5)) == [[pytest.approx(d)] for d in expected]
    assert model.calls == guide.calls == [(2, False)]


def test_a_guide_of_scale_one_leaves_the_model():
    predict = guided(Levels(), torch.tensor([1]), 1.0, guide=Levels(shift=9.0), guide_scale=1.0)
    assert values(predict(torch.zeros(1, 2, 4, 4), 0.5)) == [[1.5]]


@pytest.mark.parametrize("settings", [{"internal": 2.0}, {"guide": Levels(7.0, True), "guide_scale": 2.0}])
def test_the_variance_is_the_last_layer_s(settings):
    predict = guided(Levels(variance=True), torch.tensor([1]), 1.0, **settings)
    mean, variance = predict(torch.zeros(1, 2, 4, 4), 0.5).chunk(2, dim=1)
    assert variance.unique().tolist() == [101.5] and mean.unique().tolist() != [1.5]


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_samples_are_guided(objective):
    """One step takes the guided prediction; the sampler sees nothing else."""
    diffusion, noise = create_diffusion(objective), keyed_noise(0, [0, 1], (2, 4, 4))
    settings = {"sampler": {"flow": "euler", "ddpm": "ddim"}[objective], "steps": 1}
    learned, y = objective == "ddpm", torch.tensor([1, 3])
    plain, internal, auto = (
        sample(Levels(variance=learned), diffusion, y, noise, **settings, **more)
        for more in (
            {},
            {"internal_guidance": 2.0},
            {"guide": Levels(-4.0, learned), "guide_scale": 2.0},
        )
    )
    if objective == "flow":
        torch.testing.assert_close(internal, noise(0) - 1.9 * (noise(0) - plain))
        torch.testing.assert_close(auto, plain - 4.0)
    assert not torch.allclose(internal, plain) and not torch.allclose(auto, plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"internal": 0.5}, "internal_guidance is 0.5; expected 1"),
        ({"internal": math.nan}, "internal_guidance is nan; expected 1"),
        ({"guide_scale": 0.0}, "guide_scale is 0.0; expected 1"),
        ({"guide_scale": 2.0, "internal": 1.5}, r"internal_guidance is 1.5; expected 1 with a guide"),
        ({"guide_scale": 2.0, "scale": 1.5}, r"cfg_scale is 1.5; expected 1 with a guide"),
        ({"guide_scale": 2.0, "interval": (0.1, 0.5)}, r"cfg_interval is \(0.1, 0.5\); expected None with a"),
    ],
)
def test_guidance_that_cannot_be_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        check_guidance(**{"scale": 1.0, "interval": None, **settings})


@pytest.mark.parametrize("given", [{"guide": Levels()}, {"guide_scale": 2.0}])
def test_a_guide_and_its_scale_belong_together(given):
    with pytest.raises(ValueError, match=r"^guide(_scale)? is None; expected one with guide"):
        guided(Levels(), torch.tensor([1]), 1.0, **given)


def test_internal_guidance_takes_a_head():
    class Headless(Levels):
        auxiliary = None

    with pytest.raises(
        ValueError, match=r"internal_guidance is 2.0; expected 1 .*the model has no auxiliary head"
    ):
        guided(Headless(), torch.tensor([1]), 1.0, internal=2.0)


@pytest.mark.parametrize("name", INTERVALS)
def test_published_intervals_are_of_noise_over_signal(name):
    low, high = INTERVALS[name].low, INTERVALS[name].high
    t_low, t_high = create_diffusion("flow").interval(low, high)
    assert t_low / (1 - t_low) == pytest.approx(low, abs=1e-4)
    assert t_high / (1 - t_high) == pytest.approx(high, rel=1e-4)
    schedule = create_diffusion("ddpm").schedule
    first, last = map(int, create_diffusion("ddpm").interval(low, high))
    ratio = [float(schedule.noise[t] / schedule.signal[t]) for t in range(1000)]
    assert ratio[first] > low and ratio[last] <= high < ratio[last + 1]
    assert first == 0 or ratio[first - 1] <= low


def test_the_interval_of_repa_is_seven_tenths_of_the_path():
    repa = INTERVALS["repa"]
    assert create_diffusion("flow").interval(repa.low, repa.high) == (0.0, 0.7)


def test_the_interval_of_dit_has_the_steps_that_were_published():
    """75 of 250 steps of iDDPM's schedule as EDM writes it (arXiv 2206.00364, table 1): noise / signal by a cosine."""
    dit = INTERVALS["dit-xl2"]
    angles = [math.pi / 2 * ((i + 0.5) / 250 + 0.008) / 1.008 for i in range(249)]
    assert abs(sum(dit.low < math.tan(angle) <= dit.high for angle in angles) - 75) <= 1


def test_an_interval_is_two_numbers_or_a_name():
    assert parse_interval(None) is None
    assert parse_interval("0.2,0.8") == (0.2, 0.8)
    assert parse_interval("edm2-s") == "edm2-s"
    for text, told in (
        ("edm2s", "did you mean 'edm2-s'"),
        ("1", "valid here: dit-xl2"),
        ("1,2,3", "LOW,HIGH"),
    ):
        with pytest.raises(UserError, match=rf"^--cfg-interval {text}: expected two numbers.*{told}"):
            parse_interval(text)
