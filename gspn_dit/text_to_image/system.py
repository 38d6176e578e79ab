"""A text-to-image system out of a pipeline's folder in diffusers' layout, or its hub id: UNet, texts, latents, noise.

    FOLDER/unet/  scheduler/  text_encoder/  tokenizer/  vae/      of a StableDiffusionPipeline
    FOLDER/...  text_encoder_2/  tokenizer_2/                      and of a StableDiffusionXLPipeline

Without vae/ the UNet sees pixels. The UNet may be one that `replace_self_attention` made.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError

from gspn_dit.checks import not_finite
from gspn_dit.errors import UserError
from gspn_dit.files import describe_file
from gspn_dit.latents.autoencoder import (
    Autoencoder,
    LatentAutoencoder,
    PixelAutoencoder,
    check_channels,
    create_autoencoder,
    to_uint8,
)
from gspn_dit.models.weights import download
from gspn_dit.text_to_image.replacement import GSPNUNet2DConditionModel
from gspn_dit.text_to_image.texts import RandomWords, TextEncoder, load_texts, read_settings

UNETS = {kind.__name__: kind for kind in (UNet2DConditionModel, GSPNUNet2DConditionModel)}
MODEL = "diffusion_pytorch_model.safetensors"
HUB_FILES = (
    "model_index.json",
    *(f"{part}/{file}" for part in ("unet", "vae") for file in ("config.json", MODEL)),
    *(f"text_encoder{end}/{file}" for end in ("", "_2") for file in ("config.json", "model.safetensors")),
    *("scheduler/*", "tokenizer/*", "tokenizer_2/*"),
)
"""Of a hub repository, which may hold the same weights in other forms and precisions too."""


@dataclass
class System:
    """The parts of a text-to-image system, on one device, in float32 and without gradients."""

    name: str
    folder: Path
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    """The noise of training; samplers are made from its config."""
    texts: TextEncoder
    autoencoder: Autoencoder

    @property
    def factor(self) -> int:
        """Pixels of an image's side over what the UNet sees."""
        return self.autoencoder.factor

    @property
    def divisor(self) -> int:
        """Sides of an image in pixels are multiples of this: the UNet halves what it sees that often."""
        return self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """Side in pixels of the images that the UNet was made for."""
        return int(self.unet.config.sample_size or 64) * self.factor

    def latents_of(self, pixels: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Pixels (n, 3, H, W) in [-1, 1] as the UNet sees them, (n, C, h, w) float32 on its device.

        `noise` (n, C, h, w) draws from the posterior of an autoencoder that has one; None takes its mean.
        """
        if not isinstance(self.autoencoder, LatentAutoencoder):
            return pixels.to(self.unet.device)
        moments = self.autoencoder.moments(to_uint8(pixels))  # (n, 1 or 2, C, h, w)
        z = moments[:, 0].clone()
        if noise is not None and moments.shape[1] == 2:
            z += (moments[:, 1] / 2).exp() * noise.to(z.device)
        return self.autoencoder.normalization.apply_(z)


def find_system(name: str) -> Path:
    """The folder of this name, or of what the hub has under it; `UserError` for another thing."""
    path = Path(name)
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{name} is {describe_file(path)}; expected the folder of a Stable Diffusion pipeline, or its id"
        )
    if not path.is_dir():
        path = download(
            name, HUB_FILES, "no such pipeline: {}; give a folder that save_pretrained wrote, or a hub id"
        )
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        if not (path / part).is_file():
            raise UserError(
                f"{name} has no {part}: expected the folder of a StableDiffusionPipeline or "
                "StableDiffusionXLPipeline, as save_pretrained writes it"
            )
    return path


def load_system(name: str, device: torch.device | str = "cpu") -> System:
    """All parts of a pipeline's folder or hub id; `UserError` for what is none, or does not fit together."""
    folder = find_system(name)
    unet = load_unet(folder).to(device)
    layout = layout_of(unet, name)
    texts = load_texts(folder, layout, device)
    if isinstance(texts, RandomWords) and texts.dim != unet.config.cross_attention_dim:
        raise UserError(
            f"{name}: its words are {texts.dim} wide, its UNet takes {unet.config.cross_attention_dim}: "
            "expected the same"
        )
    autoencoder = (
        create_autoencoder(str(folder / "vae"), device) if (folder / "vae").is_dir() else PixelAutoencoder()
    )
    check_channels(autoencoder, unet.config.in_channels)
    try:
        scheduler = DDPMScheduler.from_config(read_settings(folder / "scheduler" / "scheduler_config.json"))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder / 'scheduler'} cannot be used: {' '.join(str(error).split())}") from error
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{name}: its scheduler's prediction_type is {scheduler.config.prediction_type}; expected epsilon or "
            "v_prediction"
        )
    return System(name, folder, unet, scheduler, texts, autoencoder)


def load_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet of a pipeline's folder in float32, every weight there and finite."""
    kind = read_settings(folder / "unet" / "config.json").get("_class_name")
    if kind not in UNETS:
        raise UserError(f"{folder / 'unet'} is a {kind}; expected a UNet2DConditionModel of diffusers")
    try:
        with errors_alone():
            unet, report = UNETS[kind].from_pretrained(
                folder / "unet",
                torch_dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder / 'unet'} cannot be read: {' '.join(str(error).split())}") from error
    broken = report["missing_keys"] or [found for found in [not_finite(unet.state_dict())] if found]
    if broken:
        raise UserError(
            f"{folder / 'unet'}: the weight {sorted(broken)[0]} is missing or not finite; save it again"
        )
    return unet.eval().requires_grad_(False)


@contextlib.contextmanager
def errors_alone() -> Iterator[None]:
    """Within it diffusers says nothing of weights that are missing, of which `load_unet` does."""
    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.logging.set_verbosity(before)


def layout_of(unet: UNet2DConditionModel, name: str) -> str:
    """Which pipeline's UNet it is: "sd" or "sdxl"; `UserError` for another."""
    added = unet.config.addition_embed_type
    if added not in (None, "text_time"):
        raise UserError(
            f"{name}: its UNet takes {added} embeddings; expected one of SD 1.5's or SDXL's layout"
        )
    return "sd" if added is None else "sdxl"
