"""What has to change in the weights themselves: the order of the channels and, for SiT, the direction of time.

Positions are added to the tokens as [column sin, column cos, row sin, row cos] in DiT, and here as [row cos, row sin,
column cos, column sin]: its quarters in reverse. A network whose residual channels are all renumbered in the same way
is the same function, and its norms, which have no weights of their own, do not see it.
"""

import math

import torch

from gspn_dit.models.layers import LONGEST, sinusoids

READERS = ("mixer.attention.to_qkv.weight", "mlp.hidden.weight", "final.proj.weight")
"""What reads the residual stream: its channels are columns."""
WRITERS = ("embed_patches.proj", "mixer.proj_out", "mlp.out", "modulation")
"""What writes it, or scales and shifts it, in one or several parts of the stream's width: its channels are rows."""


def renumber(network: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """The network with the channels of its residual stream in our order.

    The embeddings of t and y, and the columns of the modulations, are the condition's channels, and stay.
    """
    order = reversed_quarters(width)
    return {key: renumber_one(key, tensor, order) for key, tensor in network.items()}


def renumber_one(key: str, tensor: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    if key.endswith(READERS):
        return tensor[:, order]
    if key.rpartition(".")[0].endswith(WRITERS):
        return tensor.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)
    return tensor


def reversed_quarters(width: int) -> torch.Tensor:
    """The place in DiT's stream of each channel of ours, (C,) int64."""
    return torch.arange(width).view(4, -1).flip(0).flatten()


def position_table(grid: int, width: int) -> torch.Tensor:
    """What DiT adds to the tokens of a square grid, row after row: (N * N, C) float64."""
    axis = sinusoids(torch.arange(grid, dtype=torch.float64), width // 2)  # (N, C / 2), cosines first
    cosines, sines = axis.chunk(2, dim=1)
    axis = torch.cat([sines, cosines], dim=1)
    columns, rows = axis.expand(grid, -1, -1), axis.unsqueeze(1).expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)


def to_flow(
    network: dict[str, torch.Tensor], patch: int, channels: int, out_channels: int
) -> dict[str, torch.Tensor]:
    """SiT's network (arXiv 2401.08740) as one of ours.

    Its t runs from 0 (noise) to 1 (data) and its velocity from noise to data; ours the other way. It drops the
    second half of the channels that it predicts, where it has them.
    """
    network = dict(network)
    network["embed_time.hidden.weight"] = reverse_time(network["embed_time.hidden.weight"])
    for key in ("final.proj.weight", "final.proj.bias"):
        parts = network[key].unflatten(0, (patch**2, out_channels))  # rows of a patch are (p, q, channel)
        network[key] = -parts[:, :channels].flatten(0, 1)
    return network


def reverse_time(weight: torch.Tensor) -> torch.Tensor:
    """The layer on the sinusoids of t as one on those of 1 - t, (C, 256).

    cos((1 - t) f) = cos f cos(t f) + sin f sin(t f) and sin((1 - t) f) = sin f cos(t f) - cos f sin(t f).
    """
    half = weight.shape[1] // 2
    f = torch.exp(-math.log(LONGEST) * torch.arange(half, dtype=torch.float64) / half)
    cosines, sines = weight.double().chunk(2, dim=1)
    reversed_ = [cosines * f.cos() + sines * f.sin(), cosines * f.sin() - sines * f.cos()]
    return torch.cat(reversed_, dim=1).to(weight.dtype)
