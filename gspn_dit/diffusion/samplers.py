"""Samplers as pure functions: each turns start noise x (B, C, H, W) into data.

`predict(x, t)` is the model: it takes one time t (a float) for the whole batch and returns its raw
prediction. `tick()` is called after each step.
"""

from collections.abc import Callable

import torch

from gspn_dit.diffusion.ddpm import STEPS, Schedule

Predict = Callable[[torch.Tensor, float], torch.Tensor]
NoiseSource = Callable[[int], torch.Tensor]
Tick = Callable[[], object]


def spaced_steps(steps: int) -> list[int]:
    """`steps` of the 1000 training steps, even from 0 to 999 (arXiv 2102.09672, section 4)."""
    if steps == 1:
        return [STEPS - 1]
    return [round(i * (STEPS - 1) / (steps - 1)) for i in range(steps)]


def respaced(schedule: Schedule, kept: list[int]) -> Schedule:
    """The process that visits the `kept` steps alone: arXiv 2102.09672, eq. 19."""
    alpha_bar = schedule.signal[kept].square()
    previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return Schedule(1 - alpha_bar / previous)


def ddpm(
    predict: Predict, x: torch.Tensor, steps: int, schedule: Schedule, noise: NoiseSource, tick: Tick
) -> torch.Tensor:
    """Ancestral sampling with the learned variance, respaced: arXiv 2006.11239, algorithm 2."""
    kept = spaced_steps(steps)
    short = respaced(schedule, kept)
    for i in reversed(range(steps)):
        eps, fraction = predict(x, float(kept[i])).chunk(2, dim=1)
        x0 = denoised(x, eps, short, i)
        x = float(short.mean_x0[i]) * x0 + float(short.mean_xt[i]) * x
        if i > 0:
            x = x + torch.exp(0.5 * short.log_sigma2(fraction, i)) * noise(steps - i).to(x)
        tick()
    return x


def ddim(
    predict: Predict, x: torch.Tensor, steps: int, schedule: Schedule, noise: NoiseSource, tick: Tick
) -> torch.Tensor:
    """Deterministic DDIM: arXiv 2010.02502, eq. 12 with sigma = 0. It draws no noise."""
    kept = spaced_steps(steps)
    short = respaced(schedule, kept)
    for i in reversed(range(steps)):
        eps, _ = predict(x, float(kept[i])).chunk(2, dim=1)
        x = denoised(x, eps, short, i)
        if i > 0:
            x = float(short.signal[i - 1]) * x + float(short.noise[i - 1]) * eps
        tick()
    return x


def dpm_solver(
    predict: Predict, x: torch.Tensor, steps: int, schedule: Schedule, noise: NoiseSource, tick: Tick
) -> torch.Tensor:
    """DPM-Solver++(2M): arXiv 2211.01095, algorithm 2, as diffusers has it. It draws no noise."""
    from diffusers import DPMSolverMultistepScheduler  # slow to import, and only used here

    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=STEPS, trained_betas=schedule.betas.numpy(), timestep_spacing="linspace"
    )
    solver.set_timesteps(steps)
    for t in solver.timesteps.tolist():
        eps, _ = predict(x, float(t)).chunk(2, dim=1)
        x = solver.step(eps, t, x, return_dict=False)[0]
        tick()
    return x


def euler(
    predict: Predict, x: torch.Tensor, steps: int, schedule: None, noise: NoiseSource, tick: Tick
) -> torch.Tensor:
    """Euler's method for dx/dt = velocity, in equal steps from t = 1 to t = 0. It draws no noise."""
    for i in range(steps):
        x = x - predict(x, 1 - i / steps) / steps
        tick()
    return x


def heun(
    predict: Predict, x: torch.Tensor, steps: int, schedule: None, noise: NoiseSource, tick: Tick
) -> torch.Tensor:
    """Heun's second-order method (the explicit trapezoid) for dx/dt = velocity; two model calls a step."""
    for i in range(steps):
        start = predict(x, 1 - i / steps)
        end = predict(x - start / steps, 1 - (i + 1) / steps)
        x = x - (start + end) / (2 * steps)
        tick()
    return x


def denoised(x: torch.Tensor, eps: torch.Tensor, schedule: Schedule, i: int) -> torch.Tensor:
    """The estimate of x_0 from the predicted noise: arXiv 2006.11239, eq. 15."""
    return (x - float(schedule.noise[i]) * eps) / float(schedule.signal[i])
