"""Between images and what the diffusion sees: an autoencoder of diffusers, TAEF2, or pixels as they are.

The wrapper owns what is done to latents beyond the autoencoder itself, which applies neither scale nor statistics.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gspn_dit.checks import NotFinite, check_finite
from gspn_dit.errors import UserError
from gspn_dit.latents.loading import load_vae
from gspn_dit.latents.normalization import Kind, Normalization, Scaling, recorded
from gspn_dit.latents.taef2 import TAEF2

DECODE_CHUNK = 16
"""Images decoded at once: bounds the memory of a decode, whatever the batch of the sampler."""


class PixelAutoencoder:
    """No compression: the diffusion's one or three channels in [-1, 1] are the pixels."""

    identity = "none (pixels)"
    factor = 1

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 1 or 3, H, W) in [-1, 1] to images (B, H, W, 3) uint8 on the CPU; grey is repeated.

        Raises `NotFinite` for NaN or infinity.
        """
        if z.dim() != 4 or z.shape[1] not in (1, 3):
            raise ValueError(f"z: expected pixels (B, 1 or 3, H, W), got {tuple(z.shape)}")
        return to_uint8(z).expand(-1, -1, -1, 3).contiguous()


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What an autoencoder's class and config say of its latents."""

    channels: int
    factor: int
    """Pixels of an image's side over those of its latent's."""
    posterior: bool = False
    """Whether it encodes to a mean and a log-variance (AutoencoderKL), or to the latent itself."""
    normalization: Kind = "channels"
    """What brings its latents to the diffusion: its own scale, or statistics measured on the latents, where the
    config's scale was never measured (AutoencoderTiny) or is one number for channels that differ."""
    scale: float = 1.0
    shift: float = 0.0
    for_preview: bool = False
    """Whether its latents may be those of another autoencoder, by that one's scale (AutoencoderTiny)."""


def read_traits(vae: Any, name: str) -> Traits:
    """The traits of TAEF2 or a class of diffusers; `UserError` where its decoder does not undo its encoder's factor."""
    if isinstance(vae, TAEF2):
        return Traits(channels=vae.channels, factor=vae.factor)
    kind, config = type(vae).__name__, vae.config
    common = {
        "channels": int(config.latent_channels),
        "scale": float(config.scaling_factor),
        "shift": float(config.get("shift_factor") or 0.0),
    }
    if kind == "AutoencoderKL":
        own = config.latents_mean is None and config.latents_std is None
        factor = 2 ** (len(config.block_out_channels) - 1)
        return Traits(**common, factor=factor, posterior=True, normalization="scale" if own else "channels")
    factor = 2 ** (len(config.encoder_block_out_channels) - 1)
    back = int(config.get("upsampling_scaling_factor", 2)) ** (len(config.decoder_block_out_channels) - 1)
    if back != factor:
        raise UserError(
            f"autoencoder '{name}': its encoder makes images {factor} times smaller, its decoder {back} times "
            "larger: expected the same, give another"
        )
    return Traits(**common, factor=factor, for_preview=kind == "AutoencoderTiny")


class LatentAutoencoder:
    """An autoencoder of diffusers, or TAEF2, in float32 (some give NaN in float16), and what is done to its latents."""

    def __init__(self, vae: Any, name: str) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.name = name
        self.traits = traits = read_traits(vae, name)
        self.channels, self.factor = traits.channels, traits.factor
        self.normalization: Normalization = Scaling(traits.scale, traits.shift)
        """What `decode` undoes; see `fit_decoder`."""
        self.weights_hash = hash_weights(vae)

    @property
    def identity(self) -> str:
        """What decoded an image, in the words that scores print."""
        return f"{self.name} (weights {self.weights_hash[:12]}, {self.normalization})"

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @torch.inference_mode()
    def moments(self, images: torch.Tensor) -> torch.Tensor:
        """The posterior of images (B, H, W, 3) uint8: (B, 2, C, h, w) float32 on the vae's device.

        Index 0 of the second axis is the mean, 1 the log-variance in [-30, 20]; neither scaled nor shifted. An
        encoder without a posterior gives the latent alone, (B, 1, C, h, w).
        """
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W)
        encoded = self.vae.encode(pixels)[0]
        if not self.traits.posterior:
            return encoded.unsqueeze(1)  # (B, 1, C, h, w)
        return torch.stack([encoded.mean, encoded.logvar], dim=1)  # (B, 2, C, h, w)

    @torch.inference_mode()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) as the diffusion sees them to images (B, H, W, 3) uint8 on the CPU.

        Raises `NotFinite` where the decoder gives NaN or infinity.
        """
        if z.dim() != 4 or z.shape[1] != self.channels:
            raise ValueError(f"z: expected latents (B, {self.channels}, h, w), got {tuple(z.shape)}")
        side = [length * self.factor for length in z.shape[2:]]
        images = torch.empty(len(z), *side, 3, dtype=torch.uint8)
        for start in range(0, len(z), DECODE_CHUNK):
            latents = z[start : start + DECODE_CHUNK].to(self.device, torch.float32)
            pixels = self.vae.decode(self.normalization.undo(latents))[0]
            try:
                images[start : start + DECODE_CHUNK] = to_uint8(pixels)
            except NotFinite as error:
                raise NotFinite(error.what, start + error.place) from None
        return images


Autoencoder = PixelAutoencoder | LatentAutoencoder


def create_autoencoder(name_or_path: str | None, device: torch.device | str) -> Autoencoder:
    """The autoencoder with this hub id or in this folder; None is pixels.

    It decodes latents by the scale and shift of its config; for those of a run see `fit_decoder`. Raises `UserError`
    when it can be neither found nor downloaded, or is none that is known (see gspn_dit/latents/loading.py).
    """
    if name_or_path is None:
        return PixelAutoencoder()
    return LatentAutoencoder(load_vae(str(name_or_path)).to(device), str(name_or_path))


def fit_decoder(autoencoder: Autoencoder, dataset: Mapping[str, Any], *, channels: int, size: int) -> None:
    """Make an autoencoder the decoder of a model's latents; `UserError` where it cannot be.

    Args:
        autoencoder: gets the statistics by which the latents were normalised, if they were.
        dataset: what checkpoints remember of the training set, see `describe_dataset`; older ones of little or nothing.
        channels: of the model.
        size: height and width of the latents trained on.
    """
    check_channels(autoencoder, channels)
    if not isinstance(autoencoder, LatentAutoencoder):
        return
    image_size = dataset.get("image_size", size * autoencoder.factor)
    if size * autoencoder.factor != image_size:
        raise UserError(
            f"the decoder, {autoencoder.identity}, makes latents {autoencoder.factor} times larger; the model's, of "
            f"{size}x{size}, are of images of {image_size}x{image_size}: give another"
        )
    norm = recorded(dataset)
    if norm is not None:
        autoencoder.normalization = norm
        return
    traits = autoencoder.traits
    if traits.normalization == "channels" and not traits.for_preview and "normalization" not in dataset:
        raise UserError(
            f"the decoder, {autoencoder.identity}, is for latents normalised by measured statistics, and the run has "
            "none: give the decoder of the latents that it was trained on"
        )


def check_channels(autoencoder: Autoencoder, channels: int) -> None:
    """Raise `UserError` unless the autoencoder decodes latents, or is for pixels, of this many channels."""
    expected = (1, 3) if isinstance(autoencoder, PixelAutoencoder) else (autoencoder.channels,)
    if channels not in expected:
        of = " or ".join(map(str, expected))
        raise UserError(
            f"the decoder, {autoencoder.identity}, is for {of} channels; the model has {channels}: give another"
        )


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, C, H, W) in [-1, 1], clamped and rounded: (B, H, W, C) uint8 on the CPU.

    Raises `NotFinite`: NaN would become black, and infinity white.
    """
    check_finite(pixels, "its pixels are")
    levels = (pixels.float() + 1).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu()


def hash_weights(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of a module's weights, whatever file format they came in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()
