"""The arithmetic of what bounds a scan on a GPU, on a plan that is made up."""

import pytest
import torch

from benchmarks.scan_cost import Plan, Shape, ideal_bytes, merge_bytes
from benchmarks.scan_limits import instructions_of, limits, saved_by_maps_inside, target

SHAPE = Shape("a map", 2, 16, 16, 64, 8)
PIXELS, K, C, LOGITS = 2 * 16 * 16, 4, 64, 4 * 3 * 8
PLAN = Plan(8, 8, 16, 1, 0, 1, 32 * 1024, 264, 16, 3, 100.0)


def test_scan_and_read_out_in_one_moves_less_than_apart():
    """By formula, of ops/README.md, but for the logits of lines that start anew."""
    read = 15 / 16
    inference = ideal_bytes(SHAPE, torch.bfloat16, False, True, states=False)
    assert inference == 2 * PIXELS * (2 * C + 2 * K * C + read * LOGITS)
    assert ideal_bytes(SHAPE, torch.bfloat16, False, True) == inference + 2 * PIXELS * K * C
    backward = ideal_bytes(SHAPE, torch.bfloat16, True, True)
    assert backward == 2 * PIXELS * (3 * C + 5 * K * C + (1 + read) * LOGITS)
    apart = ideal_bytes(SHAPE, torch.bfloat16, False) + merge_bytes(SHAPE, torch.bfloat16, False)
    assert apart == inference + 2 * 2 * PIXELS * K * C


def test_what_binds_is_what_takes_longest():
    instructions = instructions_of(SHAPE, False, PLAN, False)
    assert 100 < instructions < 200
    found = limits(SHAPE, False, PLAN, 2, 4.3e6, 4.3e12, False)
    assert found.memory == pytest.approx(1)
    items = 264 * 4 * 16  # blocks, warps, lines
    assert found.instructions == pytest.approx(items * instructions / (132 * 4 * 1755))
    assert found.waiting == pytest.approx(
        16 * (0.9 / 3 + 0.1)
    )  # one wave of two blocks on each multiprocessor
    assert found.binds == "waiting"
    assert limits(SHAPE, False, PLAN, 2, 4.3e9, 4.3e12, False).binds == "memory"


def test_targets_are_lower_on_small_maps():
    large = SHAPE._replace(height=64, width=64)
    assert [target(SHAPE, backward) for backward in (False, True)] == [0.80, 0.75]
    assert [target(large, backward) for backward in (False, True)] == [0.90, 0.85]


def test_maps_computed_inside_save_their_bytes():
    saved = saved_by_maps_inside(width=64, rank=4, groups=8, bandwidth=1e12, rate=1e15)
    assert saved["maps_forward"] == pytest.approx(2 * 2 * (2 * K * C + LOGITS) / 1e12 * 1e9)
    assert 0 < saved["maps_backward"] < saved["maps_forward"] / 2
