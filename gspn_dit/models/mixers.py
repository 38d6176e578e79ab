"""Token mixers: what moves information between the tokens of an image.

All have one interface, (B, H, W, C) -> (B, H, W, C), channels last: projections, the scan and attention take
tokens in that order, and a depthwise convolution sees the same memory as a `channels_last` image. Nothing is
permuted.
"""

import torch
import torch.nn.functional as F
from torch import nn

from gspn_dit.models.basics import fan_in_normal_, normalize, relu_squared, xavier_
from gspn_dit.models.settings import ModelSettings
from ops import gated_merge, gspn_scan

DIRECTIONS = ("right", "left", "down", "up")


def create_mixer(settings: ModelSettings, segment: int | None) -> nn.Module:
    """The mixer that `settings` ask for; `segment` is that of the block's scan, None for attention."""
    if settings.mixer == "attention":
        return AttentionMixer(settings.width, settings.heads)
    if settings.mixer == "conv_attention":
        return GatedConvMixer(settings.width, SelfAttention(settings.width, settings.heads))
    return GatedConvMixer(settings.width, LineScan(settings, segment))


class GatedConvMixer(nn.Module):
    """The GSPN module: convolution and gate around a `core`, the line scan in the paper (arXiv 2501.12381).

    1x1, depthwise 7x7, core, norm, 1x1, depthwise 3x3, gate x * relu(x), 1x1. The norm has no weights and is
    not in the paper: a line scan is of degree three in its input and the gate squares it, and a module of
    degree six has outputs with heavy tails, on which training is slow.
    """

    def __init__(self, width: int, core: nn.Module) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, width, bias=False)
        self.conv_in = DepthwiseConv(width, kernel_size=7, bias=True)
        self.core = core
        self.proj_mid = nn.Linear(width, width, bias=False)
        self.conv_mid = DepthwiseConv(width, kernel_size=3, bias=False)
        self.proj_out = nn.Linear(width, width, bias=False)

    def initialize_weights(self) -> None:
        """Unit variance in, unit variance out, in every layer before the gate."""
        for layer in (self.proj_in, self.conv_in, self.proj_mid, self.conv_mid, self.proj_out):
            fan_in_normal_(layer.weight)
        nn.init.zeros_(self.conv_in.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(self.proj_in(x))  # (B, H, W, C)
        x = self.conv_mid(self.proj_mid(normalize(self.core(x))))  # (B, H, W, C)
        return self.proj_out(relu_squared(x))


class LineScan(nn.Module):
    """Scan x along four directions, read each with its own gate, and merge: sum_k m_k u_k * h_k.

    The input gain lam, the read-out gate u and the propagation logits are projected from a bottleneck.
    """

    def __init__(self, settings: ModelSettings, segment: int) -> None:
        super().__init__()
        width, rank = settings.width, settings.bottleneck
        self.width, self.groups, self.segment = width, settings.groups, segment
        self.normalization = settings.normalization
        self.bottleneck = nn.Linear(width, rank, bias=False)
        # One projection per map, not one that is split: so each map is contiguous, as the scan needs it.
        self.to_lam = _direction_maps(rank, width)
        self.to_u = _direction_maps(rank, width)
        self.to_logits = _direction_maps(rank, 3 * settings.groups) if settings.scan == "lines" else None
        self.to_skip = _direction_maps(rank, width) if settings.direction_skip else None
        self.merge_linear = self.merge_weight = None
        if settings.merge == "linear":
            self.merge_linear = nn.Linear(len(DIRECTIONS) * width, width, bias=False)
        else:
            channels = 1 if settings.merge == "scalar" else width
            self.merge_weight = nn.Parameter(torch.empty(len(DIRECTIONS), channels))

    def initialize_weights(self) -> None:
        """Gates of unit variance; logits near zero, where a scan starts as an even spread to all neighbours.

        At logits of zero each neighbour has the same weight, so no direction of travel is preferred, the
        reach grows with the lines crossed, and the sigmoid is at its steepest, free to move either way. The
        tenth of unit scale breaks the symmetry between groups.
        """
        for layer in (self.bottleneck, self.to_lam, self.to_u, self.to_skip, self.merge_linear):
            if layer is not None:
                fan_in_normal_(layer.weight)
        if self.to_logits is not None:
            fan_in_normal_(self.to_logits.weight, gain=0.1)
        if self.merge_weight is not None:
            nn.init.constant_(self.merge_weight, len(DIRECTIONS) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.bottleneck(x)  # (B, H, W, R)
        lam = self._maps(z, self.to_lam.weight)  # (B, H, W, K, C)
        h, u = self._scan(x, lam, z), self._maps(z, self._weighted(self.to_u))  # (B, H, W, K, C)
        if self.merge_linear is not None:
            maps = u * h
            if self.to_skip is not None:
                maps = maps + self._maps(z, self.to_skip.weight) * x.unsqueeze(3)
            return self.merge_linear(maps.flatten(3))
        y = gated_merge(h, u)  # (B, H, W, C)
        if self.to_skip is None:
            return y
        # All directions have the same x, so their gates are added up first, and that in the weights.
        skip = F.linear(z, self._weighted(self.to_skip).unflatten(0, (-1, self.width)).sum(0))
        return torch.addcmul(y, skip, x)

    def _scan(self, x: torch.Tensor, lam: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        if self.to_logits is None:
            return lam * x.unsqueeze(3)
        logits = self.to_logits(z).unflatten(-1, (-1, 3, self.groups))  # (B, H, W, K, 3, G)
        return gspn_scan(x, lam, logits, DIRECTIONS, self.segment, self.normalization)

    def _maps(self, z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(B, H, W, R) -> (B, H, W, K, C)"""
        return F.linear(z, weight).unflatten(-1, (-1, self.width))

    def _weighted(self, projection: nn.Linear) -> torch.Tensor:
        """A projection's weight (K * C, R) that carries the merge weights, spared from a pass over the maps."""
        weight = projection.weight
        if self.merge_weight is None:
            return weight
        return (weight.unflatten(0, (-1, self.width)) * self.merge_weight.unsqueeze(2)).flatten(0, 1)


def _direction_maps(rank: int, channels: int) -> nn.Linear:
    """Projects the bottleneck to `channels` for each direction."""
    return nn.Linear(rank, len(DIRECTIONS) * channels, bias=False)


class SelfAttention(nn.Module):
    """Multi-head softmax attention among all tokens, without its output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)

    def initialize_weights(self) -> None:
        xavier_(self.to_qkv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.to_qkv(x).flatten(1, 2)  # (B, N, 3 * C)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(
            2, 0, 3, 1, 4
        )  # each (B, heads, N, C / heads)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (B, N, heads, C / heads)
        return out.reshape(x.shape)


class AttentionMixer(nn.Module):
    """The mixer of DiT (arXiv 2212.09748): attention and its output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.proj_out = nn.Linear(width, width)

    def initialize_weights(self) -> None:
        xavier_(self.proj_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj_out(self.attention(x))  # (B, H, W, C)


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution over channels-last tokens (B, H, W, C), zero-padded to the same size."""

    def __init__(self, width: int, kernel_size: int, bias: bool) -> None:
        super().__init__(width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # views of channels_last memory
