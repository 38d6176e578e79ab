"""The module that stands where a UNet had self-attention: the line scan between the tokens of one image."""

import torch
import torch.nn.functional as F
from torch import nn

from gspn_dit.models.basics import fan_in_normal_
from gspn_dit.models.line_scan import DIRECTIONS
from ops import gated_merge, gspn_scan

WHOLE = 2**26
"""Numbers in an input from which on, without gradients, the directions are scanned one after another: four times the
time of a launch, a quarter of the memory of the maps."""


class ScanAttention(nn.Module):
    """Self-attention's place and call, filled by the line scan (arXiv 2501.12381, text-to-image).

        y = sum_k m_k (u_k h_k + d_k v),  h_k = the scan of v along direction k with gain lam_k and logits l_k,

    all maps projected from a bottleneck of width `rank`, without biases, and m four numbers; what follows is
    attention's own output projection. Without q, k and v: the maps come from z(x), and v = x. With them (SDXL): lam
    from z(x + K x), u from z(x + Q x), logits and d from z(x), and v = x + V x. That d is from z(x) and multiplies v is
    this code's choice: the source says it of a core that has one input only.
    """

    def __init__(
        self,
        width: int,
        rank: int,
        segment: int,
        to_out: nn.ModuleList,
        qkv: tuple[nn.Module, nn.Module, nn.Module] | None = None,
    ) -> None:
        """`to_out` and `qkv` are attention's own projections (C to C); `segment` is in lines of the token grid."""
        super().__init__()
        self.width, self.rank, self.segment = width, rank, segment
        self.keeps_qkv = qkv is not None
        if qkv is not None:
            self.to_q, self.to_k, self.to_v = qkv
        maps = len(DIRECTIONS) * width
        self.bottleneck = nn.Linear(width, rank, bias=False)
        self.to_lam = nn.Linear(rank, maps, bias=False)
        self.to_u = nn.Linear(rank, maps, bias=False)
        self.to_logits = nn.Linear(rank, 3 * maps, bias=False)
        self.to_skip = nn.Linear(rank, maps, bias=False)
        self.merge = nn.Parameter(torch.empty(len(DIRECTIONS)))
        self.to_out = to_out
        self.initialize_weights()

    def new_modules(self) -> list[nn.Module]:
        """The projections that attention had not."""
        return [self.bottleneck, self.to_lam, self.to_u, self.to_logits, self.to_skip]

    def initialize_weights(self) -> None:
        """As in `LineScan.initialize_weights`, but for what is read out, which is a tenth of that.

        Attention's outputs, means over many tokens, are small: so a distillation begins near none at all, not far
        beyond them.
        """
        for layer in (self.bottleneck, self.to_lam):
            fan_in_normal_(layer.weight)
        for layer in (self.to_u, self.to_skip):
            fan_in_normal_(layer.weight, gain=0.1)
        fan_in_normal_(self.to_logits.weight, gain=0.1)
        nn.init.constant_(self.merge, len(DIRECTIONS) ** -0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor:
        """Tokens (B, H W, C), row after row, to (B, H W, C).

        Args:
            attention_mask: (H, W, 0), the token grid: see `replacement.carry_grid`.

        Raises:
            ValueError: there is no grid, or one of another number of tokens.
        """
        if attention_mask is None or attention_mask.dim() != 3 or attention_mask.shape[2] != 0:
            raise ValueError(
                "attention_mask holds no token grid (H, W, 0): call the module through its Transformer2DModel, and "
                "give the UNet no attention_mask, which the scan has no use for"
            )
        height, width = attention_mask.shape[:2]
        if height * width != hidden_states.shape[1]:
            raise ValueError(
                f"hidden_states has {hidden_states.shape[1]} tokens; expected {height} x {width} of the grid"
            )
        y = self.mix(hidden_states.unflatten(1, (height, width)))
        for layer in self.to_out:  # a projection and a dropout
            y = layer(y)
        return y.flatten(1, 2)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        """What the tokens x (B, H, W, C) get from one another, (B, H, W, C), before the output projection."""
        z = z_lam = z_u = self.bottleneck(x)  # (B, H, W, R)
        values = x
        if self.keeps_qkv:
            z_lam, z_u = self.bottleneck(x + self.to_k(x)), self.bottleneck(x + self.to_q(x))
            values = x + self.to_v(x)
        merge = self.merge[:, None, None]  # (K, 1, 1)
        lam, logits = by_direction(self.to_lam), by_direction(self.to_logits)
        # m_k joins the weights of u and d, and d_k their sum, which spares passes over maps.
        u, skip = by_direction(self.to_u) * merge, (by_direction(self.to_skip) * merge).sum(0)
        y = F.linear(z, skip) * values
        at_once = len(DIRECTIONS) if torch.is_grad_enabled() or x.numel() < WHOLE else 1
        for first in range(0, len(DIRECTIONS), at_once):
            part = slice(first, first + at_once)
            line_logits = project(z, logits[part]).unflatten(-1, (3, -1))  # (B, H, W, k, 3, C)
            h = gspn_scan(values, project(z_lam, lam[part]), line_logits, DIRECTIONS[part], self.segment)
            y = y + gated_merge(h, project(z_u, u[part]))  # h (B, H, W, k, C)
        return y


def by_direction(projection: nn.Linear) -> torch.Tensor:
    """A projection's weight by direction, (K, maps, R)."""
    return projection.weight.unflatten(0, (len(DIRECTIONS), -1))


def project(z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """z (B, H, W, R) by the weights (k, maps, R) of some directions: (B, H, W, k, maps)."""
    return F.linear(z, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2])
