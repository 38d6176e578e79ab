"""Tiny random UNets of both layouts, and pipelines' folders with them."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image

from gspn_dit.text_to_image.texts import RandomWords

WORDS = 8
COMMON = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WORDS,
    "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
SDXL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 8,
    "transformer_layers_per_block": (1, 2),
}
LAYOUTS = ("sd", "sdxl")


def make_unet(layout: str = "sd", **settings) -> UNet2DConditionModel:
    """A UNet with random weights, always the same."""
    torch.manual_seed(1)
    return UNet2DConditionModel(**COMMON | (SDXL if layout == "sdxl" else {}) | settings).eval()


def make_arguments(layout: str, batch: int = 2) -> dict:
    """What a UNet takes beside its image and times."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    arguments = {"encoder_hidden_states": draw(batch, 3, WORDS), "return_dict": False}
    if layout == "sdxl":
        arguments["added_cond_kwargs"] = {"text_embeds": draw(batch, 8), "time_ids": draw(batch, 6)}
    return arguments


def make_image(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def save_teacher(folder: Path, *, vae: bool = False, **scheduler) -> Path:
    """A pipeline's folder with words at random in place of text encoders; with `vae`, 2 pixels to a latent."""
    make_unet(in_channels=4 if vae else 3, out_channels=4 if vae else 3).save_pretrained(folder / "unet")
    DDPMScheduler(num_train_timesteps=20, **scheduler).save_pretrained(folder / "scheduler")
    RandomWords(dim=WORDS, length=4).save(folder / "text_encoder")
    if vae:
        torch.manual_seed(4)
        AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=8,
        ).save_pretrained(folder / "vae")
    return folder


def save_pictures(folder: Path, count: int = 6, captions: bool = True) -> Path:
    """Pictures in folders red_fox and owl, with captions beside them."""
    noise = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("red_fox", "owl")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(path)
        if captions:
            path.with_suffix(".txt").write_text(f"a picture\nof number {number}\n")
    return folder
