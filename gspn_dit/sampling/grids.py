"""Grids of samples: a picture in which a row is a class."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from gspn_dit.config import Config
from gspn_dit.diffusion import default_sampler
from gspn_dit.files import replacing
from gspn_dit.latents.autoencoder import Autoencoder
from gspn_dit.sampling.generation import decode, sample_latents

GRID_BORDER = 2
"""Black pixels between the images of a grid."""


class NoDecoder:
    """For processes that take part in sampling but write nothing."""

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(z), 1, 1, 3, dtype=torch.uint8)


def grid_classes(config: Config, num_classes: int) -> list[int]:
    """The classes of a grid: those of the config, or ten evenly spaced."""
    if config.sample.classes is not None:
        return list(config.sample.classes)
    rows = min(10, num_classes)
    return [row * num_classes // rows for row in range(rows)]


def draw_grid(
    model: nn.Module, config: Config, decoder: Autoencoder | NoDecoder, device: torch.device
) -> tuple[torch.Tensor, int]:
    """Samples as `config.sample` says, (n, H, W, 3) uint8, and the number of rows: one per class.

    Raises `NonFiniteError` for an image that is NaN or infinite.
    """
    settings = config.sample
    classes = grid_classes(config, model.num_classes)
    labels = torch.tensor(classes).repeat_interleave(settings.per_class)
    numbers = torch.arange(len(labels))
    batches = sample_latents(
        model,
        config,
        labels,
        numbers,
        seed=config.train.seed,
        sampler=settings.sampler or default_sampler(config.diffusion.objective),
        steps=settings.steps,
        cfg_scale=settings.cfg_scale,
        cfg_interval=settings.cfg_interval,
        internal_guidance=settings.internal_guidance,
        batch_size=settings.batch_size,
        device=device,
        progress=False,
    )
    # Decoded last: what goes wrong there, on one process alone, leaves no other waiting in a sharded model.
    latents = torch.cat([latents for _, _, latents in batches])
    return decode(decoder, latents, numbers, labels), len(classes)


def save_grid(images: torch.Tensor | np.ndarray, rows: int, path: str | Path) -> None:
    """Write images (rows * columns, H, W, 3) uint8 as one PNG, row after row; a row is a class.

    Its folder is made.
    """
    canvas = arrange(images, rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(canvas).save(file, format="PNG")


def arrange(images: torch.Tensor | np.ndarray, rows: int | None = None) -> np.ndarray:
    """Images (n, H, W, 3) uint8 as one (h, w, 3), row after row; without `rows`, about as wide as high.

    Of n images that fill no rectangle the last row is filled up in black.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images: expected (n, H, W, 3) uint8, got {images.shape} {images.dtype}")
    if rows is not None and (rows < 1 or len(images) == 0 or len(images) % rows):
        raise ValueError(f"rows is {rows}; expected a divisor of the {len(images)} images")
    columns = len(images) // rows if rows else math.ceil(math.sqrt(len(images)))
    height, width = (length + GRID_BORDER for length in images.shape[1:3])
    rows = math.ceil(len(images) / columns)
    canvas = np.zeros((rows * height + GRID_BORDER, columns * width + GRID_BORDER, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height + GRID_BORDER, i % columns * width + GRID_BORDER
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
