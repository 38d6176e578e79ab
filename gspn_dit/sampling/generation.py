"""Images from a trained model, batch by batch."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gspn_dit.checks import NotFinite, check_labels
from gspn_dit.config import Config
from gspn_dit.diffusion import check_sampling, create_diffusion, keyed_noise, sample
from gspn_dit.diffusion.samplers import Watch
from gspn_dit.errors import NonFiniteError
from gspn_dit.latents.autoencoder import Autoencoder
from gspn_dit.processes import progress_bar
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


def sample_latents(
    model: nn.Module,
    config: Config,
    labels: torch.Tensor,
    indices: torch.Tensor,
    *,
    seed: int,
    sampler: str,
    steps: int,
    cfg_scale: float,
    cfg_interval: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    internal_guidance: float = 1.0,
    guide: nn.Module | None = None,
    guide_scale: float | None = None,
    batch_size: int,
    device: torch.device | str,
    progress: bool = True,
    watch: Watch | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Sample batch by batch, as `generate` does, without decoding.

    Yields:
        (b,) int64 indices, their labels (b,), and latents (b, C, h, w) on the device.
    """
    if not len(labels):
        return  # a process without a share of the work; split would make one empty batch
    check_labels(labels.cpu(), model.num_classes, len(indices), name="labels")
    check_sampling(
        config.diffusion.objective, sampler, steps, cfg_scale, cfg_interval, internal_guidance, guide_scale
    )
    diffusion = create_diffusion(
        **{key: value for key, value in vars(config.diffusion).items() if value is not None}
    )
    shape = (model.in_channels, *(size or (model.input_size, model.input_size)))
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
            with image_named(numbers, y, f"{sampler}, {steps} steps, cfg_scale {cfg_scale:g}"):
                latents = sample(
                    model,
                    diffusion,
                    y.to(device),
                    keyed_noise(seed, numbers, shape),
                    sampler=sampler,
                    steps=steps,
                    cfg_scale=cfg_scale,
                    cfg_interval=cfg_interval,
                    internal_guidance=internal_guidance,
                    guide=guide,
                    guide_scale=guide_scale,
                    progress=functools.partial(bar.update, len(y)),
                    watch=watch,
                )  # (b, C, h, w)
            yield numbers, y, latents


def generate(
    model: nn.Module,
    config: Config,
    autoencoder: Autoencoder,
    labels: torch.Tensor,
    indices: torch.Tensor,
    **settings: Any,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Sample images batch by batch; image i depends on (seed, i) and its label alone, beyond rounding.

    Args:
        model: from `create_model`, on `device`, in eval mode.
        config: the run that the model is of: it gives the objective.
        autoencoder: decodes the latents.
        labels: (n,) int64, `model.num_classes` for none.
        indices: (n,) int64, the number of each image: the key of its noise.
        settings: those of `sample_latents`:
            seed, sampler, steps, cfg_scale, cfg_interval, internal_guidance, guide, guide_scale: see
                `gspn_dit.diffusion.sample`;
            size: height and width of the latents, other than those trained on: for a model without positions;
            batch_size: images sampled at once: decides memory and speed, not results;
            device: where the model is;
            progress: show a bar on stderr;
            watch: sees the latents in the making, see `gspn_dit.diffusion.sample`.

    Yields:
        (b,) int64 indices and their images (b, H, W, 3) uint8, on the CPU, in the order asked for.

    Raises:
        ValueError: a bad sampler, steps or guidance, or a label out of range.
        NonFiniteError (a `UserError`): latents or pixels that are NaN or infinite; it names the image and its class.
    """
    for numbers, y, latents in sample_latents(model, config, labels, indices, **settings):
        yield numbers, decode(autoencoder, latents, numbers, y)  # (b,), (b, H, W, 3)


def decode(
    autoencoder: Autoencoder, latents: torch.Tensor, numbers: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Images (b, H, W, 3) uint8 of latents; `NonFiniteError` names the first that is not finite."""
    with image_named(numbers, labels, "from finite latents: check the decoder's weights"):
        return autoencoder.decode(latents)


@contextlib.contextmanager
def image_named(numbers: torch.Tensor, labels: torch.Tensor, how: str) -> Iterator[None]:
    """Turn `NotFinite`, which knows the place in a batch, into an error that names the image and its class."""
    try:
        yield
    except NotFinite as error:
        number, label = int(numbers[error.place]), int(labels[error.place])
        raise NonFiniteError(
            f"image {number} (class {label}): {error.what} ({how}); nothing of it is written"
        ) from error
