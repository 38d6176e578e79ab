"""Tiny autoencoders of every class, image folders, and stores of chosen moments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gspn_dit.latents.dataset import DTYPE, MIRRORS, Manifest
from gspn_dit.latents.taef2 import DECODER, ENCODER, TAEF2, Widths

SCALE, SHIFT = 0.5, 0.25


def save_vae(folder: Path, seed: int = 0, **config: Any) -> Path:
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
        **config,
    )
    vae.save_pretrained(folder)
    return folder


def save_tiny(folder: Path, **config: Any) -> Path:
    """An AutoencoderTiny with f = 8 and 4 channels and random weights."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    widths, blocks = (8,) * 4, (1,) * 4
    settings = {
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "num_encoder_blocks": blocks,
        "num_decoder_blocks": blocks,
    }
    AutoencoderTiny(**settings | config).save_pretrained(folder)
    return folder


def save_dc(folder: Path, stages: int = 6) -> Path:
    """An AutoencoderDC with f = 2^(stages - 1), 8 channels, random weights and a scaling factor that is none."""
    from diffusers import AutoencoderDC

    torch.manual_seed(2)
    widths, layers, no_scales = (8,) * stages, (1,) * stages, ((),) * stages
    AutoencoderDC(
        latent_channels=8,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=no_scales,
        decoder_qkv_multiscales=no_scales,
        scaling_factor=0.125,
    ).save_pretrained(folder)
    return folder


def save_taef2(folder: Path) -> Path:
    """The two files of a TAEF2 with 5 channels, 8 inside and 12 in its pooled branches; random weights in float16."""
    torch.manual_seed(3)
    model = TAEF2(Widths(latent=5, inner=8, pool=12))
    folder.mkdir(parents=True, exist_ok=True)
    for file, part in ((ENCODER, model.encoder), (DECODER, model.decoder)):
        torch.save({name: tensor.half() for name, tensor in part.state_dict().items()}, folder / file)
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
    """Make a finished folder of latents with given moments (images, 2, 2 or 1, C, h, w) and labels (images,)."""

    def make(
        moments: np.ndarray, labels: list[int], classes: int = 3, name: str = "latents", **manifest: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        assert moments.shape[1] == MIRRORS
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
            posterior=moments.shape[2] == 2,
            **manifest,
        ).save(folder)
        return folder

    return make
