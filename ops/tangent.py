"""Forward mode of the scan: its tangent is a scan too, by the same weights. The maths is in README.md."""

import torch
import torch.nn.functional as F

from ops.arguments import DIRECTIONS, NORMALIZATIONS
from ops.reference import from_scan_order, normalize, to_scan_order


def scan_tangent(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tangents: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    h: torch.Tensor,
    directions: list[int],
    segment: int,
    normalization: int,
) -> torch.Tensor:
    """The tangent of h = scan(x, lam, logits, ...) from those of x, lam and logits; None is a tangent of zero.

    Autograd differentiates every step of it. Computes in float32 (float64 for float64) and rounds the result alone.
    """
    dtype = torch.promote_types(h.dtype, torch.float32)
    x, lam, logits = (tensor.to(dtype) for tensor in inputs)
    dx, dlam, dlogits = (None if tensor is None else tensor.to(dtype) for tensor in tangents)
    source = torch.zeros_like(lam)  # (B, H, W, K, C)
    if dx is not None:
        source = source + lam * dx.unsqueeze(3)
    if dlam is not None:
        source = source + dlam * x.unsqueeze(3)
    if dlogits is not None:
        names = [DIRECTIONS[code] for code in directions]
        carried = _carried(h.to(dtype), logits, dlogits, names, segment, NORMALIZATIONS[normalization])
        source = source + carried
    settings = (directions, segment, normalization)
    return torch.ops.gspn.scan(torch.ones_like(x), source.contiguous(), logits, *settings).to(h.dtype)


def _carried(h, logits, dlogits, directions, segment, normalization) -> torch.Tensor:
    """What the tangents of the weights take over from the line before: (B, H, W, K, C)."""
    maps = []
    for k, direction in enumerate(directions):
        states = to_scan_order(h[:, :, :, k], direction)  # (B, T, N, C)
        raw, draw = (to_scan_order(t[:, :, :, k], direction) for t in (logits, dlogits))  # (B, T, N, 3, G)
        weights = weights_tangent(raw, draw, normalization)
        before = _line_before(states, segment).unflatten(3, (raw.shape[4], -1))  # (B, T, N + 2, G, C / G)
        length = states.shape[2]
        taken = sum(weights[:, :, :, d, :, None] * before[:, :, d : d + length] for d in range(3))
        maps.append(from_scan_order(taken.reshape(states.shape), direction))
    return torch.stack(maps, dim=3)


def weights_tangent(logits: torch.Tensor, dlogits: torch.Tensor, normalization: str) -> torch.Tensor:
    """The tangent of `normalize(logits)` (..., N, 3, G)."""
    weights = normalize(logits, normalization)
    if normalization == "none":
        return normalize(dlogits, normalization)  # it is linear: missing neighbours become 0
    rates = torch.sigmoid(-logits) * dlogits  # of log sigmoid
    if normalization == "row_stochastic":
        rates = rates - (weights * rates).sum(dim=-2, keepdim=True)
    return weights * rates


def _line_before(states: torch.Tensor, segment: int) -> torch.Tensor:
    """(B, T, N, C) -> (B, T, N + 2, C): at line t the line t - 1, position n at n + 1; zero where a pass starts."""
    before = F.pad(states, (0, 0, 1, 1, 1, 0))[:, :-1]
    if segment == 0:
        return before
    starts = torch.arange(states.shape[1], device=states.device) % segment == 0
    return before.masked_fill(starts[:, None, None], 0)
