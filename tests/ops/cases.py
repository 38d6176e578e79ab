"""Named shapes and inputs for the tests of the scan."""

from itertools import combinations

import torch

from ops.arguments import DIRECTIONS

# name: (B, H, W, C, G, segment)
SHAPES = {
    "grid of a 256-pixel model": (2, 16, 16, 32, 32, 0),
    "odd sizes, per channel": (2, 5, 7, 13, 13, 0),
    "odd sizes, four groups": (1, 7, 6, 20, 4, 0),
    "one group, ragged channels": (2, 3, 9, 37, 1, 0),
    "one row": (2, 1, 9, 6, 6, 0),
    "one column": (1, 8, 1, 6, 1, 0),
    "one pixel": (3, 1, 1, 4, 4, 0),
    "one channel": (2, 6, 5, 1, 1, 0),
    "segment divides": (1, 8, 6, 17, 17, 2),
    "segment does not divide": (2, 7, 5, 12, 4, 3),
    "segment of one line": (1, 4, 5, 8, 8, 1),
    "segment longer than the map": (1, 4, 5, 8, 2, 9),
    "long lines": (1, 3, 130, 8, 8, 0),
    "many channels": (1, 4, 3, 196, 196, 0),
}

SUBSETS = [subset for size in (1, 2, 3, 4) for subset in combinations(DIRECTIONS, size)]


def make_inputs(
    batch, height, width, channels, groups, directions, dtype, device="cpu", scale=2.0, shift=0.0, seed=0
):
    """Random x, lam, logits of a dtype, drawn in float64 so that every dtype rounds the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (batch, height, width, channels),
        (batch, height, width, directions, channels),
        (batch, height, width, directions, 3, groups),
    ]
    x, lam, logits = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.to(device, dtype).requires_grad_() for tensor in (x, lam, logits * scale + shift)]


def widened(inputs):
    """The same numbers as float64 leaves on the CPU."""
    return [tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
