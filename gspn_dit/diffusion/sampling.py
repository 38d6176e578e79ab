"""Sampling with classifier-free guidance, from noise that is keyed by image."""

from collections.abc import Callable

import torch
from torch import nn

from gspn_dit.diffusion import samplers
from gspn_dit.diffusion.ddpm import DDPM, STEPS
from gspn_dit.diffusion.flow import Flow
from gspn_dit.diffusion.samplers import NoiseSource, Predict
from gspn_dit.random import SAMPLE, generator

_SAMPLERS = {
    "ddpm": {"dpm-solver++": samplers.dpm_solver, "ddim": samplers.ddim, "ddpm": samplers.ddpm},
    "flow": {"heun": samplers.heun, "euler": samplers.euler},
}
SAMPLERS = {objective: tuple(names) for objective, names in _SAMPLERS.items()}
# DPM-Solver++ visits steps + 1 points of the schedule, its end included.
_MOST_STEPS = {"ddpm": STEPS, "ddim": STEPS, "dpm-solver++": STEPS - 1}


def default_sampler(objective: str) -> str:
    """The sampler to use for an objective unless another is asked for."""
    return SAMPLERS[objective][0]


def keyed_noise(seed: int, indices: torch.Tensor | list[int], shape: tuple[int, ...]) -> NoiseSource:
    """Noise for images of shape (C, H, W) that depends on (seed, image index, step) alone.

    Step 0 gives the start noise and step k the k-th fresh noise of a stochastic sampler: (B, C, H, W) float32
    on the CPU, the same in any batch and for any device.
    """

    def draw(step: int) -> torch.Tensor:
        images = [torch.randn(shape, generator=generator(SAMPLE, seed, int(i), step)) for i in indices]
        return torch.stack(images)

    return draw


def check_sampling(
    objective: str,
    sampler: str,
    steps: int,
    cfg_scale: float = 1.0,
    cfg_interval: tuple[float, float] | None = None,
) -> None:
    """Raise ValueError that names the setting, its value and what was expected."""
    if sampler not in SAMPLERS[objective]:
        names = ", ".join(SAMPLERS[objective])
        raise ValueError(f"sampler is {sampler!r}; expected one of {names} for a {objective} model")
    most = _MOST_STEPS.get(sampler)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or (most and steps > most):
        expected = f"an integer from 1 to {most}" if most else "an integer of 1 or more"
        raise ValueError(f"steps is {steps!r}; expected {expected} for {sampler}")
    if not 1 <= cfg_scale < float("inf"):
        raise ValueError(f"cfg_scale is {cfg_scale!r}; expected 1 (no guidance) or more")
    if cfg_interval is not None:
        low, high = cfg_interval
        if not low <= high:
            raise ValueError(f"cfg_interval is {(low, high)}; expected (t_low, t_high) with t_low <= t_high")


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
    progress: Callable[[], object] | None = None,
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
        cfg_interval: guide only while t_low <= t <= t_high, in the units of t (ddpm 0..999, flow 0..1).
        progress: called without arguments after every step.

    Returns:
        (B, C, H, W) float32 on the device of y, not clamped.

    Raises:
        ValueError: a bad sampler, steps, cfg_scale or cfg_interval.
    """
    check_sampling(diffusion.objective, sampler, steps, cfg_scale, cfg_interval)
    predict = guided(model, y, cfg_scale, cfg_interval)
    x = noise(0).to(y.device)
    schedule = diffusion.schedule if diffusion.objective == "ddpm" else None
    run = _SAMPLERS[diffusion.objective][sampler]
    return run(predict, x, steps, schedule, noise, progress or (lambda: None))


def guided(
    model: nn.Module, y: torch.Tensor, scale: float, interval: tuple[float, float] | None = None
) -> Predict:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6) within an interval of t (arXiv 2404.07724).

    All latent channels are guided: null + scale (class - null). A learned variance is taken from the class
    alone. One model call on the doubled batch, or on the batch itself where nothing is guided.
    """
    null = torch.full_like(y, model.num_classes)

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        times = x.new_full((len(x),), t)
        if scale == 1 or (interval is not None and not interval[0] <= t <= interval[1]):
            return model(x, times, y).float()
        out = model(torch.cat([x, x]), torch.cat([times, times]), torch.cat([y, null])).float()
        conditional, unconditional = out.chunk(2)
        channels = x.shape[1]
        conditional[:, :channels] = torch.lerp(unconditional[:, :channels], conditional[:, :channels], scale)
        return conditional

    return predict
