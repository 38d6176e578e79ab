"""Samplers as pure functions: each turns start noise x (B, C, H, W) into data.

`predict(x, t)` is the model: it takes one time t (a float) for the whole batch and returns its raw
prediction. `tick()` is called after each step.
"""

from collections.abc import Callable

import torch
from torch import nn

from gspn_dit.checks import NotFinite, check_finite, check_images
from gspn_dit.diffusion.ddpm import DDPM, STEPS, Schedule
from gspn_dit.diffusion.flow import Flow
from gspn_dit.diffusion.guidance import Predict, check_guidance, guided
from gspn_dit.random import SAMPLE, generator

NoiseSource = Callable[[int], torch.Tensor]
Tick = Callable[[], object]
Watch = Callable[[torch.Tensor], object]


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
    # Speed: diffusers takes seconds, and only this sampler asks for it.
    from diffusers import DPMSolverMultistepScheduler

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


_SAMPLERS = {
    "ddpm": {"dpm-solver++": dpm_solver, "ddim": ddim, "ddpm": ddpm},
    "flow": {"heun": heun, "euler": euler},
}
SAMPLERS = {objective: tuple(names) for objective, names in _SAMPLERS.items()}
# DPM-Solver++ visits steps + 1 points of the schedule, its end included.
_MOST_STEPS = {"ddpm": STEPS, "ddim": STEPS, "dpm-solver++": STEPS - 1}


def keyed_noise(seed: int, indices: torch.Tensor | list[int], shape: tuple[int, ...]) -> NoiseSource:
    """Noise for images of shape (C, H, W), any H and W, that depends on (seed, image index, step) and the shape alone.

    Step 0 gives the start noise and step k the k-th fresh noise of a stochastic sampler: (B, C, H, W) float32
    on the CPU, the same in any batch and for any device.
    """

    def draw(step: int) -> torch.Tensor:
        images = [torch.randn(shape, generator=generator(SAMPLE, seed, int(i), step)) for i in indices]
        return torch.stack(images)

    return draw


def default_sampler(objective: str) -> str:
    """The sampler to use for an objective unless another is asked for."""
    return SAMPLERS[objective][0]


def check_sampling(
    objective: str,
    sampler: str,
    steps: int,
    cfg_scale: float = 1.0,
    cfg_interval: tuple[float, float] | None = None,
    internal_guidance: float = 1.0,
    guide_scale: float | None = None,
) -> None:
    """Raise ValueError that names the setting, its value and what was expected."""
    if sampler not in SAMPLERS[objective]:
        names = ", ".join(SAMPLERS[objective])
        raise ValueError(f"sampler is {sampler!r}; expected one of {names} for a {objective} model")
    most = _MOST_STEPS.get(sampler)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or (most and steps > most):
        expected = f"an integer from 1 to {most}" if most else "an integer of 1 or more"
        raise ValueError(f"steps is {steps!r}; expected {expected} for {sampler}")
    check_guidance(cfg_scale, cfg_interval, internal_guidance, guide_scale)


@torch.no_grad()
def sample(
    model: nn.Module,
    diffusion: DDPM | Flow,
    y: torch.Tensor,
    noise: NoiseSource,
    *,
    sampler: str,
    steps: int,
    cfg_scale: float = 1.0,
    cfg_interval: tuple[float, float] | None = None,
    internal_guidance: float = 1.0,
    guide: nn.Module | None = None,
    guide_scale: float | None = None,
    progress: Callable[[], object] | None = None,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Sample images of the classes y.

    Args:
        model: a network of `create_model`, on the device of y, in eval mode.
        diffusion: the objective that the model was trained with.
        y: (B,) int64 labels; `model.num_classes` is the null label.
        noise: gives (B, C, H, W) float32 for step 0, the start, and for each later draw; see `keyed_noise`.
        sampler: one of SAMPLERS[diffusion.objective].
        steps: sampler steps; "heun" calls the model twice in each.
        cfg_scale: guidance scale; 1 is none.
        cfg_interval: of cfg_scale alone: while t_low <= t <= t_high, in the units of t (ddpm 0..999, flow 0..1).
        internal_guidance: scale of the guidance by the model's auxiliary head; 1 is none.
        guide: another model of the same data, worse, to guide by; then cfg_scale and internal_guidance are 1.
        guide_scale: scale of the guidance by `guide`, which takes one.
        progress: called without arguments after every step.
        watch: called with what each model call takes the data to be, (B, C, H, W) float32: a picture in the making.

    Returns:
        (B, C, H, W) float32 on the device of y, not clamped.

    Raises:
        ValueError: a bad sampler, steps or guidance (see `guided`), labels that the model does not have, or noise
            of another shape than (len(y), C, H, W).
        NotFinite (a FloatingPointError): an image came out with NaN or infinity; it says which, and since which t.
    """
    check_sampling(diffusion.objective, sampler, steps)
    predict = guided(
        model, y, cfg_scale, cfg_interval, internal=internal_guidance, guide=guide, guide_scale=guide_scale
    )
    x = noise(0)
    check_images("noise(0)", x)
    shape = (len(y), *x.shape[1:])

    def checked_noise(step: int) -> torch.Tensor:
        drawn = noise(step)
        check_images(f"noise({step})", drawn, shape)  # another shape might be broadcast
        return drawn

    check_images("noise(0)", x, shape)
    finite: list[
        tuple[float, torch.Tensor]
    ] = []  # of each model call: t, and (B,) on the device, read only in need

    def watched(x: torch.Tensor, t: float) -> torch.Tensor:
        prediction = predict(x, t)
        finite.append((t, prediction.flatten(1).isfinite().all(dim=1)))
        if watch is not None:
            watch(diffusion.estimate(x, t, prediction))
        return prediction

    schedule = diffusion.schedule if diffusion.objective == "ddpm" else None
    run = _SAMPLERS[diffusion.objective][sampler]
    x = run(watched, x.to(y.device), steps, schedule, checked_noise, progress or (lambda: None))
    try:
        check_finite(x, "its latents are")
    except NotFinite as error:
        since = next((f", since t = {t:g}" for t, good in finite if not good[error.place]), "")
        raise NotFinite(f"{error.what}{since}", error.place) from None
    return x
