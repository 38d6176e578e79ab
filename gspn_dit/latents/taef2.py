"""TAEF2: 32 channels at 1/8 of the size, no posterior (Ollin Boer Bohan, MIT).

Two files of weights in one folder, taef2_encoder.pth and taef2_decoder.pth: dictionaries of tensors under the
numbers of the layers below. Widths are read from their shapes.
"""

import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from gspn_dit.errors import UserError
from gspn_dit.files import describe_file

ENCODER, DECODER = "taef2_encoder.pth", "taef2_decoder.pth"
POOL_GROUPS = 4
"""Of the GroupNorm in a pooled branch. No file says it: at 32 groups reconstructions lose 7 dB."""
BOUND = 3.0
"""The decoder's input is bounded smoothly to this, as a safeguard: latents deviate by 0.8 to 0.9."""


class Widths(NamedTuple):
    """Channels: of the latents, of the layers, and of a pooled branch."""

    latent: int
    inner: int
    pool: int


class Bound(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return BOUND * torch.tanh(x / BOUND)


class Block(nn.Module):
    """y = x + pool(x) where there is a pooled branch, else x; relu(conv(y) + y)."""

    def __init__(self, width: int, pool: int | None = None) -> None:
        super().__init__()
        first, second, third = (conv(width, width, bias=True) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.pool = None
        if pool is not None:
            widen, narrow = nn.Conv2d(width, pool, 1, bias=False), nn.Conv2d(pool, width, 1, bias=False)
            self.pool = nn.Sequential(widen, nn.GroupNorm(POOL_GROUPS, pool), nn.ReLU(), narrow)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


def conv(inputs: int, outputs: int, *, bias: bool, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias, stride=stride)


def build_encoder(widths: Widths) -> nn.Sequential:
    """RGB in [0, 1] (B, 3, 8h, 8w) to latents (B, C, h, w)."""
    inner = widths.inner

    def halve() -> nn.Conv2d:
        return conv(inner, inner, bias=False, stride=2)

    return nn.Sequential(
        *(conv(3, inner, bias=True), Block(inner)),
        *(halve(), *(Block(inner) for _ in range(3))),
        *(halve(), *(Block(inner) for _ in range(3))),
        *(halve(), *(Block(inner, widths.pool) for _ in range(3))),
        conv(inner, widths.latent, bias=True),
    )


def build_decoder(widths: Widths) -> nn.Sequential:
    """Latents (B, C, h, w) to RGB in [0, 1], beyond it too (B, 3, 8h, 8w)."""
    inner = widths.inner

    def double() -> tuple[nn.Module, nn.Module]:
        return nn.Upsample(scale_factor=2), conv(inner, inner, bias=False)

    return nn.Sequential(
        *(Bound(), conv(widths.latent, inner, bias=True), nn.ReLU()),
        *(*(Block(inner, widths.pool) for _ in range(3)), *double()),
        *(*(Block(inner) for _ in range(3)), *double()),
        *(*(Block(inner) for _ in range(3)), *double()),
        *(Block(inner), conv(inner, 3, bias=True)),
    )


class TAEF2(nn.Module):
    """Encoder and decoder with the calls of diffusers' autoencoders; pixels (B, 3, H, W) are in [-1, 1]."""

    factor = 8

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.channels = widths.latent
        self.encoder, self.decoder = build_encoder(widths), build_decoder(widths)

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        """Latents (B, C, H/8, W/8), in a tuple of one."""
        return (self.encoder((pixels + 1) / 2),)

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor]:
        """Pixels (B, 3, 8h, 8w) of latents (B, C, h, w), in a tuple of one."""
        return (self.decoder(z) * 2 - 1,)


def is_taef2(folder: Path) -> bool:
    """Whether a folder holds a file of TAEF2's."""
    return (folder / ENCODER).exists() or (folder / DECODER).exists()


def load_taef2(folder: Path) -> TAEF2:
    """TAEF2 in float32 from the folder of its two files; `UserError` that names the file, and what is wrong with it."""
    encoder, decoder = read_tensors(folder / ENCODER), read_tensors(folder / DECODER)
    model = TAEF2(read_widths(folder / ENCODER, encoder))
    fill(model.encoder, encoder, folder / ENCODER)
    fill(model.decoder, decoder, folder / DECODER)
    return model


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a .pth, by name; no other object of a pickle is made."""
    if not path.is_file():
        raise UserError(
            f"autoencoder TAEF2: {path} is missing: expected {ENCODER} and {DECODER} in one folder"
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise UserError(
            f"autoencoder TAEF2: {path} cannot be read ({describe_file(path)}); expected tensors by name, as "
            "torch.save writes them: download it again"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
        raise UserError(f"autoencoder TAEF2: {path} holds no dictionary of tensors: download it again")
    return tensors


def read_widths(path: Path, encoder: dict[str, torch.Tensor]) -> Widths:
    """The widths that the encoder's shapes tell."""
    try:
        names = ("14.weight", "0.weight", "11.pool.0.weight")
        return Widths(*(int(encoder[name].shape[0]) for name in names))
    except (KeyError, IndexError) as error:
        raise UserError(f"autoencoder TAEF2: {path} has no {error.args[0]}: it is another model's") from error


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights; `UserError` at the first that is missing, of another shape, or not known."""
    expected = module.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        shapes = (tuple(side[name].shape) if name in side else "none" for side in (tensors, expected))
        found, wanted = shapes
        if found != wanted:
            raise UserError(
                f"autoencoder TAEF2: {path} is another model's: for {name} it has {found}, expected {wanted}"
            )
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
