"""The plans of the CUDA scan: a pure function from a shape to a launch."""

import ctypes

import pytest
import torch

from tests.ops.cuda_emulation import Scan, make_plan


def report(library, scan, backward=False, dtype=torch.bfloat16, **limits):
    return make_plan(library, scan, backward, dtype, **limits)


def test_plan_takes_the_widest_access(library):
    assert report(library, Scan(64, 16, 16, 1152, 72)).vector == 8
    assert report(library, Scan(64, 16, 16, 1152, 72), alignment=8).vector == 4
    assert report(library, Scan(64, 16, 16, 1152, 72), alignment=2).vector == 1
    assert report(library, Scan(64, 16, 16, 900, 900)).vector == 4  # rows of 1,800 bytes
    assert report(library, Scan(64, 16, 16, 1152, 288)).vector == 4  # groups of 4 channels
    assert report(library, Scan(64, 16, 16, 1152, 1152), dtype=torch.float32).vector == 4
    assert report(library, Scan(2, 16, 16, 37, 37)).vector == 1
    assert report(library, Scan(1, 5, 5, 64, 1, ("up",))).vector == 1  # 75 logits fill no whole words
    assert report(library, Scan(2, 5, 5, 64, 1, ("up",))).vector == 8


@pytest.mark.parametrize("channels, groups", [(1500, 1500), (900, 900), (1152, 72), (1152, 1)])
def test_plan_of_short_lines_keeps_them_in_registers_and_dx_in_the_block(library, channels, groups):
    scan = Scan(64, 16, 16, channels, groups)
    for backward in (False, True):
        plan = report(library, scan, backward)
        assert plan.run == 1
        assert plan.tiled == backward
        assert plan.lanes * plan.vector * 2 >= 32  # a sector of memory at least
        assert plan.blocks >= 4 * 132


def test_division_by_what_the_host_knows(library):
    generator = torch.Generator().manual_seed(0)
    values = [*range(1, 70), 144, 375, 1500, 2**31 - 1, *(2**k + d for k in range(7, 31) for d in (-1, 0, 1))]
    for value in values:
        whole = torch.randint(0, (2**31 - 1) // value + 1, (40,), generator=generator).tolist()
        numbers = {q * value + d for q in (*whole, (2**31 - 1) // value) for d in (-1, 0, 1)} | {0, 2**31 - 1}
        for n in numbers:
            if 0 <= n < 2**31:
                assert library.divide(ctypes.c_int64(value), n) == n // value, (n, value)


def registers(plan, backward, grouped, dtype):
    """register_limit of scan_plan.h for a scan alone."""
    if plan.vector == 1:
        return 80 if backward else 64
    if backward:
        return 128
    return 64 if grouped or plan.vector * dtype.itemsize < 16 else 80


@pytest.mark.parametrize("side", [1, 2, 14, 16, 32, 64, 128, 256, 700, 1024, 4096, 9000])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("channels, groups", [(8, 8), (1152, 72), (1500, 1500), (7, 1)])
def test_plan_exists_and_fits(library, side, backward, channels, groups):
    for dtype in (torch.float32, torch.bfloat16):
        for shared in (99 * 1024, 163 * 1024, 227 * 1024):
            scan = Scan(1, side, side, channels, groups)
            plan = report(library, scan, backward, dtype, shared_per_block=shared)
            assert plan.vector >= 1
            assert plan.rows * plan.run >= side
            assert plan.threads <= min(1024, 65536 // registers(plan, backward, groups < channels, dtype))
            assert not plan.tiled or plan.lanes * plan.rows % 32 == 0  # whole warps for each direction
            assert plan.shared_bytes <= shared
            if plan.vector == 8:
                assert not backward or (plan.run == 1 and groups < channels)


def test_the_longest_lines_that_a_block_holds(library):
    for backward in (False, True):
        assert report(library, Scan(1, 1, 27_000, 1152, 72), backward).vector > 0
        assert report(library, Scan(1, 1, 200_000, 8, 8), backward).vector == 0


@pytest.mark.parametrize("batch, side", [(4, 64), (1, 128)])
def test_plan_keeps_memory_busy_to_the_end(library, batch, side):
    """Hardly more scans than fit at once: the last wave of blocks must still have bytes enough in flight."""
    plan = report(library, Scan(batch, side, side, 1152, 72))
    by_registers = 32 // (-(-plan.threads // 32))  # at 64 registers
    resident = 132 * min(by_registers, 228 * 1024 // (plan.shared_bytes + 1024))
    last_wave = plan.blocks % resident or resident
    bytes_of_an_item = 2 * (2 * plan.vector + 3)
    assert last_wave * plan.threads * 3 * bytes_of_an_item > 3e6  # 4.3 TB/s for 700 ns


@pytest.mark.parametrize("channels, groups", [(1500, 1500), (1152, 72)])
@pytest.mark.parametrize("side, batch", [(16, 64), (32, 16), (64, 4)])
@pytest.mark.parametrize("segment", [0, 2], ids="segment={}".format)
def test_plan_has_40_kilobytes_in_flight_forward(library, channels, groups, side, batch, segment):
    plan = report(library, Scan(batch, side, side, channels, groups, segment=segment))
    by_registers = 32 // (-(-plan.threads // 32))
    resident = min(by_registers, 228 * 1024 // (plan.shared_bytes + 1024), plan.blocks / 132)
    logits = 3 * (plan.vector if groups == channels else 1)
    assert resident * plan.threads * 3 * 2 * (2 * plan.vector + logits) >= 40 * 1024


@pytest.mark.parametrize("backward", [False, True])
def test_plan_of_a_local_scan_has_long_tasks(library, backward):
    """A block that does two lines does little else than to start."""
    for side, batch in ((16, 64), (64, 4), (256, 1)):
        plan = report(library, Scan(batch, side, side, 1500, 1500, segment=2), backward)
        assert plan.tiled or plan.task_lines >= 16
