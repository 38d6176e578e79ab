"""What a scan must move and how the CUDA backend lays it out: shared by the benchmark and the predictions."""

import ctypes
from typing import NamedTuple

import torch

from ops.arguments import DIRECTIONS
from ops.library import LIBRARY

SHARED_PER_BLOCK = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


FORMULA = """bytes of a scan, each element once (ideal):
  forward   x + lam + logits of all but starting lines + h
  backward  grad_h + x + lam + logits and h of all but starting lines + dx + dlam + dlogits
of scan and read-out in one:
  forward   x + lam + u + logits of all but starting lines + y, + h where a gradient will need it
  backward  grad_y + x + lam + u + h + logits of all but starting lines + dx + dlam + du + dlogits
moved: the ideal ones + float32 scratch, written and read: dx by direction unless a block does all of them,
  and the parts of dlogits that a group wider than a warp leaves"""


class Shape(NamedTuple):
    """A scan in four directions."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    groups: int
    segment: int = 0


def model_shapes(sides: tuple[int, ...] = (16, 32, 64, 128, 256)) -> list[Shape]:
    """The scans of GSPN-XL/2 and GSPN-DiT-XL/2, global and local, from 256 to 4096 pixels."""
    batches = {16: 64, 32: 16, 64: 4, 128: 1, 256: 1}
    shapes = []
    for model, channels, groups in (("GSPN-XL/2", 1500, 1500), ("GSPN-DiT-XL/2", 1152, 72)):
        for side in sides:
            for segment in (0, 2):
                kind = "local" if segment else "global"
                name = f"{model} {side * 16} px {kind}"
                shapes.append(Shape(name, batches[side], side, side, channels, groups, segment))
    return shapes


WIDE_MAP = Shape("1024x1024, 8 channels", 16, 1024, 1024, 8, 8)


class Plan(NamedTuple):
    """The launch that the backend chooses; see ops/csrc/scan_plan.h."""

    vector: int
    lanes: int
    rows: int
    run: int
    tiled: int
    parts: int
    shared_bytes: int
    blocks: int
    task_lines: int
    items_in_flight: int
    modelled_microseconds: float

    @property
    def threads(self) -> int:
        return self.lanes * self.rows * (len(DIRECTIONS) if self.tiled else 1)


def plan_of(
    shape: Shape,
    dtype: torch.dtype,
    backward: bool,
    processors: int,
    shared_per_block: int,
    reads_out: bool = False,
) -> Plan:
    """Ask the library for its plan on a device of that many multiprocessors; its vector is 0 where it has none."""
    library = ctypes.CDLL(str(LIBRARY))
    library.gspn_cuda_plan.restype = ctypes.c_double
    _, batch, height, width, channels, groups, segment = shape
    numbers = (ctypes.c_int64 * 12)(
        batch, height, width, len(DIRECTIONS), channels, groups, segment, 0, 0, 1, 2, 3
    )
    out = (ctypes.c_int64 * 10)()
    kind = backward + 2 * reads_out
    time = library.gspn_cuda_plan(numbers, kind, dtype.itemsize, processors, shared_per_block, out)
    return Plan(*out, time)


def started_share(shape: Shape) -> float:
    """Share of the lines that start anew: their logits, and the h of the lines before them, are not read."""
    starts = [-(-lines // shape.segment) if shape.segment else 1 for lines in (shape.width, shape.height)]
    return (starts[0] / shape.width + starts[1] / shape.height) / 2


def ideal_bytes(
    shape: Shape, dtype: torch.dtype, backward: bool, reads_out: bool = False, states: bool = True
) -> int:
    """Every input element read once and every output element written once, nothing else: FORMULA.

    `reads_out` is of scan and read-out in one; `states` says whether its forward keeps h.
    """
    k, size = len(DIRECTIONS), dtype.itemsize
    pixels = shape.batch * shape.height * shape.width
    x, lam, logits = pixels * shape.channels, pixels * k * shape.channels, pixels * k * 3 * shape.groups
    read = 1 - started_share(shape)
    if reads_out and backward:
        return int(size * (3 * x + 5 * lam + (1 + read) * logits))
    if reads_out:
        return int(size * (2 * x + (2 + states) * lam + read * logits))
    if backward:
        return int(size * (2 * x + 3 * lam + (1 + read) * logits + read * lam))
    return int(size * (x + 2 * lam + read * logits))


def merge_bytes(shape: Shape, dtype: torch.dtype, backward: bool) -> int:
    """The gated merge of a scan's states: h and u in, y out; backward grad_y too, and dh and du out."""
    maps = shape.batch * shape.height * shape.width * shape.channels * dtype.itemsize
    return maps * ((4 if backward else 2) * len(DIRECTIONS) + 1)


def scratch_bytes(shape: Shape, backward: bool, plan: Plan) -> int:
    """Float32 scratch, written and read once: dx by direction unless tiled, parts of wide groups' dlogits."""
    if not backward:
        return 0
    k, pixels = len(DIRECTIONS), shape.batch * shape.height * shape.width
    dx = 0 if plan.tiled else pixels * k * shape.channels
    dlogits = pixels * k * 3 * shape.groups * plan.parts if plan.parts > 1 else 0
    return 2 * 4 * (dx + dlogits)
