"""Scan and read-out in one: the CUDA source, run on the CPU, against the reference, watched for races and strays."""

import ctypes

import pytest
import torch

from ops.arguments import DIRECTIONS
from ops.reference import gspn_mix_reference, gspn_scan_reference
from tests.ops.cases import SUBSETS, make_inputs, widened
from tests.ops.cuda_emulation import (
    AS_PLANNED,
    VECTORS_OF_4,
    Mutation,
    Plan,
    Scan,
    compile_emulation,
    make_plan,
    mutated,
    run_mix,
    run_mix_backward,
)
from tests.utils import assert_near

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = ("dx", "dlam", "dlogits", "du")
DEVICE = {"multiprocessors": 132, "shared_per_block": 227 * 1024}


def make_mix(scan, dtype, gated=True):
    u = make_inputs(*scan[:5], len(scan.directions), dtype, seed=7)[1].detach()
    return [*scan.inputs(dtype), u if gated else None]


def compare(library, scan, dtype, forward=AS_PLANNED, backward=AS_PLANNED, gated=True, seed=0, first_image=0):
    """Run both passes in the emulation and compare y, h and the gradients with the reference's."""
    *maps, u = make_mix(scan, dtype, gated)
    wide = widened(maps if u is None else [*maps, u])
    settings = (scan.directions, scan.segment, scan.normalization)
    expected = gspn_mix_reference(*wide[:3], *wide[3:] or [None], *settings)
    states = gspn_scan_reference(*wide[:3], *settings)
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype)
    wanted = torch.autograd.grad(expected, wide, grad_y.double(), allow_unused=True, materialize_grads=True)
    large = scan._replace(batch=scan.batch + first_image)
    y, h = run_mix(library, large, [*maps, u], forward, seed, first_image)
    assert_near(y, expected, "y")
    assert_near(h, states, "h")
    gradients = run_mix_backward(library, large, [grad_y, *maps, u, h], backward, seed, first_image)
    for name, actual, gradient in zip(NAMES, gradients, wanted, strict=False):
        assert_near(actual, gradient, name)
    return [y, h, *gradients]


# Forward always tiled, backward either; at one position a thread.
TILED = Plan(4, 4, 1, True)
PLANS = {
    "both tiled": (TILED, TILED),
    "dx by direction": (TILED, Plan(4, 4, 1)),
    "lanes that outnumber the channels": (Plan(4, 16, 1, True), Plan(4, 16, 1)),
    "tasks of two segments": (TILED, Plan(4, 4, 1, False, 2)),
}


@pytest.mark.parametrize("plans", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("groups", [24, 6, 2, 1], ids="groups={}".format)
@pytest.mark.parametrize("segment", [0, 3], ids="segment={}".format)
def test_plans(library, plans, groups, segment):
    for gated in (True, False):
        compare(library, Scan(2, 6, 8, 24, groups, segment=segment), torch.float32, *plans, gated)


def test_the_last_task_of_a_pass_is_shorter(library):
    """Its last line is not the last of a task: its h has been copied beside lines that are not there."""
    for groups in (8, 1):
        compare(
            library,
            Scan(2, 6, 16, 8, groups, segment=2),
            torch.float32,
            TILED,
            Plan(4, 4, 1, False, 5),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [32, 4, 1], ids="groups={}".format)
@pytest.mark.parametrize("vector", [8, 4], ids="vector={}".format)
def test_half_precision(library, dtype, groups, vector):
    backward = Plan(vector if groups < 32 else 4, 4, 1, True)
    compare(library, Scan(2, 6, 8, 32, groups, segment=4), dtype, Plan(vector, 4, 1, True), backward)


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS.keys())
@pytest.mark.parametrize(
    "sizes", [(2, 16, 16, 32, 32), (1, 14, 6, 32, 2), (3, 2, 10, 16, 1), (1, 4, 40, 8, 8)], ids=str
)
def test_shapes_as_the_op_plans_them(library, sizes, dtype):
    for segment in (0, 2):
        compare(library, Scan(*sizes, segment=segment), dtype)


def test_one_direction_needs_no_sum(library):
    for direction in DIRECTIONS:
        compare(library, Scan(1, 3, 5, 4, 4, (direction,)), torch.float32, Plan(4, 2, 1, True))


def test_two_kernels_where_directions_cannot_go_at_once(library):
    """Backward there is one kernel for them all the same, which sums dx in memory."""
    for directions in SUBSETS:
        scan = Scan(64, 16, 16, 1152, 72, directions, reads_out=True)
        plans = [make_plan(library, scan, backward, torch.bfloat16, **DEVICE) for backward in (False, True)]
        assert (plans[0].vector > 0) == (len(directions) in (1, 4))
        assert well(library, scan, False) == (len(directions) in (1, 4))
        assert plans[1].vector > 0 and plans[1].tiled == (len(directions) == 4)
    odd = make_plan(library, Scan(64, 15, 16, 1152, 72, reads_out=True), False, torch.bfloat16, **DEVICE)
    assert odd.vector == 0


def test_without_states(library):
    scan = Scan(2, 4, 6, 16, 2)
    inputs = make_mix(scan, torch.bfloat16)
    y, h = run_mix(library, scan, inputs, states=False)
    assert h is None and torch.equal(y, run_mix(library, scan, inputs)[0])


@pytest.mark.parametrize("backward", [Plan(4, 1, 1), TILED], ids=["with scratch", "tiled"])
def test_bit_equal_for_every_order_of_blocks_and_threads(library, backward):
    scan = Scan(2, 6, 8, 24, 2)
    runs = [compare(library, scan, torch.float32, TILED, backward, seed=seed) for seed in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "with scratch"])
def test_past_two_to_the_31_elements(library, tiled):
    """The last two images of x with 4.8e9 elements, and four times as many in lam and u."""
    forward, backward = Plan(4, 8, 1, True), Plan(4, 8, 1, True) if tiled else Plan(4, 4, 1)
    compare(library, Scan(2, 16, 16, 64, 8), torch.bfloat16, forward, backward, first_image=2**18 + 2**15)


MUTATIONS = {
    "the second turn at once": Mutation(
        "scan_tile.cuh",
        "meet_if(waits);\n    body();",
        "body();\n    meet_if(waits);",
        "shared memory|deadlock",
    ),
    "no turns": Mutation("scan_tile.cuh", "meet_if(goes);", "", "deadlock"),
    "lines of one direction alone": Mutation(
        "scan_forward.cuh", "lines = ReadsOut ? p.task_lines :", "lines =", "deadlock|memory"
    ),
    "idle lines at the end": Mutation(
        "scan_tile.cuh", "Step > 0 ? p.task_lines - walk.length : 0", "0", "memory|^y |never"
    ),
    "u is not waited for": Mutation(
        "scan_forward.cuh", "wait_for_copies<kStages - 1>();", "", "before its copy"
    ),
    "the gate": Mutation(
        "scan_forward.cuh", "if (gated) states[part][i] *=", "if (gated) states[part][i] +=", "^y "
    ),
    "the directions before": Mutation(
        "scan_tile.cuh", "values[i] += before[i]", "values[i] = before[i]", "^y "
    ),
    "the tile's place": Mutation("scan_tile.cuh", " + pixel * stride", "", "shared memory|^y "),
    "the tile's step": Mutation("scan_tile.cuh", "at += step", "at += 2 * step", "memory|copy|^y "),
    "y of every direction": Mutation(
        "scan_forward.cuh", "if (to.sum.keeps(item.lines)) return;", "", "second write"
    ),
    "states that nobody wants": Mutation(
        "scan_forward.cuh", "if (!ReadsOut || keeps_states)", "", "every tensor"
    ),
    "h of the last line": Mutation("scan_backward.cuh", "gated() && own_lines == lines", "false", "^du"),
    "h across segments": Mutation(
        "scan_backward.cuh",
        "ring.copy(Inputs::kH, h, own_next, item.lines != 1);",
        "ring.copy(Inputs::kH, h, there, wanted);",
        "^du|memory",
    ),
    "h of a shorter task": Mutation(
        "scan_backward.cuh", "item.lines > 1 && item.lines - 1 <= own_lines", "there", "^du|every tensor"
    ),
    "the factor of du": Mutation("scan_backward.cuh", "du[v] = dh[v] * own_h", "du[v] = own_h", "^du"),
    "the gate of dh": Mutation("scan_backward.cuh", "dh[v] *= in.u.get(v);", "", "^dx"),
    "the gradient's stride": Mutation(
        "scan_backward.cuh", "ReadsOut ? p.x_stride : p.lam_stride", "p.lam_stride", "every tensor|^dx"
    ),
}


def run_mutated(tmp_path, *mutations):
    edit = mutated([*VECTORS_OF_4, *mutations])
    library = compile_emulation(tmp_path, edit, level="-O0", kernels=("scan",), dtypes=(torch.float32,))
    scan = Scan(2, 6, 16, 8, 8, segment=2)
    compare(library, scan, torch.float32, Plan(4, 2, 1, True), Plan(4, 2, 1, False, 5))
    run_mix(library, scan, make_mix(scan, torch.float32), Plan(4, 2, 1, True), states=False)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_mutations_are_noticed(mutation, tmp_path):
    with pytest.raises(AssertionError, match=mutation.noticed):
        run_mutated(tmp_path, mutation)


def test_what_the_mutations_change_is_right_without_them(tmp_path):
    """So that what they are noticed by is not of the kernels that are left out."""
    run_mutated(tmp_path)


def well(library, scan, backward, dtype=torch.bfloat16):
    numbers = scan._replace(reads_out=True).numbers()
    return library.ask_reads_out_well(
        numbers, int(backward), dtype.itemsize, ctypes.c_int64(16), *DEVICE.values()
    )


def test_one_kernel_where_it_is_faster(library):
    """Forward only where a block holds the sum and enough blocks fit side by side; backward for larger maps too."""
    scan = Scan(64, 16, 16, 1152, 72)
    assert well(library, scan, False) and well(library, scan, True)
    assert well(library, Scan(64, 16, 16, 1500, 1500), False)
    assert not well(library, scan._replace(normalization="sigmoid"), True)
    medium, large = Scan(16, 32, 32, 1152, 72), Scan(4, 64, 64, 1152, 72)
    assert well(library, medium, False) and well(library, medium, True)
    assert not well(library, large, False) and well(library, large, True)
    assert not well(library, Scan(2, 16, 16, 37, 37), True)  # single channels


@pytest.mark.parametrize("backward", [False, True])
def test_plan_of_a_read_out(library, backward):
    scan = Scan(64, 16, 16, 1152, 72, reads_out=True)
    plan = make_plan(library, scan, backward, torch.bfloat16, **DEVICE)
    assert plan.run == 1 and plan.vector == 8 and plan.tiled
    assert plan.shared_bytes <= DEVICE["shared_per_block"]
    assert plan.lanes * plan.vector * 2 >= 32  # a sector of memory at least
