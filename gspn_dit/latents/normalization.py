"""From an autoencoder's latents z to the x of the diffusion, and back: one scale for all channels, or each its own.

What a run did to its latents is in the `dataset` of its checkpoints' state.json (see `record`), so that sampling
needs no folder of latents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gspn_dit.errors import UserError
from gspn_dit.files import content_key

Kind = Literal["scale", "channels"]


@dataclass(frozen=True)
class Scaling:
    """x = (z - shift) * scale, by the numbers in an autoencoder's config."""

    scale: float
    shift: float

    def apply_(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., C, h, w) to x, in place."""
        return z.sub_(self.shift).mul_(self.scale)

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., C, h, w) to z."""
        return x / self.scale + self.shift

    def __str__(self) -> str:
        return f"scale {self.scale:g}, shift {self.shift:g}"


@dataclass(frozen=True)
class ChannelNorm:
    """x = (z - mean) / std, by the statistics (C,) of every channel over the latents trained on."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply_(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., C, h, w) to x, in place."""
        return z.sub_(per_channel(self.mean, z)).div_(per_channel(self.std, z))

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., C, h, w) to z."""
        return x * per_channel(self.std, x) + per_channel(self.mean, x)

    def __str__(self) -> str:
        numbers = content_key([repr((self.mean, self.std)).encode()])
        return f"per-channel statistics {numbers[:12]}"


Normalization = Scaling | ChannelNorm


def per_channel(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Values (C,) as (C, 1, 1), with dtype and device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def channel_norm(mean: Any, std: Any, channels: int, where: str, remedy: str) -> ChannelNorm:
    """Statistics as read from a file, checked; `UserError` that says where they are, and what to do."""
    for name, values in (("channel_mean", mean), ("channel_std", std)):
        if values is None:
            raise UserError(f"{where}: no {name}, by which its latents are normalised: {remedy}")
        numbers = isinstance(values, list | tuple) and all(isinstance(v, float | int) for v in values)
        if not numbers or len(values) != channels:
            raise UserError(f"{where}: {name} is not {channels} numbers, one for each channel: {remedy}")
        for channel, value in enumerate(values):
            if not math.isfinite(value) or (name == "channel_std" and value <= 0):
                raise UserError(
                    f"{where}: {name} of channel {channel} is {value:g}, which normalises nothing: {remedy}"
                )
    return ChannelNorm(tuple(map(float, mean)), tuple(map(float, std)))


def record(normalization: Normalization, usual: Kind) -> dict[str, Any]:
    """What a checkpoint keeps; nothing of a scale where that is the usual, which is in the decoder's own config."""
    if isinstance(normalization, Scaling):
        return {} if usual == "scale" else {"normalization": "scale"}
    return {
        "normalization": "channels",
        "channel_mean": list(normalization.mean),
        "channel_std": list(normalization.std),
    }


MADE_WITH = ("weights_hash", "scale", "shift")
"""What a checkpoint remembers of how its latents were made, beside their statistics."""


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """How the latents that two checkpoints remember differ, in words; None where they do not, as far as both know."""
    for key in MADE_WITH:
        if key in theirs and key in ours and theirs[key] != ours[key]:
            return f"on latents made otherwise ({key} {theirs[key]!s:.12}, not {ours[key]!s:.12})"
    return None if recorded(theirs) == recorded(ours) else "on latents normalised otherwise"


def recorded(dataset: Mapping[str, Any]) -> ChannelNorm | None:
    """The statistics in what a checkpoint remembers of its data; None where it was scaled.

    Raises `UserError` when they should be there and are not.
    """
    if dataset.get("normalization") != "channels":
        return None
    remedy = "take a whole checkpoint of the run"
    mean, std = dataset.get("channel_mean"), dataset.get("channel_std")
    return channel_norm(mean, std, dataset["channels"], "the run's state.json", remedy)
