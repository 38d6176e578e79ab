"""Images from a trained model, batch by batch."""

import functools
from collections.abc import Iterator

import torch
from torch import nn

from gspn_dit.checks import check_labels
from gspn_dit.config import Config
from gspn_dit.diffusion import check_sampling, create_diffusion, keyed_noise, sample
from gspn_dit.latents.autoencoder import Autoencoder
from gspn_dit.progress import progress_bar
from gspn_dit.random import LABELS, generator

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"


def keyed_labels(indices: torch.Tensor, num_classes: int, *, seed: int, balanced: bool) -> torch.Tensor:
    """Labels of images by index, (n,) int64: each depends on (seed, index) alone.

    Balanced labels go round the classes; random ones are uniform, as for the published numbers.
    """
    if balanced:
        return indices % num_classes
    draws = [torch.randint(num_classes, (), generator=generator(LABELS, seed, int(i))) for i in indices]
    return torch.stack(draws) if draws else torch.empty(0, dtype=torch.int64)


def generate(
    model: nn.Module,
    config: Config,
    autoencoder: Autoencoder,
    labels: torch.Tensor,
    indices: torch.Tensor,
    *,
    seed: int,
    sampler: str,
    steps: int,
    cfg_scale: float,
    cfg_interval: tuple[float, float] | None = None,
    batch_size: int,
    device: torch.device | str,
    progress: bool = True,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Sample images batch by batch; image i depends on (seed, i) and its label alone, beyond rounding.

    Args:
        model: from `create_model`, on `device`, in eval mode.
        config: the run that the model is of: it gives the objective.
        autoencoder: decodes the latents.
        labels: (n,) int64, `model.num_classes` for none.
        indices: (n,) int64, the number of each image: the key of its noise.
        seed, sampler, steps, cfg_scale, cfg_interval: see `gspn_dit.diffusion.sample`.
        batch_size: images sampled at once: decides memory and speed, not results.
        device: where the model is.
        progress: show a bar on stderr.

    Yields:
        (b,) int64 indices and their images (b, H, W, 3) uint8, on the CPU, in the order asked for.

    Raises:
        ValueError: a bad sampler, steps, cfg_scale or cfg_interval, or a label out of range.
    """
    if not len(labels):
        return  # a process without a share of the work; split would make one empty batch
    check_labels(labels.cpu(), model.num_classes, len(indices), name="labels")
    check_sampling(config.diffusion.objective, sampler, steps, cfg_scale, cfg_interval)
    diffusion = create_diffusion(
        **{key: value for key, value in vars(config.diffusion).items() if value is not None}
    )
    shape = (model.in_channels, model.input_size, model.input_size)
    batches = zip(labels.split(batch_size), indices.split(batch_size), strict=True)
    bar = progress_bar(
        total=len(labels) * steps,  # counted in steps, shown in images
        unit_scale=1 / steps,
        desc="sampling",
        unit=" images",
        bar_format=BAR,
        disable=not progress,
    )
    with bar:
        for y, numbers in batches:
            latents = sample(
                model,
                diffusion,
                y.to(device),
                keyed_noise(seed, numbers, shape),
                sampler=sampler,
                steps=steps,
                cfg_scale=cfg_scale,
                cfg_interval=cfg_interval,
                progress=functools.partial(bar.update, len(y)),
            )  # (b, C, h, w)
            yield numbers, autoencoder.decode(latents)  # (b, H, W, 3)
