"""The objectives: schedules against Bayes' rule, losses against closed forms, the mapping of times."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from gspn_dit.diffusion import create_diffusion
from gspn_dit.diffusion.ddpm import STEPS, Schedule
from gspn_dit.diffusion.samplers import respaced, spaced_steps

DDPM = create_diffusion("ddpm")
FLOW = create_diffusion("flow")


def data(batch=6):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, 2, 4, 4, generator=generator) for _ in range(2))


def returning(*channels):
    """A model that predicts the given maps whatever it sees."""
    return lambda x, t, y: torch.cat([channel.expand_as(x) for channel in channels], dim=1)


def test_linear_schedule():
    betas = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(STEPS)]
    for t in (0, 1, 500, 999):
        alpha_bar = math.prod(1 - beta for beta in betas[: t + 1])
        assert float(DDPM.schedule.betas[t]) == pytest.approx(betas[t], rel=1e-12)
        assert float(DDPM.schedule.signal[t]) == pytest.approx(math.sqrt(alpha_bar), rel=1e-10)
        assert float(DDPM.schedule.noise[t]) == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-10)
    assert DDPM.schedule.signal.dtype == torch.float64


@pytest.mark.parametrize("t", [1, 2, 100, 999])
def test_posterior_is_bayes_rule(t):
    """q(x_{t-1} | x_t, x_0) is the product of two Gaussians in x_{t-1}: precisions add."""
    s = DDPM.schedule
    x0, x_t = 0.7, -1.3
    alpha = 1 - float(s.betas[t])
    prior_variance, prior_mean = float(s.noise[t - 1]) ** 2, float(s.signal[t - 1]) * x0
    precision = 1 / prior_variance + alpha / (1 - alpha)
    mean = (prior_mean / prior_variance + math.sqrt(alpha) * x_t / (1 - alpha)) / precision
    assert float(s.mean_x0[t]) * x0 + float(s.mean_xt[t]) * x_t == pytest.approx(mean, rel=1e-9)
    assert float(s.log_variance[t]) == pytest.approx(-math.log(precision), rel=1e-9)


def test_log_variance_at_zero_is_that_of_one():
    assert DDPM.schedule.log_variance[0] == DDPM.schedule.log_variance[1]


@pytest.mark.parametrize("steps", [1, 2, 7, 250, 1000])
def test_respacing_keeps_the_marginals(steps):
    kept = spaced_steps(steps)
    assert len(set(kept)) == steps and kept[-1] == 999 and (steps == 1 or kept[0] == 0)
    short = respaced(DDPM.schedule, kept)
    torch.testing.assert_close(short.signal, DDPM.schedule.signal[kept], rtol=1e-9, atol=0)
    torch.testing.assert_close(short.noise, DDPM.schedule.noise[kept], rtol=1e-9, atol=0)
    if steps == STEPS:
        torch.testing.assert_close(short.betas, DDPM.schedule.betas, rtol=1e-8, atol=0)


def test_variance_runs_between_its_bounds():
    s = DDPM.schedule
    at = {f: s.log_sigma2(torch.tensor(f, dtype=torch.float64), 10) for f in (-1.0, 0.0, 1.0)}
    torch.testing.assert_close(at[-1.0], s.log_variance[10])
    torch.testing.assert_close(at[1.0], s.log_betas[10])
    torch.testing.assert_close(at[0.0], (s.log_betas[10] + s.log_variance[10]) / 2)


def test_ddpm_noises_by_the_closed_form():
    x0, noise = data(2)
    seen = {}

    def model(x, t, y):
        seen.update(x=x, t=t, y=y)
        return torch.cat([x, x], dim=1)

    DDPM.losses(model, x0, torch.tensor([3.0, 999.0]), torch.tensor([1, 2]), noise)
    for i, t in enumerate((3, 999)):
        expected = float(DDPM.schedule.signal[t]) * x0[i] + float(DDPM.schedule.noise[t]) * noise[i]
        torch.testing.assert_close(seen["x"][i], expected)
    assert seen["t"].tolist() == [3, 999] and seen["y"].tolist() == [1, 2]


@pytest.mark.parametrize("diffusion", [DDPM, FLOW])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noise": torch.zeros(1, 3, 8, 8)}, "noise has shape"),
        ({"noise": torch.zeros(2, 1, 1, 1)}, "noise has shape"),
        ({"t": torch.zeros(1)}, "t has shape"),
        ({"t": torch.tensor(3.0)}, "t has shape"),
        ({"x0": torch.zeros(2, 192)}, "x0 has shape"),
    ],
)
def test_what_would_be_broadcast_is_refused(diffusion, wrong, message):
    x0, noise = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    arguments = {"x0": x0, "t": torch.zeros(2), "y": torch.zeros(2).long(), "noise": noise} | wrong
    with pytest.raises(ValueError, match=message):
        diffusion.losses(returning(noise, torch.tensor(0.0)), **arguments)


@pytest.mark.parametrize("step", [-1.0, 1000.0, math.nan])
def test_a_step_beyond_the_schedule_is_refused(step):
    x0, noise = data(2)
    with pytest.raises(ValueError, match=r"t holds .* expected time steps 0 to 999"):
        DDPM.losses(
            returning(noise, torch.tensor(0.0)), x0, torch.tensor([0.0, step]), torch.zeros(2).long(), noise
        )


def test_vb_of_a_perfect_model():
    """Its reverse steps are the posteriors: every term is 0 but that of the central bin."""
    x0, noise = data(4)
    t = torch.tensor([0.0, 1.0, 500.0, 999.0])
    losses = DDPM.losses(returning(noise, torch.tensor(-1.0)), x0, t, torch.zeros(4).long(), noise)
    sigma = math.exp(0.5 * float(DDPM.schedule.log_variance[0]))
    decoder = -math.log2(math.erf(1 / 255 / sigma / math.sqrt(2)))
    torch.testing.assert_close(losses["mse"], torch.zeros(4))
    torch.testing.assert_close(losses["vb"], torch.tensor([decoder, 0, 0, 0]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["loss"], losses["vb"])


def test_vb_is_the_divergence_of_the_reverse_steps():
    x0, noise = data(3)
    t = torch.tensor([1.0, 400.0, 999.0])
    guess, fraction = noise + 0.1 * torch.ones_like(noise), 0.3 * torch.ones_like(noise)
    actual = DDPM.losses(returning(guess, fraction), x0, t, torch.zeros(3).long(), noise)
    s = DDPM.schedule
    for i, step in enumerate(t.long().tolist()):
        signal, sigma = float(s.signal[step]), float(s.noise[step])
        x_t = signal * x0[i].double() + sigma * noise[i].double()
        guessed_x0 = (x_t - sigma * guess[i].double()) / signal
        means = [
            float(s.mean_x0[step]) * x + float(s.mean_xt[step]) * x_t for x in (x0[i].double(), guessed_x0)
        ]
        deviation = torch.exp(0.5 * s.log_sigma2(fraction[i].double(), step))
        true = Normal(means[0], torch.exp(0.5 * s.log_variance[step]))
        expected = kl_divergence(true, Normal(means[1], deviation)).mean() / math.log(2)
        assert float(actual["vb"][i]) == pytest.approx(float(expected), rel=1e-3)
    torch.testing.assert_close(actual["mse"], torch.full((3,), 0.01), rtol=1e-4, atol=0)
    torch.testing.assert_close(actual["loss"], actual["mse"] + actual["vb"])


def test_decoder_term_is_the_mass_of_the_bin():
    x0, noise = data(1)
    guess = noise + 0.7
    actual = DDPM.losses(
        returning(guess, torch.tensor(0.5)), x0, torch.zeros(1), torch.zeros(1).long(), noise
    )
    s = DDPM.schedule
    shift = 0.7 * float(s.noise[0] / s.signal[0])
    law = Normal(torch.tensor(0.0).double(), torch.exp(0.5 * s.log_sigma2(torch.tensor(0.5).double(), 0)))
    mass = law.cdf(torch.tensor(shift + 1 / 255)) - law.cdf(torch.tensor(shift - 1 / 255))
    assert float(actual["vb"]) == pytest.approx(-math.log2(float(mass)), rel=1e-3)


def test_only_the_variance_learns_from_vb():
    x0, noise = data(2)
    guess = torch.zeros_like(x0).requires_grad_()
    fraction = torch.zeros_like(x0).requires_grad_()
    t = torch.tensor([0.0, 300.0])
    DDPM.losses(returning(guess, fraction), x0, t, torch.zeros(2).long(), noise)["vb"].sum().backward()
    assert guess.grad is None or guess.grad.abs().max() == 0
    assert (fraction.grad.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("t", [0.0, 1.0, 999.0])
def test_ddpm_loss_and_gradient_stay_finite_for_a_wild_model(t):
    x0, noise = data(1)
    out = torch.full((1, 4, 4, 4), 30.0, requires_grad=True)
    loss = DDPM.losses(lambda *_: out, x0, torch.tensor([t]), torch.zeros(1).long(), noise)["loss"]
    loss.sum().backward()
    assert loss.isfinite().all()
    assert out.grad.isfinite().all()


def test_flow_loss():
    x0, noise = data(3)
    seen = {}

    def model(x, t, y):
        seen.update(x=x, t=t)
        return noise - x0 + 0.5

    t = torch.tensor([0.0, 0.25, 1.0])
    losses = FLOW.losses(model, x0, t, torch.zeros(3).long(), noise)
    torch.testing.assert_close(losses["loss"], torch.full((3,), 0.25))
    torch.testing.assert_close(seen["x"][0], x0[0])
    torch.testing.assert_close(seen["x"][1], 0.75 * x0[1] + 0.25 * noise[1])
    torch.testing.assert_close(seen["x"][2], noise[2])
    assert torch.equal(seen["t"], t)


def test_ddpm_times_are_whole_and_uniform():
    u = (torch.arange(4000).double() + 0.5) / 4000
    t = DDPM.times(u)
    assert t.dtype == torch.float32
    assert torch.equal(t.long().bincount(), torch.full((1000,), 4))
    assert DDPM.times(torch.tensor([0.0, 1 - 1e-17], dtype=torch.float64)).tolist() == [0, 999]


def test_flow_times():
    u = (torch.arange(10_000).double() + 0.5) / 10_000
    torch.testing.assert_close(FLOW.times(u), u.float())
    shifted = create_diffusion("flow", time_distribution="logit_normal", time_mean=-0.5, time_std=2.0)
    logits = torch.logit(shifted.times(u).double())
    assert float(logits.mean()) == pytest.approx(-0.5, abs=1e-3)
    assert float(logits.std()) == pytest.approx(2.0, rel=1e-2)
    ends = shifted.times(torch.tensor([0.0, 1 - 1e-17], dtype=torch.float64))
    assert ends.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("edm", {}, "diffusion objective is 'edm'; expected one of ddpm, flow"),
        ("flow", {"shift": 1}, "'shift' is unknown to flow; expected time_distribution, time_mean, time_std"),
        ("ddpm", {"steps": 10}, "'steps' is unknown to ddpm; expected auxiliary_weight"),
        (
            "flow",
            {"time_distribution": "beta"},
            "time_distribution is 'beta'; expected one of uniform, logit_normal",
        ),
        ("flow", {"time_std": 0.0}, "time_std is 0.0; expected a number above 0"),
        ("flow", {"time_std": float("inf")}, "time_std is inf; expected a number above 0"),
        ("flow", {"time_mean": float("nan")}, "time_mean is nan; expected a finite number"),
    ],
)
def test_bad_settings_are_named(objective, settings, message):
    with pytest.raises(ValueError, match=message):
        create_diffusion(objective, **settings)


def test_learned_variance_follows_the_objective():
    assert DDPM.learn_sigma is True
    assert FLOW.learn_sigma is False


def test_a_single_step_schedule_is_defined():
    assert Schedule(torch.tensor([0.5]).double()).log_variance.isfinite().all()
