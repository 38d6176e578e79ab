"""Samplers against data of which everything is known, a Gaussian for each class; guidance and noise keys."""

import pytest
import torch

from gspn_dit.diffusion import SAMPLERS, create_diffusion, default_sampler, keyed_noise, sample
from gspn_dit.diffusion.guidance import guided
from gspn_dit.diffusion.samplers import respaced, spaced_steps
from gspn_dit.models import create_model

DDPM = create_diffusion("ddpm")
FLOW = create_diffusion("flow")
MEANS = torch.tensor([-1.0, 2.0, 0.5], dtype=torch.float64)
DEVIATION = 0.4
SHAPE = (2, 8, 8)


class GaussianDenoiser:
    """The exact model of data that is N(MEANS[y], DEVIATION^2) in every pixel.

    For ddpm it also predicts the exact variance of each reverse step of `steps`, so that ancestral sampling
    is exact for any number of them.
    """

    num_classes = 2

    def __init__(self, diffusion, steps):
        self.diffusion = diffusion
        if diffusion is DDPM:
            self.places = {t: i for i, t in enumerate(spaced_steps(steps))}
            self.short = respaced(DDPM.schedule, spaced_steps(steps))

    def __call__(self, x, t, y):
        x, time = x.double(), float(t[0])
        mean = MEANS[y].view(-1, 1, 1, 1)
        if self.diffusion is FLOW:
            signal, sigma = 1 - time, time
        else:
            signal, sigma = float(DDPM.schedule.signal[int(time)]), float(DDPM.schedule.noise[int(time)])
        total = signal**2 * DEVIATION**2 + sigma**2
        noise = sigma * (x - signal * mean) / total
        if self.diffusion is FLOW:
            x0 = mean + signal * DEVIATION**2 * (x - signal * mean) / total
            return noise - x0
        return torch.cat([noise, torch.full_like(x, self.fraction(int(time), sigma**2 / total))], dim=1)

    def fraction(self, t, shrink):
        """Where the exact log-variance of the reverse step lies between its bounds, -1 and 1."""
        i = self.places.get(t)
        if not i:
            return 0.0
        s = self.short
        unknown_x0 = s.mean_x0[i] ** 2 * DEVIATION**2 * shrink
        log_exact = (s.log_variance[i].exp() + unknown_x0).log()
        return float(2 * (log_exact - s.log_variance[i]) / (s.log_betas[i] - s.log_variance[i]) - 1)


def draw(diffusion, sampler, steps, labels=(0, 1), **settings):
    y = torch.tensor(labels)
    noise = keyed_noise(0, range(len(y)), SHAPE)
    model = settings.pop("model", None) or GaussianDenoiser(diffusion, steps)
    out = sample(
        model, diffusion, y, lambda step: noise(step).double(), sampler=sampler, steps=steps, **settings
    )
    return out, noise(0).double()


def exact_flow_of_probability(diffusion, start, labels=(0, 1)):
    """Where the ODE takes each start: it keeps the place in standard deviations, the data being Gaussian."""
    mean = MEANS[torch.tensor(labels)].view(-1, 1, 1, 1)
    if diffusion is FLOW:
        return mean + DEVIATION * start
    signal, sigma = float(DDPM.schedule.signal[-1]), float(DDPM.schedule.noise[-1])
    return mean + DEVIATION * (start - signal * mean) / (signal**2 * DEVIATION**2 + sigma**2) ** 0.5


ALL = [(DDPM, name) for name in SAMPLERS["ddpm"]] + [(FLOW, name) for name in SAMPLERS["flow"]]


@pytest.mark.parametrize(("diffusion", "sampler"), ALL)
def test_every_sampler_reproduces_the_datas_mean_and_deviation(diffusion, sampler):
    labels = [0] * 64 + [1] * 64
    out, _ = draw(diffusion, sampler, 200, labels)
    for label, images in enumerate((out[:64], out[64:])):
        pixels = images.numel()
        assert float(images.mean()) == pytest.approx(
            float(MEANS[label]), abs=4 * DEVIATION / pixels**0.5 + 0.01
        )
        assert float(images.std()) == pytest.approx(DEVIATION, rel=4 / (2 * pixels) ** 0.5 + 0.02)


@pytest.mark.parametrize("steps", [2, 7, 50])
def test_ancestral_sampling_is_exact_for_any_number_of_steps(steps):
    out, _ = draw(DDPM, "ddpm", steps, [1] * 128)
    assert float(out.mean()) == pytest.approx(2.0, abs=4 * DEVIATION / out.numel() ** 0.5 + 0.005)
    # The last step adds no noise: what the posterior of x_0 would still spread is lost.
    signal, sigma = DDPM.schedule.signal[0], DDPM.schedule.noise[0]
    lost = DEVIATION**2 * sigma**2 / (signal**2 * DEVIATION**2 + sigma**2)
    expected = float((DEVIATION**2 - lost).sqrt())
    assert float(out.std()) == pytest.approx(expected, rel=4 / (2 * out.numel()) ** 0.5)


def error(diffusion, sampler, steps):
    out, start = draw(diffusion, sampler, steps)
    return float((out - exact_flow_of_probability(diffusion, start)).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_the_flow_samplers(sampler, order):
    ratio = error(FLOW, sampler, 100) / error(FLOW, sampler, 200)
    assert ratio == pytest.approx(2**order, rel=0.1)


def test_ddim_and_dpm_solver_find_the_same_solution():
    assert error(DDPM, "ddim", 1000) < 0.01
    assert error(DDPM, "dpm-solver++", 999) < 0.01
    assert error(DDPM, "dpm-solver++", 50) < 0.25 * error(DDPM, "ddim", 50)


@pytest.mark.parametrize(("diffusion", "sampler"), ALL)
def test_one_step_is_enough_to_run(diffusion, sampler):
    out, _ = draw(diffusion, sampler, 1)
    assert out.isfinite().all()


@pytest.mark.parametrize(("diffusion", "sampler"), ALL)
def test_progress_is_told_of_every_step(diffusion, sampler):
    calls = []
    draw(diffusion, sampler, 5, progress=lambda: calls.append(1))
    assert len(calls) == 5


def tiny_model(diffusion):
    torch.manual_seed(0)
    model = create_model(
        "GSPN-DiT-S/4",
        input_size=16,
        in_channels=1,
        num_classes=3,
        width=16,
        depth=1,
        learn_sigma=diffusion.learn_sigma,
    )
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(("diffusion", "sampler"), ALL)
def test_an_image_depends_on_neither_batch_nor_neighbours(diffusion, sampler, device):
    model = tiny_model(diffusion).to(device)
    labels = torch.tensor([2, 0, 1, 2, 3], device=device)

    def images(indices):
        noise = keyed_noise(7, indices, (1, 16, 16))
        return sample(model, diffusion, labels[indices], noise, sampler=sampler, steps=4, cfg_scale=2.0)

    together = images([0, 1, 2, 3, 4])
    assert together.shape == (5, 1, 16, 16) and together.dtype == torch.float32
    assert not torch.allclose(together[0], together[3])
    for picked in ([4, 2], [2], [3, 1, 0]):
        torch.testing.assert_close(images(picked), together[picked], rtol=1e-4, atol=1e-4)


def test_noise_has_keys():
    noise = keyed_noise(3, [10, 11, 12], (4, 8, 8))
    first = noise(0)
    assert first.shape == (3, 4, 8, 8) and first.dtype == torch.float32
    assert torch.equal(keyed_noise(3, [12], (4, 8, 8))(0)[0], first[2])
    draws = [first, noise(1), keyed_noise(4, [10, 11, 12], (4, 8, 8))(0)]
    flat = torch.cat([x.flatten(1) for x in draws])
    correlation = torch.corrcoef(flat) - torch.eye(9)
    assert correlation.abs().max() < 0.3
    assert float(flat.std()) == pytest.approx(1, abs=0.1)


class Recorder:
    """Predicts its label in every pixel, the variance channels as label + 10, and keeps what it was asked."""

    num_classes = 5

    def __init__(self, channels):
        self.channels, self.calls = channels, []

    def __call__(self, x, t, y):
        self.calls.append((float(t[0]), len(x)))
        maps = y.view(-1, 1, 1, 1).expand(-1, x.shape[1], *x.shape[2:]).float()
        return maps if self.channels == 1 else torch.cat([maps, maps + 10], dim=1)


def test_guidance_moves_every_latent_channel_from_null_past_the_class():
    out, start = draw(FLOW, "euler", 1, (1, 3), model=Recorder(1), cfg_scale=4.0)
    expected = 5 + 4.0 * (torch.tensor([1.0, 3.0]) - 5)  # null + scale * (class - null)
    torch.testing.assert_close(start - out, expected.double().view(2, 1, 1, 1).expand_as(start))


def test_guidance_leaves_the_variance_to_the_class():
    predict = guided(Recorder(2), torch.tensor([1]), 4.0)
    noise, fraction = predict(torch.zeros(1, 2, 4, 4), 9.0).chunk(2, dim=1)
    assert noise.unique().tolist() == [5 + 4.0 * (1 - 5)]
    assert fraction.unique().tolist() == [11]


@pytest.mark.parametrize(
    ("scale", "interval", "sizes"),
    [
        (1.0, None, [2, 2, 2, 2]),
        (1.5, None, [4, 4, 4, 4]),
        (1.5, (0.5, 0.75), [2, 4, 4, 2]),
        (1.5, (0.0, 0.3), [2, 2, 2, 4]),
        (1.0, (0.0, 1.0), [2, 2, 2, 2]),
    ],
)
def test_guidance_costs_one_call_on_a_doubled_batch_inside_its_interval(scale, interval, sizes):
    model = Recorder(1)
    draw(FLOW, "euler", 4, (1, 3), model=model, cfg_scale=scale, cfg_interval=interval)
    assert model.calls == list(zip([1.0, 0.75, 0.5, 0.25], sizes, strict=True))


def test_interval_counts_in_training_steps_for_ddpm():
    model = Recorder(2)
    draw(DDPM, "ddim", 4, (1, 3), model=model, cfg_scale=2.0, cfg_interval=(300, 700))
    assert model.calls == [(999.0, 2), (666.0, 4), (333.0, 4), (0.0, 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sampler": "euler"},
            "sampler is 'euler'; expected one of dpm-solver\\+\\+, ddim, ddpm for a ddpm model",
        ),
        ({"steps": 0}, "steps is 0; expected an integer from 1 to 1000 for ddim"),
        ({"steps": 1001}, "steps is 1001; expected an integer from 1 to 1000 for ddim"),
        ({"steps": 2.5}, "steps is 2.5; expected an integer"),
        ({"sampler": "dpm-solver++", "steps": 1000}, "steps is 1000; expected an integer from 1 to 999"),
        ({"cfg_scale": 0.0}, "cfg_scale is 0.0; expected 1 \\(no guidance\\) or more"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan; expected 1"),
        ({"cfg_scale": 1e300}, r"cfg_scale is 1e\+300; expected 1"),
        ({"cfg_interval": (700, 300)}, "cfg_interval is \\(700, 300\\); expected \\(t_low, t_high\\)"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(DDPM, **{"sampler": "ddim", "steps": 4, **settings}, model=Recorder(2))


@pytest.mark.parametrize(
    ("labels", "noise", "message"),
    [
        ([0, 3], None, "y holds 3; expected 0 to 1, or 2 for no class"),
        ([0.0, 1.0], None, "y is torch.float32"),
        ([[0, 1]], None, r"y has shape \(1, 2\)"),
        (
            [0, 1],
            lambda step: torch.zeros(1, *SHAPE),
            r"noise\(0\) has shape \(1, 2, 8, 8\); expected \(2, 2, 8, 8\)",
        ),
        ([0, 1], lambda step: torch.zeros(*SHAPE), r"noise\(0\) has shape \(2, 8, 8\)"),
        ([0, 1], lambda step: torch.zeros(2 - (step == 3), *SHAPE), r"noise\(3\) has shape \(1, 2, 8, 8\)"),
    ],
)
def test_labels_and_noise_that_do_not_belong_together_are_named(labels, noise, message):
    with pytest.raises(ValueError, match=message):
        sample(
            GaussianDenoiser(DDPM, 5),
            DDPM,
            torch.tensor(labels),
            noise or keyed_noise(0, range(2), SHAPE),
            sampler="ddpm",
            steps=5,
        )


@pytest.mark.parametrize("wrong", [(torch.tensor([5]), 2.0, None), (torch.tensor([0]), 0.5, None)])
def test_guidance_checks_too(wrong):
    with pytest.raises(ValueError, match=r"y holds 5|cfg_scale is 0.5"):
        guided(GaussianDenoiser(FLOW, 1), *wrong)


def test_defaults_are_samplers_of_their_objective():
    assert {objective: default_sampler(objective) for objective in SAMPLERS} == {
        "ddpm": "dpm-solver++",
        "flow": "heun",
    }
