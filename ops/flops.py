"""What torch's FLOP counter (torch.utils.flop_counter) is told of the operators: importing this module tells it.

Not imported with `ops`: the counter loads Triton, most of a second that no run has a use for.

An addition, a multiplication, a division and an exponential are one each, and a sigmoid three, as README.md writes the
formulas: what a line has not (neighbours beyond its ends, a line before its first) does not count. Kernels may compute
more, such as the weights of the first line, or less, as where three weights share a division.
"""

from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

from ops.arguments import DIRECTIONS, NORMALIZATIONS
from ops.library import BACKENDS

ALONG_ROWS = {DIRECTIONS.index("right"), DIRECTIONS.index("left")}
"""Codes of the directions whose lines are columns."""


def _passes(x: list[int], directions: list[int], segment: int) -> list[tuple[int, int]]:
    """Of each direction: positions that have a line before them, and neighbours that these have there, in a batch."""
    batch, height, width, _ = x
    passes = []
    for code in directions:
        lines, length = (width, height) if code in ALONG_ROWS else (height, width)
        first = -(-lines // segment) if segment else min(lines, 1)
        continued = batch * (lines - first)
        passes.append((continued * length, continued * max(3 * length - 2, 0)))
    return passes


def _weights(positions: int, neighbours: int, mode: int) -> int:
    """From the logits of one group: a sigmoid for each neighbour, their sum, and a division for each."""
    sigmoids, sums = 3 * neighbours, neighbours - positions
    return {"row_stochastic": sigmoids + sums + neighbours, "sigmoid": sigmoids, "none": 0}[
        NORMALIZATIONS[mode]
    ]


def _weights_backward(positions: int, neighbours: int, mode: int) -> int:
    """Equation (4) for one group, the weights again: w (1 - sigmoid) (dw - sum of w dw), or without that sum."""
    scaling, difference = 3 * neighbours, neighbours  # 1 - s, and two products; dw - sum
    sums = 2 * neighbours - positions
    more = {"row_stochastic": scaling + difference + sums, "sigmoid": scaling, "none": 0}
    return _weights(positions, neighbours, mode) + more[NORMALIZATIONS[mode]]


def scan_flops(x, lam, logits, directions, segment, normalization, out_shape=None, **_) -> int:
    """Equations (1) and (2); shapes are those of `gspn_scan`."""
    channels, groups = x[3], logits[5]
    total = prod(lam)  # lam x
    for positions, neighbours in _passes(x, directions, segment):
        total += 2 * neighbours * channels + _weights(positions, neighbours, normalization) * groups
    return total


def scan_backward_flops(
    grad_h, x, lam, logits, h, directions, segment, normalization, out_shape=None, **_
) -> int:
    """Equations (3) and (4)."""
    channels, groups = x[3], logits[5]
    total = 3 * prod(lam) - prod(x)  # lam g and its sum over the directions, x g
    for positions, neighbours in _passes(x, directions, segment):
        propagated = 2 * neighbours * channels
        products = neighbours * (2 * channels - groups)  # g h, summed over the channels of a group
        total += propagated + products + _weights_backward(positions, neighbours, normalization) * groups
    return total


def merge_flops(h, u, out_shape=None, **_) -> int:
    """K products and K - 1 sums."""
    return 2 * prod(h) - prod(h[:-2]) * h[-1]


def merge_backward_flops(grad_y, h, u, out_shape=None, **_) -> int:
    """u g and h g."""
    return 2 * prod(h)


def mix_flops(x, lam, logits, u, directions, segment, normalization, states, out_shape=None, **_) -> int:
    """The scan, and a product and a sum less than one for each state; without gates no products."""
    merge = merge_flops(lam, u) if u else prod(lam) - prod(x)
    return scan_flops(x, lam, logits, directions, segment, normalization) + merge


def mix_backward_flops(
    grad_y, x, lam, logits, u, h, directions, segment, normalization, out_shape=None, **_
) -> int:
    """The scan's, and u g and h g."""
    scan = scan_backward_flops(lam, x, lam, logits, h, directions, segment, normalization)
    return scan + (merge_backward_flops(grad_y, h, u) if u else 0)


def conv_flops(x, weight, bias, square, keep, out_shape=None, **_) -> int:
    """As torch counts a convolution: two for each tap, and those beyond the map's ends too."""
    return 2 * prod(x) * weight[2] * weight[3]


def conv_backward_flops(grad_y, relu, x, weight, bias, square, out_shape=None, **_) -> int:
    """The gradients of the input and of the weights, each as much as the forward."""
    return 2 * conv_flops(x, weight, None, False, False)


if BACKENDS:
    register_flop_formula(torch.ops.gspn.scan)(scan_flops)
    register_flop_formula(torch.ops.gspn.scan_backward)(scan_backward_flops)
    register_flop_formula(torch.ops.gspn.merge)(merge_flops)
    register_flop_formula(torch.ops.gspn.merge_backward)(merge_backward_flops)
    register_flop_formula(torch.ops.gspn.mix)(mix_flops)
    register_flop_formula(torch.ops.gspn.mix_backward)(mix_backward_flops)
    register_flop_formula(torch.ops.gspn.conv)(conv_flops)
    register_flop_formula(torch.ops.gspn.conv_backward)(conv_backward_flops)
