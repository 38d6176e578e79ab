"""Between images and what the diffusion sees: diffusers' AutoencoderKL, or pixels as they are.

The wrapper owns the scaling factor and the shift, which AutoencoderKL itself applies nowhere:
diffusion sees `(z - shift) * scale`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from gspn_dit.checks import NotFinite, check_finite, not_finite
from gspn_dit.errors import UserError
from gspn_dit.files import describe_file, require_home
from gspn_dit.models.weights import HUB_CACHES
from gspn_dit.names import utf8_path

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


class LatentAutoencoder:
    """diffusers' AutoencoderKL in float32 (it gives NaN in float16), with its scaling factor and shift."""

    def __init__(self, vae: Any, name: str) -> None:
        config = vae.config
        self.vae = vae.eval().requires_grad_(False)
        self.name = name
        self.scale = float(config.scaling_factor)
        self.shift = float(config.shift_factor or 0.0)
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.weights_hash = hash_weights(vae)

    @property
    def identity(self) -> str:
        """What decoded an image, in the words that scores print."""
        return f"{self.name} (weights {self.weights_hash[:12]}, scale {self.scale:g}, shift {self.shift:g})"

    @torch.inference_mode()
    def moments(self, images: torch.Tensor) -> torch.Tensor:
        """The posterior of images (B, H, W, 3) uint8: (B, 2, C, h, w) float32 on the vae's device.

        Index 0 of the second axis is the mean, 1 the log-variance in [-30, 20]; neither scaled nor shifted.
        """
        pixels = images.to(self.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W)
        posterior = self.vae.encode(pixels).latent_dist
        return torch.stack([posterior.mean, posterior.logvar], dim=1)  # (B, 2, C, h, w)

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
            latents = z[start : start + DECODE_CHUNK].to(self.vae.device, torch.float32)
            pixels = self.vae.decode(latents / self.scale + self.shift).sample
            try:
                images[start : start + DECODE_CHUNK] = to_uint8(pixels)
            except NotFinite as error:
                raise NotFinite(error.what, start + error.place) from None
        return images


Autoencoder = PixelAutoencoder | LatentAutoencoder


def create_autoencoder(name_or_path: str | None, device: torch.device | str) -> Autoencoder:
    """The autoencoder with this hub id or in this folder (diffusers' format); None is pixels.

    Raises `UserError` when it can be neither found nor downloaded, or is no AutoencoderKL.
    """
    if name_or_path is None:
        return PixelAutoencoder()
    return LatentAutoencoder(load_vae(str(name_or_path)).to(device), str(name_or_path))


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


def load_vae(name: str) -> Any:
    """AutoencoderKL from a folder, the hub's cache, or the hub, in that order."""
    # Speed: a second to import, and a decoder in a folder needs none of it.
    from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError

    if Path(name).is_dir():
        return load_files(name, name)
    if Path(name).exists():
        raise UserError(
            f"autoencoder '{name}' is {describe_file(name)}; expected the folder that AutoencoderKL.save_pretrained "
            "writes, or a hub id"
        )
    try:
        return load_files(find_on_hub(name), name)
    except GatedRepoError as error:
        raise UserError(
            f"autoencoder '{name}' needs access: accept its terms on the hub and log in by `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"autoencoder '{name}' is neither a folder nor a model on the hub: give a folder saved by "
            "save_pretrained or a hub id such as stabilityai/sd-vae-ft-ema"
        ) from error
    except (OSError, HTTPError) as error:
        raise UserError(
            f"autoencoder '{name}' is no folder here, not in the hub's cache, and cannot be downloaded "
            f"({first_line(error)}): give a local folder, or run `hf download {name}` with a network"
        ) from error


def find_on_hub(name: str) -> str:
    """The folder of a hub model's files, downloaded unless cached.

    One question is asked of the hub before any download: without a network it fails at once, a download only
    after half a minute of retries.
    """
    # Speed: as above.
    from huggingface_hub import HfApi, snapshot_download

    require_home(*HUB_CACHES)
    files = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    try:
        folder = snapshot_download(name, allow_patterns=files, local_files_only=True)
        if any((Path(folder) / weights).exists() for weights in files[1:]):
            return folder
    except FileNotFoundError:
        pass
    present = {sibling.rfilename for sibling in HfApi().model_info(name, timeout=10).siblings or ()}
    wanted = [file for file in files if file in present]
    return snapshot_download(name, allow_patterns=wanted[:2])


def load_files(folder: str, name: str) -> Any:
    """AutoencoderKL from a folder in diffusers' format; every weight must be there."""
    check_class(Path(folder), name)
    # Speed: diffusers takes seconds, and runs on pixels never ask for it.
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError

    try:
        with utf8_path(folder) as path:
            vae, report = AutoencoderKL.from_pretrained(
                path, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"autoencoder '{name}' cannot be read: {first_line(error)}; save or download it again"
        ) from error
    if report["missing_keys"]:
        raise UserError(
            f"autoencoder '{name}' lacks the weight {report['missing_keys'][0]}; save or download it again"
        )
    broken = not_finite(vae.state_dict())
    if broken:
        raise UserError(f"autoencoder '{name}': {broken} is not finite; save or download it again")
    if vae.config.latents_mean is not None or vae.config.latents_std is not None:
        raise UserError(
            f"autoencoder '{name}' normalises latents per channel (latents_mean, latents_std), which is not "
            "supported: take one with a scaling_factor"
        )
    return vae


def check_class(folder: Path, name: str) -> None:
    """Raise `UserError` unless the folder's config.json is an AutoencoderKL's."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"autoencoder '{name}' has no readable config.json: expected a folder saved by "
            "AutoencoderKL.save_pretrained (in a pipeline's folder it is the subfolder vae)"
        ) from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "AutoencoderKL":
        raise UserError(f"autoencoder '{name}' is a {kind}: expected an AutoencoderKL")


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
