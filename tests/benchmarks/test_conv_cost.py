"""The bytes of a depthwise convolution by formula, against those of its tasks counted one by one."""

import itertools

import pytest
import torch

from benchmarks.conv_cost import (
    GATED,
    KEEPS_RELU,
    ConvPlan,
    ConvShape,
    ideal_bytes,
    moved_bytes,
    passes,
    with_borders,
)
from ops.library import BACKENDS


def make_plan(shape, lanes, rows, images):
    """A plan with what depends on the rest worked out."""
    counts = (
        shape.channels / lanes,
        shape.width / (1024 // lanes),
        shape.height / rows,
        shape.batch / images,
    )
    strips, tiles, segments, stacks = (-int(-count // 1) for count in counts)
    return ConvPlan(lanes, 16, rows, images, strips, tiles, segments, stacks, 0, 0, 5)


def pixels_by_task(shape, plan):
    """Pixels that the tasks of one image read with borders, with those of rows alone, with those of columns alone."""
    pad, found = shape.size // 2, [0, 0, 0]
    for top, left in itertools.product(
        range(0, shape.height, plan.rows), range(0, shape.width, plan.columns)
    ):
        end, right = min(top + plan.rows, shape.height), min(left + plan.columns, shape.width)
        tall = min(end + pad, shape.height) - max(top - pad, 0)
        wide = min(right + pad, shape.width) - max(left - pad, 0)
        found = [
            a + b
            for a, b in zip(found, (tall * wide, tall * (right - left), (end - top) * wide), strict=True)
        ]
    return found


@pytest.mark.parametrize("lanes, rows, images", [(64, 40, 1), (64, 16, 3), (128, 7, 1), (32, 64, 2)])
@pytest.mark.parametrize("size", [3, 7])
def test_bytes_are_those_of_the_tasks(lanes, rows, images, size):
    shape, dtype = ConvShape("odd", 3, 40, 37, 90, size), torch.bfloat16
    plan = make_plan(shape, lanes, rows, images)
    both, tall, wide = pixels_by_task(shape, plan)
    own, each = shape.height * shape.width, shape.batch * shape.channels * 2
    assert moved_bytes(shape, dtype, plan, False) == each * (both + own)
    assert moved_bytes(shape, dtype, plan, False, KEEPS_RELU) == each * (both + 2 * own)
    assert moved_bytes(shape, dtype, plan, False, GATED) == each * (2 * both + own)
    sums = 8 * plan.parts * 90 * (size**2 + 1)
    assert moved_bytes(shape, dtype, plan, True) == each * (tall + wide) + sums
    assert moved_bytes(shape, dtype, plan, True, GATED) == each * (2 * tall + wide) + sums


def test_one_tile_of_all_rows_moves_the_least():
    shape = ConvShape("256 px", 64, 16, 16, 1152, 7)
    plan = make_plan(shape, 64, 16, 1)
    assert with_borders(16, 16, 7) == 16 and with_borders(16, 8, 7) == 22
    assert moved_bytes(shape, torch.bfloat16, plan, False) == ideal_bytes(shape, torch.bfloat16)
    assert ideal_bytes(shape, torch.bfloat16, GATED) == 3 * 64 * 256 * 1152 * 2


@pytest.mark.skipif("cuda" not in BACKENDS, reason="plans come from the library with its CUDA part")
def test_passes_of_the_models():
    shape = ConvShape("GSPN-DiT-XL/2 256 px", 64, 16, 16, 1152, 7)
    (forward,) = passes(shape, torch.bfloat16, False, 132, 227 * 1024)
    assert forward["plan"]["usual"] and forward["moved_bytes"] == forward["ideal_bytes"]
    of_x, of_weights = passes(shape, torch.bfloat16, True, 132, 227 * 1024)
    assert of_x["moved_bytes"] == forward["moved_bytes"] and of_weights["kernel"] == "conv_gradient"
    assert of_weights["moved_bytes"] < 1.35 * of_weights["ideal_bytes"]
