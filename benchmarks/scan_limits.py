"""What bounds a CUDA kernel of the scan: memory, its instructions, or a warp that waits. Arithmetic, not measured.

Bytes and instructions are of what the code does: the plan that the library chooses, instructions an item as they are
counted in the machine code (benchmarks/sass.py), and copies in flight as the ring has them. Of x, which every
direction reads, only the first reading counts: the directions of an image run side by side, and the others find it in
L2 (50 MB, where the images that are worked on at a time take a few).
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.scan_cost import (
    Plan,
    Shape,
    ideal_bytes,
    merge_bytes,
    plan_of,
    scratch_bytes,
)
from ops.arguments import DIRECTIONS

SASS = Path(__file__).resolve().parent / "results" / "sass.json"
PROCESSORS, SHARED = 132, 227 * 1024
SCHEDULERS, MEGAHERTZ = 4, 1755
LATENCY, BARRIER = 0.9, 0.1
"""Microseconds: of a load from memory under load, and of a line's barrier. As in ops/csrc/scan_plan.h."""
PLAN_BANDWIDTH = 32e9 * PROCESSORS
"""Bytes per second that ops/csrc/scan_plan.h chooses plans for, whatever a prediction's bandwidth is."""
TARGETS = {False: {16: 0.80, 64: 0.90}, True: {16: 0.75, 64: 0.85}}
"""Share of copy bandwidth that is meant to be reached, forward and backward, by the least side of a map."""


class Limits(NamedTuple):
    """Microseconds that each of the three would take alone."""

    memory: float
    instructions: float
    waiting: float

    @property
    def binds(self) -> str:
        return max(zip(self, self._fields, strict=True))[1]


def instructions_of(shape: Shape, backward: bool, plan: Plan, reads_out: bool) -> float:
    """Instructions of an item in bfloat16 on sm_90, as counted; NaN where the kernel has no count."""
    pass_ = ("mix_" if reads_out else "") + ("backward" if backward else "forward")
    groups = "G=C" if shape.groups == shape.channels else "grouped"
    place = "one position" if plan.run == 1 else "a run"
    name = f"{pass_} bfloat16 V{plan.vector} {groups}, {place}, row_stochastic"
    return json.loads(SASS.read_text())["kernels"][name].get("instructions", math.nan)


def limits(
    shape: Shape, backward: bool, plan: Plan, resident: int, moved: float, bandwidth: float, reads_out: bool
) -> Limits:
    """Of one kernel in bfloat16; `resident` blocks on a multiprocessor, `bandwidth` in bytes per second."""
    warps = -(-plan.threads // 32)
    items = plan.blocks * warps * plan.task_lines * plan.run
    rate = PROCESSORS * SCHEDULERS * MEGAHERTZ  # instructions in a microsecond
    waves = math.ceil(plan.blocks / (resident * PROCESSORS))
    line = plan.run * LATENCY / plan.items_in_flight + BARRIER * (2 if plan.tiled else 1)
    return Limits(
        moved / bandwidth * 1e6,
        items * instructions_of(shape, backward, plan, reads_out) / rate,
        waves * plan.task_lines * line,
    )


def target(shape: Shape, backward: bool) -> float:
    """The share of copy bandwidth that is meant to be reached at a shape."""
    return TARGETS[backward][64 if min(shape.height, shape.width) >= 64 else 16]


class Way(NamedTuple):
    """How scan and read-out are done at a shape, with microseconds by the plan's model."""

    joined: bool
    plan: Plan
    microseconds: float
    moved: int
    """Bytes."""


def read_out(shape: Shape, backward: bool) -> Way:
    """One kernel or two for `gspn_mix` in bfloat16, forward in inference, as ops/csrc/scan_plan.h decides it."""
    dtype = torch.bfloat16
    alone = plan_of(shape, dtype, backward, PROCESSORS, SHARED)
    joined = plan_of(shape, dtype, backward, PROCESSORS, SHARED, reads_out=True)
    merge = merge_bytes(shape, dtype, backward)
    apart = alone.modelled_microseconds + merge / PLAN_BANDWIDTH * 1e6
    if joined.vector and joined.modelled_microseconds <= apart:
        moved = ideal_bytes(shape, dtype, backward, True, states=False)
        moved += scratch_bytes(shape, backward, joined)
        return Way(True, joined, joined.modelled_microseconds, moved)
    moved = ideal_bytes(shape, dtype, backward) + scratch_bytes(shape, backward, alone) + merge
    return Way(False, alone, apart, moved)


def saved_by_maps_inside(width: int, rank: int, groups: int, bandwidth: float, rate: float) -> dict:
    """What computing lam, u and logits inside the scan, from the bottleneck, would save: ns a token, arithmetic.

    Forward, the maps would be neither written nor read (lam, u: K C each, logits 3 K G); z would be read by every
    direction, which L2 gives. The products would run all the same. Backward they would be computed anew, and their
    gradients reduced to dz inside: the products of the weights' gradients still read z and the maps' gradients, which
    must be written, so only the reading of the maps is saved.
    """
    maps = len(DIRECTIONS) * (2 * width + 3 * groups)
    nanoseconds = 2 * maps / bandwidth * 1e9  # bfloat16, once
    products = 2 * rank * maps / rate * 1e9
    return {"maps_forward": 2 * nanoseconds, "maps_backward": nanoseconds - products}
