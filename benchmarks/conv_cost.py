"""What a depthwise convolution moves and how the CUDA backend lays it out: for the benchmark and the predictions."""

import ctypes
from typing import NamedTuple

import torch

from ops.library import LIBRARY

FORMULA = """bytes of a depthwise convolution, each element once (ideal):
  forward   x + y
  backward  dx: grad_y + dx; dweight: grad_y + x; with the gate relu(y)^2 relu is written, and read with each grad_y
moved: what is read with the borders of (k - 1) / 2 pixels, where the map has them, beside every tile's columns and
  every task's rows (dweight: columns of x, rows of grad_y), what is written, and the blocks' float32 sums of
  dweight and dbias, written and read"""

GATED, KEEPS_RELU = 2, 4  # maps of a pass besides its own two


class ConvShape(NamedTuple):
    """A depthwise convolution of a kernel `size` by `size`."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    size: int

    @property
    def elements(self) -> int:
        return self.batch * self.height * self.width * self.channels


def conv_shapes(sides: tuple[int, ...] = (16, 64, 256)) -> list[ConvShape]:
    """The convolutions of GSPN-XL/2's and GSPN-DiT-XL/2's mixers."""
    batches = {16: 64, 32: 16, 64: 4, 128: 1, 256: 1}
    return [
        ConvShape(f"{model} {side * 16} px {size}x{size}", batches[side], side, side, channels, size)
        for model, channels in (("GSPN-XL/2", 1500), ("GSPN-DiT-XL/2", 1152))
        for side in sides
        for size in (7, 3)
    ]


class ConvPlan(NamedTuple):
    """The launch that the backend chooses; see ops/csrc/conv_plan.h."""

    lanes: int
    access: int
    rows: int
    images: int
    strips: int
    tiles: int
    segments: int
    stacks: int
    shared_bytes: int
    usual: int
    rows_in_flight: int

    @property
    def parts(self) -> int:
        return self.tiles * self.segments * self.stacks

    @property
    def blocks(self) -> int:
        return self.strips * self.parts

    @property
    def columns(self) -> int:
        return 1024 // self.lanes


def conv_plan(
    shape: ConvShape, dtype: torch.dtype, gradient: bool, maps: int, processors: int, shared_per_block: int
) -> ConvPlan:
    """Ask the library for its plan of a pass with `maps` (GATED, KEEPS_RELU or 0) on a device of that kind."""
    library = ctypes.CDLL(str(LIBRARY))
    numbers, out = (ctypes.c_int64 * 5)(*shape[1:]), (ctypes.c_int64 * 11)()
    library.gspn_cuda_conv_plan(numbers, gradient + maps, dtype.itemsize, processors, shared_per_block, out)
    return ConvPlan(*out)


def with_borders(length: int, tile: int, size: int) -> int:
    """Rows or columns of a map that its tiles read, each with those of its border that exist."""
    pad = size // 2
    starts = range(0, length, tile)
    return sum(min(length, start + tile + pad) - max(0, start - pad) for start in starts)


def ideal_bytes(shape: ConvShape, dtype: torch.dtype, maps: int = 0) -> int:
    """One pass: two maps, and one more for a gate or for relu."""
    return dtype.itemsize * shape.elements * (3 if maps else 2)


def moved_bytes(shape: ConvShape, dtype: torch.dtype, plan: ConvPlan, gradient: bool, maps: int = 0) -> int:
    """One pass, by FORMULA."""
    columns = with_borders(shape.width, plan.columns, shape.size)
    rows = with_borders(shape.height, plan.rows, shape.size)
    reads = 2 if maps & GATED else 1
    if gradient:
        pixels = reads * rows * shape.width + shape.height * columns
    else:
        pixels = reads * rows * columns + shape.height * shape.width * (2 if maps & KEEPS_RELU else 1)
    moved = dtype.itemsize * shape.batch * shape.channels * pixels
    return moved + gradient * 2 * 4 * plan.parts * shape.channels * (shape.size**2 + 1)


def passes(shape: ConvShape, dtype: torch.dtype, backward: bool, processors: int, shared: int) -> list[dict]:
    """The kernels of one pass of autograd without the gate, each with its plan and bytes."""
    found = []
    for gradient in (False, True) if backward else (False,):
        plan = conv_plan(shape, dtype, gradient, 0, processors, shared)
        found.append(
            {
                "kernel": "conv_gradient" if gradient else "conv_forward",
                "plan": plan._asdict(),
                "moved_bytes": moved_bytes(shape, dtype, plan, gradient),
                "ideal_bytes": ideal_bytes(shape, dtype),
            }
        )
    return found
