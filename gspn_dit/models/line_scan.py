"""The core of the GSPN module: the line scan, its maps and how its directions become one."""

import torch
import torch.nn.functional as F
from torch import nn

from gspn_dit.models.basics import fan_in_normal_, is_plain_linear, normalize
from gspn_dit.models.settings import ModelSettings
from ops import gated_merge, gspn_mix, gspn_scan
from ops.reference import missing_neighbours

DIRECTIONS = ("right", "left", "down", "up")
EVERY = slice(None)
"""The part that all directions are."""
NARROW = 8
"""Widths of a bottleneck up to here are multiplied on a CPU in another order, see `_product`."""


class LineScan(nn.Module):
    """Scan x along four directions, read each with its own gate, and merge: sum_k m_k u_k * h_k.

    The input gain lam, the read-out gate u and the propagation logits are projected from a bottleneck. A
    segment of None leaves the scan out: h = lam * x.
    """

    def __init__(self, settings: ModelSettings, segment: int | None) -> None:
        super().__init__()
        width, rank, gains = settings.width, settings.bottleneck, settings.gain_groups
        self.width, self.groups, self.segment = width, settings.groups, segment
        self.normalization, self.norm, self.gate = settings.normalization, settings.norm, settings.gate
        self.passes = (EVERY,) if settings.scan_order == "parallel" else (slice(0, 2), slice(2, None))
        scans = settings.scan == "lines" and segment is not None
        self.bottleneck = nn.Linear(width, rank, bias=False)
        # One projection per map, not one that is split: so each map is contiguous, as the scan needs it.
        self.to_lam = _direction_maps(rank, gains)
        self.to_u = _direction_maps(rank, gains) if self.gate == "directions" else None
        self.to_logits = _direction_maps(rank, 3 * self.groups) if scans else None
        self.to_skip = _direction_maps(rank, width) if settings.direction_skip else None
        self.to_forget = ForgetGate(rank, self.groups) if scans and settings.forget == "learned" else None
        self.to_gate = nn.Linear(rank, gains, bias=False) if self.gate == "merged" else None
        self.merge_linear = self.merge_weight = None
        if settings.merge == "linear":
            self.merge_linear = nn.Linear(len(DIRECTIONS) * width, width, bias=False)
        elif settings.merge != "sum":
            channels = 1 if settings.merge == "scalar" else width
            self.merge_weight = nn.Parameter(torch.empty(len(DIRECTIONS), channels))

    def initialize_weights(self) -> None:
        """Gates of unit variance; logits near zero, where a scan starts as an even spread to all neighbours.

        At logits of zero each neighbour has the same weight, so no direction of travel is preferred, the
        reach grows with the lines crossed, and the sigmoid is at its steepest, free to move either way. The
        tenth of unit scale breaks the symmetry between groups.
        """
        gates = (self.to_lam, self.to_u, self.to_skip, self.to_gate)
        for layer in (self.bottleneck, *gates, self.merge_linear):
            if layer is not None:
                fan_in_normal_(layer.weight)
        if self.to_logits is not None:
            fan_in_normal_(self.to_logits.weight, gain=0.1)
        if self.merge_weight is None and self.merge_linear is None and self.to_u is not None:
            fan_in_normal_(self.to_u.weight, gain=len(DIRECTIONS) ** -0.5)
        if self.merge_weight is not None:
            nn.init.constant_(self.merge_weight, len(DIRECTIONS) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.bottleneck(x)  # (B, H, W, R)
        weights = self._line_weights(z)
        # The scan is linear in lam: without a gate for every direction m_k goes into it, and one operator does it all.
        folded = weights is not None and self.to_u is None and self.merge_linear is None
        lam = (self._weighted if folded else self._maps)(self.to_lam, z, EVERY)
        y = x
        for part in self.passes:
            if part.start:  # what the columns carried, so that the rows' product is of no higher degree
                y = normalize(y, self.norm)
            of_part = None if weights is None else _part(weights, part)
            y = self._scan_and_merge(y, _part(lam, part), of_part, x, z, part)  # (B, H, W, C)
        return y if self.to_gate is None else y * self._channels(self.to_gate(z))

    def _maps(self, projection: nn.Module, z: torch.Tensor, part: slice) -> torch.Tensor:
        """(B, H, W, R) -> (B, H, W, k, C), for the directions of a part."""
        return _part(self._channels(_project(projection, z).unflatten(-1, (len(DIRECTIONS), -1))), part)

    def _weighted(self, projection: nn.Module, z: torch.Tensor, part: slice) -> torch.Tensor:
        """m_k times the maps of a part's directions (B, H, W, k, C); the maps alone without merge weights.

        A plain projection takes m_k into its weight, which spares a pass over the maps.
        """
        if self.merge_weight is None:
            return self._maps(projection, z, part)
        merge = self.merge_weight[part]
        if is_plain_linear(projection) and projection.out_features == len(DIRECTIONS) * self.width:
            weight = _rows(projection)[part] * merge.unsqueeze(2)  # (k, C, R)
            return _product(z, weight.flatten(0, 1)).unflatten(-1, (len(weight), -1))
        maps = self._maps(projection, z, part)
        return maps * merge.to(maps.dtype)

    def _skip(self, z: torch.Tensor, part: slice) -> torch.Tensor:
        """sum_k m_k D_k (B, H, W, C): all directions have the same x, so what it is multiplied by is added up first."""
        if is_plain_linear(self.to_skip):
            rows = _rows(self.to_skip)[part]
            weight = rows if self.merge_weight is None else rows * self.merge_weight[part].unsqueeze(2)
            return _product(z, weight.sum(0))
        return self._weighted(self.to_skip, z, part).sum(3)

    def _line_weights(self, z: torch.Tensor) -> torch.Tensor | None:
        """The scan's logits (B, H, W, K, 3, G), or weights where a forget gate is among their factors."""
        if self.to_logits is None:
            return None
        logits = _project(self.to_logits, z).unflatten(-1, (len(DIRECTIONS), 3, self.groups))
        if self.to_forget is None:
            return logits
        keep = self.to_forget(z).sigmoid().unflatten(-1, (len(DIRECTIONS), 1, self.groups))
        return row_stochastic(logits) * keep  # keep: (B, H, W, K, 1, G)

    def _scan_and_merge(
        self,
        y: torch.Tensor,
        lam: torch.Tensor,
        weights: torch.Tensor | None,
        x: torch.Tensor,
        z: torch.Tensor,
        part: slice,
    ) -> torch.Tensor:
        """Scan y along a part's directions and make their maps, each times its gate, one (B, H, W, C)."""
        normalization = self.normalization if self.to_forget is None else "none"
        settings = (DIRECTIONS[part], self.segment, normalization)
        if self.merge_linear is not None:
            h = lam * y.unsqueeze(3) if weights is None else gspn_scan(y, lam, weights, *settings)
            return self._through_linear(h, x, z)
        if weights is None:  # h = lam y: y is the same for every direction
            y = y * self._add_up(lam, z, part)
        else:
            u = None if self.to_u is None else self._weighted(self.to_u, z, part)
            y = gspn_mix(y, lam, weights, u, *settings)
        return y if self.to_skip is None else torch.addcmul(y, self._skip(z, part), x)

    def _through_linear(self, h: torch.Tensor, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The maps h (B, H, W, K, C), gated, through one layer."""
        maps = h if self.to_u is None else self._maps(self.to_u, z, EVERY) * h
        if self.to_skip is not None:
            maps = maps + self._maps(self.to_skip, z, EVERY) * x.unsqueeze(3)
        return self.merge_linear(maps.flatten(3))

    def _add_up(self, maps: torch.Tensor, z: torch.Tensor, part: slice) -> torch.Tensor:
        """The sum over the directions of m_k u_k times the maps (B, H, W, k, C) at hand."""
        if self.to_u is not None:
            return gated_merge(maps, self._weighted(self.to_u, z, part))
        return (maps if self.merge_weight is None else maps * self.merge_weight[part].to(maps.dtype)).sum(3)

    def _channels(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps of a few channels each (..., C') as maps of all (..., C), neighbours sharing one."""
        return (
            maps if maps.shape[-1] == self.width else maps.repeat_interleave(self.width // maps.shape[-1], -1)
        )


def _part(maps: torch.Tensor, part: slice) -> torch.Tensor:
    """Maps (B, H, W, K, ...) of some directions; of all of them the very tensor, not a view that costs a call."""
    return maps if part == EVERY else maps[:, :, :, part]


class ForgetGate(nn.Linear):
    """How much of the line before a position keeps, by direction and group: the logit of it, so that bounds stay."""

    def __init__(self, rank: int, groups: int) -> None:
        super().__init__(rank, len(DIRECTIONS) * groups)
        self.groups = groups

    def initialize_weights(self) -> None:
        """exp(-1 / reach), with a reach from 1 line in the first group to 16 in the last, evenly in its logarithm."""
        fan_in_normal_(self.weight, gain=0.1)
        keep = torch.exp(-(2 ** -torch.linspace(0, 4, self.groups, device=self.bias.device)))
        with torch.no_grad():
            self.bias.copy_(keep.logit().repeat(len(DIRECTIONS)))


def row_stochastic(logits: torch.Tensor) -> torch.Tensor:
    """The weights of a row-stochastic scan along `DIRECTIONS` from its logits (B, H, W, K, 3, G), same shape.

    What `gspn_scan` computes inside, in plain PyTorch for weights that go on into a product: sigmoids over
    their sum over the neighbours that exist, and 0 for the others.
    """
    height, width = logits.shape[1:3]
    rows = missing_neighbours(height, logits.device).view(
        height, 1, 1, 3, 1
    )  # right, left: a line is a column
    columns = missing_neighbours(width, logits.device).view(1, width, 1, 3, 1)  # down, up: a line is a row
    shape = (height, width, 2, 3, 1)
    missing = torch.cat([rows.expand(shape), columns.expand(shape)], dim=2)  # (H, W, K, 3, 1)
    return F.logsigmoid(logits).masked_fill(missing, -torch.inf).softmax(dim=-2)


def _direction_maps(rank: int, channels: int) -> nn.Linear:
    """Projects the bottleneck to `channels` for each direction."""
    return nn.Linear(rank, len(DIRECTIONS) * channels, bias=False)


def _project(projection: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """projection(z)."""
    return _product(z, projection.weight) if is_plain_linear(projection) else projection(z)


def _product(z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """z (..., R) times weight (O, R) transposed: (..., O).

    Of a few columns, a CPU's library takes two to five times as long for the gradients where they are written as those
    of a linear layer, grad^T z and grad weight, as for z^T grad and the product with a weight whose rows are R. So
    the weight is laid out anew; it is small.
    """
    if weight.shape[1] > NARROW or z.device.type != "cpu":
        return F.linear(z, weight)
    return z @ weight.t().contiguous()


def _rows(projection: nn.Linear) -> torch.Tensor:
    """A projection's weight by direction, (K, C, R)."""
    return projection.weight.unflatten(0, (len(DIRECTIONS), -1))
