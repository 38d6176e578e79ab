"""What a UNet and a decoder need of memory at a size, computed on fake tensors, which have shapes but no data."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from gspn_dit.latents.autoencoder import LatentAutoencoder
from gspn_dit.text_to_image.system import System

GB = 1e9


def unet_peak(
    kind: type[UNet2DConditionModel], config: Any, height: int, width: int, *, bf16: bool, words: int = 77
) -> dict[str, float]:
    """Bytes of the weights, and the peak of one forward without gradients, weights included; of one image.

    Args:
        kind, config: the UNet's class and config.
        height, width: of what the UNet sees.
        words: tokens of a caption.
    """
    with FakeTensorMode(), torch.no_grad():
        unet = kind.from_config(config).eval()
        arguments: dict[str, Any] = {
            "encoder_hidden_states": torch.empty(1, words, config["cross_attention_dim"])
        }
        if config["addition_embed_type"] == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            arguments["added_cond_kwargs"] = {
                "text_embeds": torch.empty(1, pooled),
                "time_ids": torch.empty(1, 6),
            }
        x = torch.empty(1, config["in_channels"], height, width)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            peak = tracked(unet, lambda: unet(x, torch.zeros(1), **arguments, return_dict=False))
        return {"weights": sum(p.numel() * p.element_size() for p in unet.parameters()), "peak": peak}


def tracked(module: torch.nn.Module, run: Any) -> float:
    """Peak of the bytes held while `run` runs, the module's weights included."""
    tracker = MemTracker()
    tracker.track_external(module)
    with tracker:
        run()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return float(peak["Total"])


def decoder_peak(system: System, height: int, width: int) -> float:
    """Bytes of decoding a picture (height, width) in pixels: one tile's activations, its weights, and the pixels.

    The pixels are held three times in float32: as tiles, blended, and joined.
    """
    pixels = 3 * 3 * 4 * height * width
    if not isinstance(system.autoencoder, LatentAutoencoder):
        return pixels
    vae = system.autoencoder.vae
    tile = getattr(vae, "tile_latent_min_size", None) or max(height, width)
    sides = [min(tile, side // system.factor) for side in (height, width)]
    with FakeTensorMode(), torch.no_grad():
        fake = type(vae).from_config(vae.config).eval()
        z = torch.empty(1, system.autoencoder.channels, *sides)
        return pixels + tracked(fake, lambda: fake.decode(z))


def needed(system: System, height: int, width: int, *, bf16: bool) -> dict[str, float]:
    """GB of a picture (height, width) in pixels: weights, the UNet's peak and the decoder's beside those weights."""
    sides = (height // system.factor, width // system.factor)
    unet = unet_peak(type(system.unet), system.unet.config, *sides, bf16=bf16)
    return {
        "weights": unet["weights"] / GB,
        "unet": unet["peak"] / GB,
        "decoder": (unet["weights"] + decoder_peak(system, height, width)) / GB,
    }
