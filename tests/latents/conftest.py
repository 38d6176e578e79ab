"""A tiny autoencoder in diffusers' format, image folders, and stores of chosen moments."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gspn_dit.latents.dataset import DTYPE, MIRRORS, Manifest

SCALE, SHIFT = 0.5, 0.25


def save_vae(folder: Path, seed: int = 0) -> Path:
    """An AutoencoderKL with f = 8 and 4 channels, random weights, and a scale and shift of its own."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
    )
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory) -> Path:
    return save_vae(tmp_path_factory.mktemp("vae"))


def picture(seed: int, width: int = 80, height: int = 72, mode: str = "RGB") -> Image.Image:
    """A smooth random picture: a photograph's spectrum, more or less."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def image_folder(tmp_path) -> Callable[..., Path]:
    """Make a folder of `count` pictures in three classes."""

    def make(count: int = 9, name: str = "images") -> Path:
        for number in range(count):
            folder = tmp_path / name / ("ant", "bee", "cat")[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            picture(number).save(folder / f"{number:04d}.png")
        return tmp_path / name

    return make


@pytest.fixture
def store_folder(tmp_path) -> Callable[..., Path]:
    """Make a finished folder of latents with given moments (images, 2, 2, C, h, w) and labels (images,)."""

    def make(moments: np.ndarray, labels: list[int], classes: int = 3) -> Path:
        folder = tmp_path / "latents"
        folder.mkdir()
        assert moments.shape[1:3] == (MIRRORS, 2)
        moments.astype(DTYPE).tofile(folder / "moments.bin")
        np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
        Manifest(
            autoencoder="vae",
            weights_hash="0",
            scale=SCALE,
            shift=SHIFT,
            image_size=64,
            images=len(moments),
            skipped=sum(label < 0 for label in labels),
            latent_shape=moments.shape[3:],
            class_names=tuple(f"class {number}" for number in range(classes)),
            images_hash="0",
            float16_error={},
            complete=True,
        ).save(folder)
        return folder

    return make
