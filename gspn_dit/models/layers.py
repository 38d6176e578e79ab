"""What the families share besides the mixer: embeddings, the DiT block's MLP and the final layer."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from gspn_dit.models.basics import modulate, normalize, xavier_

LONGEST = 10_000
"""Longest wavelength of the sinusoids, over 2 pi."""


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of an image, each projected to a token."""

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size**2 * in_channels, width)

    def initialize_weights(self) -> None:
        xavier_(self.proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.patch_size
        return self.proj(rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=p, q=p))  # (B, H/p, W/p, C)


class PositionEmbedding(nn.Module):
    """Adds an embedding of the place in the grid: fixed sines and cosines, or learned."""

    def __init__(self, kind: str, grid: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        table = torch.empty(grid, grid, width)
        if kind == "learned":
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=False)

    def initialize_weights(self) -> None:
        if self.kind == "learned":
            nn.init.normal_(self.table, std=0.02)
        elif not self.table.is_meta:
            grid, _, width = self.table.shape
            axis = sinusoids(torch.arange(grid, dtype=torch.float64), width // 2)  # (N, C / 2)
            self.table[..., : width // 2] = axis.unsqueeze(1)
            self.table[..., width // 2 :] = axis.unsqueeze(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table.to(x.dtype)  # (B, H, W, C)


class TimestepEmbedding(nn.Module):
    """Sinusoids of t through a two-layer MLP."""

    frequencies = 256

    def __init__(self, width: int, scale: float, spacing: str) -> None:
        super().__init__()
        self.scale, self.spacing = scale, spacing
        self.hidden = nn.Linear(self.frequencies, width)
        self.out = nn.Linear(width, width)

    def initialize_weights(self) -> None:
        for layer in (self.hidden, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        waves = sinusoids(t.float() * self.scale, self.frequencies, self.spacing)  # (B, 256)
        return self.out(F.silu(self.hidden(waves.to(self.hidden.weight.dtype))))  # (B, C)


class LabelEmbedding(nn.Embedding):
    """A vector per class, and one more, the last, for the null label of classifier-free guidance."""

    def __init__(self, num_classes: int, width: int, std: float) -> None:
        super().__init__(num_classes + 1, width)
        self.std = std

    def initialize_weights(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


class MLP(nn.Module):
    """Two layers with GELU between: by tanh as in DiT, or exact ("none")."""

    def __init__(self, width: int, hidden: int, approximate: str = "tanh") -> None:
        super().__init__()
        self.approximate = approximate
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def initialize_weights(self) -> None:
        xavier_(self.hidden)
        xavier_(self.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.hidden(x), approximate=self.approximate))  # (B, H, W, C)


class SwiGLU(nn.Module):
    """MLP gated by SiLU (arXiv 2002.05202): two thirds of the hidden width of `MLP`, for the same parameters."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = max(8 * round(hidden * 2 / 3 / 8), 8)  # matrix units want multiples of 8
        self.hidden = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def initialize_weights(self) -> None:
        xavier_(self.hidden)
        xavier_(self.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.hidden(x).chunk(2, dim=-1)  # (B, H, W, hidden)
        return self.out(F.silu(gate) * value)  # (B, H, W, C)


MLPS = {"gelu": MLP, "swiglu": SwiGLU}


class FinalLayer(nn.Module):
    """Tokens to image: adaptive norm, a projection to patches, and the patches put in their places."""

    def __init__(self, patch_size: int, width: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.patch_size, self.norm = patch_size, norm
        self.modulation = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, patch_size**2 * out_channels)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.modulation(condition)[:, None, None].chunk(2, dim=-1)  # (B, 1, 1, C)
        x = self.proj(modulate(normalize(x, self.norm), shift, scale))  # (B, H/p, W/p, p * p * out)
        p = self.patch_size
        return rearrange(x, "b h w (p q c) -> b c (h p) (w q)", p=p, q=p)  # (B, out, H, W)


def sinusoids(values: torch.Tensor, width: int, spacing: str = "open") -> torch.Tensor:
    """Cosines then sines (N, width) of values (N,), width / 2 frequencies in equal ratios from 1 to `LONGEST`^-1.

    The last is left out by spacing "open", and among them by "closed".
    """
    half = width // 2
    count = half if spacing == "open" else half - 1
    exponents = torch.arange(half, dtype=values.dtype, device=values.device) / count
    angles = values.unsqueeze(1) * torch.exp(-math.log(LONGEST) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
