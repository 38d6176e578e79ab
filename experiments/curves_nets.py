"""The networks of the study of curves: one small isotropic classifier, of which only what mixes the tokens varies."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from experiments.curves_task import CHANNELS, MARKS
from gspn_dit.classification.backbone import EPS
from gspn_dit.models.basics import fan_in_normal_, zero_
from gspn_dit.models.layers import MLP, PositionEmbedding
from gspn_dit.models.line_scan import LineScan
from gspn_dit.models.mixers import DepthwiseConv, SelfAttention, TokenConv
from gspn_dit.models.settings import resolve_settings

PATCH = 2
"""Pixels from one token to the next: the stride of the first convolution."""
BORDER = 1
"""Pixels around its patch that a token sees in that convolution, of 4x4: whether a curve goes on beyond the patch."""
SPARSE = 3.0
"""Gain of that convolution's weights at the start: of its pixels only one in ten or so is set."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What describes a network."""

    core: Literal["lines", "identity", "attention", "none"]
    """What mixes tokens besides the convolution: the line scan; the same left out, h = lam x; attention; nothing."""
    width: int
    depth: int
    hidden: int
    """Width of an MLP's inside."""
    kernel: int = 3
    """Of each block's depthwise convolution."""
    rank: int = 16
    """Of the bottleneck from which a scan's maps are projected."""
    groups: int = 8
    """Propagation maps of a direction."""
    heads: int = 4
    segment: int = 0
    """Lines after which a scan starts anew; 0 for whole lines."""
    global_blocks: int = 0
    """Blocks, the last ones, that scan whole lines whatever `segment` is."""
    normalization: Literal["row_stochastic", "sigmoid"] = "row_stochastic"

    def segment_of(self, block: int) -> int:
        return 0 if block >= self.depth - self.global_blocks else self.segment


class Mixer(nn.Module):
    """That of the ImageNet backbone at the width of the tokens: 1x1, depthwise convolution, core, norm, 1x1.

    Its response norm is left out. It carries a number for each channel across the picture, and what is asked here is
    what the core carries.
    """

    def __init__(self, network: Network, segment: int) -> None:
        super().__init__()
        width = network.width
        self.proj_in = nn.Linear(width, width, bias=False)
        self.conv = DepthwiseConv(width, network.kernel, bias=False)
        self.core = create_core(network, segment)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.proj_out = nn.Linear(width, width, bias=False)

    def initialize_weights(self) -> None:
        fan_in_normal_(self.proj_in.weight)
        self.conv.draw_weights("identity")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj_out(self.norm(self.core(self.conv(self.proj_in(x)))))  # (B, H, W, C)


def create_core(network: Network, segment: int) -> nn.Module:
    """What is between a mixer's convolution and its norm, (B, H, W, C) -> (B, H, W, C)."""
    if network.core == "none":
        return nn.GELU()
    if network.core == "attention":
        return SelfAttention(network.width, network.heads)
    settings = resolve_settings(
        "GSPN-S/2",  # its scan has the backbone's gates and merge
        width=network.width,
        bottleneck=network.rank,
        groups=network.groups,
        direction_skip=True,
        scan=network.core,
        normalization=network.normalization,
    )
    return LineScan(settings, segment)


class Block(nn.Module):
    """Mixer and MLP, each after a norm and before a residual sum."""

    def __init__(self, network: Network, segment: int) -> None:
        super().__init__()
        self.norm_mixer = nn.LayerNorm(network.width, eps=EPS)
        self.mixer = Mixer(network, segment)
        self.norm_mlp = nn.LayerNorm(network.width, eps=EPS)
        self.mlp = MLP(network.width, network.hidden, approximate="none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(self.norm_mixer(x))
        return x + self.mlp(self.norm_mlp(x))  # (B, H, W, C)


class Classifier(nn.Module):
    """Pictures (B, 2, S, S) to the logit (B,) of "one curve": patches, blocks on one grid, norm, read-out.

    What is read out is the mean of all tokens beside that of the two that hold a mark: a network may bring the two
    ends' news together anywhere, or all the way to a mark. A second head answers at every token.
    """

    def __init__(self, network: Network, size: int) -> None:
        super().__init__()
        width = network.width
        self.network = network
        self.stem = TokenConv(CHANNELS, width, PATCH + 2 * BORDER, stride=PATCH, padding=BORDER)
        attends = network.core == "attention"
        self.position = PositionEmbedding("sincos", size // PATCH, width) if attends else nn.Identity()
        self.blocks = nn.Sequential(
            *(Block(network, network.segment_of(number)) for number in range(network.depth))
        )
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(2 * width, 1)
        self.count = nn.Linear(width, MARKS + 1)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """As the backbone's: unit variance in, unit variance out, and every residual branch at zero."""
        for module in self.modules():
            if module is not self and hasattr(module, "initialize_weights"):
                module.initialize_weights()
        for module in self.modules():
            if isinstance(module, Block):
                zero_(module.mixer.proj_out)
                zero_(module.mlp.out)
        # Most of a picture is empty. Without a bias the tokens there were zero, and the gradient of their norm 1 / EPS.
        fan_in_normal_(self.stem.weight, gain=SPARSE)
        nn.init.normal_(self.stem.bias)
        for head in (self.head, self.count):
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """The last block's tokens (B, S / 2, S / 2, C)."""
        x = x.to(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return self.blocks(self.position(self.stem(x)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logit (B,), and those of 0, 1 and 2 marks on the curve of every token (B, S / 2, S / 2, 3)."""
        tokens = self.norm(self.tokens(x))
        marked = F.max_pool2d(x[:, 1], PATCH).flatten(1).unsqueeze(1)  # (B, 1, N)
        at_marks = (marked @ tokens.flatten(1, 2) / marked.sum(2, keepdim=True)).squeeze(1)  # (B, C)
        read = torch.cat([tokens.mean((1, 2)), at_marks], dim=1)
        return self.head(read).squeeze(1), self.count(tokens)


def reach(network: Network, size: int) -> int | None:
    """Pixels in each direction, beyond its patch, that a token of the last block can see; None for all of a picture.

    Four scans of whole lines see everything: those along the rows and the columns within 45 degrees of the direction
    of travel, which is all of the plane.
    """
    tokens = network.depth * (network.kernel // 2)
    if network.core == "attention":
        return None
    if network.core == "lines":
        segments = [network.segment_of(block) for block in range(network.depth)]
        if 0 in segments:
            return None
        tokens += sum(segment - 1 for segment in segments)
    pixels = BORDER + PATCH * tokens
    return None if pixels >= size - PATCH else pixels


@cache
def count_parameters(network: Network, size: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Classifier(network, size).parameters())
