"""Small scans and convolutions for `compute-sanitizer --tool racecheck python benchmarks/sanitize_scan.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from ops import depthwise_conv, gated_merge, gspn_mix, gspn_scan

# B, H, W, C, G, segment: short and long lines, odd sizes, groups and segments.
SHAPES = [
    (2, 16, 16, 32, 32, 0),
    (1, 7, 5, 13, 13, 0),
    (2, 8, 8, 64, 4, 3),
    (1, 10, 6, 32, 32, 0),
    (1, 32, 32, 64, 4, 0),
    (1, 5, 6, 37, 1, 2),
    (1, 3, 700, 8, 8, 0),
]

# B, H, W, C: whole tiles, several of them, odd sizes and channels.
MAPS = [(2, 16, 16, 64), (1, 7, 33, 72), (3, 5, 6, 37), (1, 20, 3, 18)]


def convolve(map_: tuple[int, ...], size: int, activation: str | None, dtype: torch.dtype) -> None:
    """The depthwise convolution forward and backward."""
    sizes = [map_, (map_[3], 1, size, size), (map_[3],)]
    inputs = [torch.randn(shape).to("cuda", dtype).requires_grad_() for shape in sizes]
    depthwise_conv(*inputs, activation).float().sum().backward()


def main() -> int:
    """Run every shape forward and backward in every dtype, with the gated merge after the scan and in one with it."""
    for batch, height, width, channels, groups, segment in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            pixels = (batch, height, width)
            sizes = [(*pixels, channels), (*pixels, 4, channels), (*pixels, 4, 3, groups)]
            inputs = [torch.randn(size).to("cuda", dtype).requires_grad_() for size in sizes]
            h = gspn_scan(*inputs, segment=segment)
            gated_merge(h, inputs[1]).float().sum().backward()
            gspn_mix(*inputs, inputs[1], segment=segment).float().sum().backward()
    for map_ in MAPS:
        for size, activation in ((3, "relu_squared"), (5, None), (7, None)):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                convolve(map_, size, activation, dtype)
    torch.cuda.synchronize()
    print("all scans and convolutions ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
