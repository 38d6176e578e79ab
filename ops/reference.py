"""The operators in plain PyTorch: the oracle that the compiled kernels are held to.

Any device, any floating dtype, differentiable by autograd. The scan follows README.md line by line and is written to be
read, not to be fast.
"""

import torch
import torch.nn.functional as F

from ops.arguments import DIRECTIONS, check_arguments, check_conv, check_merge, check_mix


def gspn_scan_reference(
    x: torch.Tensor,
    lam: torch.Tensor,
    logits: torch.Tensor,
    directions: tuple[str, ...] = DIRECTIONS,
    segment: int = 0,
    normalization: str = "row_stochastic",
) -> torch.Tensor:
    """Propagate `x` along `directions`; see `gspn_scan` for arguments, shapes and errors.

    Computes in float32 (float64 for float64) and rounds the result alone.
    """
    check_arguments(x, lam, logits, directions, segment, normalization)
    return _states(x, lam, logits, directions, segment, normalization).to(x.dtype)


def gspn_mix_reference(
    x: torch.Tensor,
    lam: torch.Tensor,
    logits: torch.Tensor,
    u: torch.Tensor | None = None,
    directions: tuple[str, ...] = DIRECTIONS,
    segment: int = 0,
    normalization: str = "row_stochastic",
) -> torch.Tensor:
    """Propagate `x` and add up the states times their gates `u`; see `gspn_mix` for arguments, shapes and errors.

    Computes in float32 (float64 for float64) and rounds the result alone.
    """
    check_mix(x, lam, logits, u, directions, segment, normalization)
    h = _states(x, lam, logits, directions, segment, normalization)
    return (h if u is None else u.to(h.dtype) * h).sum(dim=3).to(x.dtype)


def _states(x, lam, logits, directions, segment, normalization) -> torch.Tensor:
    """The states (B, H, W, K, C) as they are computed, not rounded."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    gated = lam.to(dtype) * x.to(dtype).unsqueeze(3)
    heads = x.shape[3] // logits.shape[5]
    maps = []
    for k, direction in enumerate(directions):
        lines = to_scan_order(gated[:, :, :, k], direction)  # (B, T, N, C)
        raw = to_scan_order(logits[:, :, :, k].to(dtype), direction)  # (B, T, N, 3, G)
        weights = normalize(raw, normalization).repeat_interleave(heads, dim=4)  # (B, T, N, 3, C)
        maps.append(from_scan_order(_scan(lines, weights, segment), direction))
    return torch.stack(maps, dim=3)


def normalize(logits: torch.Tensor, normalization: str) -> torch.Tensor:
    """Turn raw logits (..., N, 3, G) into weights of the same shape; those of missing neighbours are 0.

    `row_stochastic` divides the sigmoids by their sum over the neighbours that exist (arXiv 2501.12381,
    section 3.2), as a softmax of logsigmoid, which is finite for every finite logit.
    """
    missing = missing_neighbours(logits.shape[-3], logits.device).unsqueeze(2)  # (N, 3, 1)
    if normalization == "row_stochastic":
        return F.logsigmoid(logits).masked_fill(missing, -torch.inf).softmax(dim=-2)
    weights = logits.sigmoid() if normalization == "sigmoid" else logits
    return weights.masked_fill(missing, 0)


def missing_neighbours(length: int, device: torch.device) -> torch.Tensor:
    """(N, 3): which of the neighbours -1, 0, +1 of a position lie outside a line of that length.

    Nothing is written in place: torch.func.linearize, which folds constants, would lose it.
    """
    place = torch.arange(length, device=device).unsqueeze(1)  # (N, 1)
    return torch.cat([place == 0, place < 0, place == length - 1], dim=1)


def gated_merge_reference(h: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Sum u * h over the directions; see `gated_merge` for arguments, shapes and errors.

    Computes in float32 (float64 for float64) and rounds the result alone.
    """
    check_merge(h, u)
    dtype = torch.promote_types(h.dtype, torch.float32)
    return (u.to(dtype) * h.to(dtype)).sum(dim=-2).to(h.dtype)


def depthwise_conv_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """The convolution by torch's own, in the dtype of `x`; see `depthwise_conv` for arguments, shapes and errors."""
    check_conv(x, weight, bias, activation)
    tokens = x.permute(0, 3, 1, 2)  # a view of channels_last memory
    y = F.conv2d(tokens, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    y = y.permute(0, 2, 3, 1)
    return F.relu(y).square() if activation else y


def _scan(lines: torch.Tensor, weights: torch.Tensor, segment: int) -> torch.Tensor:
    """h[t, n] = lines[t, n] + sum over d of w_d[t, n] h[t-1, n+d], from h = 0 at each segment's start."""
    states = []
    for t in range(lines.shape[1]):
        state = lines[:, t]
        starts = t == 0 or (segment > 0 and t % segment == 0)
        states.append(state if starts else cross_line(state, weights[:, t], states[-1]))
    return torch.stack(states, dim=1) if states else lines


def cross_line(line: torch.Tensor, weights: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """One line (B, N, C) plus the state before it (B, N, C) as its weights (B, N, 3, C) pass it on."""
    padded = F.pad(state, (0, 0, 1, 1))  # (B, N + 2, C): position n sits at n + 1
    for d in range(3):
        line = line + weights[:, :, d] * padded[:, d : d + line.shape[1]]
    return line


def to_scan_order(image: torch.Tensor, direction: str) -> torch.Tensor:
    """(B, H, W, ...) -> (B, T, N, ...): the lines in the order in which the pass meets them."""
    lines = image.transpose(1, 2) if direction in ("right", "left") else image
    return lines.flip(1) if direction in ("left", "up") else lines


def from_scan_order(lines: torch.Tensor, direction: str) -> torch.Tensor:
    """(B, T, N, ...) -> (B, H, W, ...): the inverse of `to_scan_order`."""
    lines = lines.flip(1) if direction in ("left", "up") else lines
    return lines.transpose(1, 2) if direction in ("right", "left") else lines
