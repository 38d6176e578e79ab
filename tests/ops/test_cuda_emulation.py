"""The CUDA kernels' own source, run on the CPU: against the reference, watched for races and strays."""

import pytest
import torch

from ops.arguments import NORMALIZATIONS
from ops.reference import gspn_scan_reference
from tests.ops.cases import SHAPES, SUBSETS, widened
from tests.ops.cuda_emulation import (
    AS_PLANNED,
    VECTORS_OF_4,
    Mutation,
    Plan,
    Scan,
    compile_emulation,
    make_plan,
    mutated,
    run_backward,
    run_forward,
)
from tests.utils import assert_near

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compare(library, scan, dtype, forward=AS_PLANNED, backward=AS_PLANNED, scale=2.0):
    """Run both passes in the emulation and compare h and the gradients with the reference's."""
    inputs = scan.inputs(dtype, scale)
    wide = widened(inputs)
    settings = (scan.directions, scan.segment, scan.normalization)
    expected = gspn_scan_reference(*wide, *settings)
    generator = torch.Generator().manual_seed(1)
    grad_h = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype)
    wanted = torch.autograd.grad(expected, wide, grad_h.double(), allow_unused=True, materialize_grads=True)
    h = run_forward(library, scan, inputs, forward)
    assert_near(h, expected, "h")
    gradients = run_backward(library, scan, [grad_h, *inputs, h], backward)
    for name, actual, gradient in zip(("dx", "dlam", "dlogits"), gradients, wanted, strict=True):
        assert_near(actual, gradient, name)


# Plans that between them take every branch: (vector, lanes, run, tiled), forward and backward.
PLANS = {
    "a position a thread": (Plan(4, 4, 1), Plan(4, 4, 1)),
    "lanes that outnumber the channels": (Plan(4, 16, 1), Plan(4, 16, 1)),
    "one lane": (Plan(4, 1, 1), Plan(4, 1, 1)),
    "single channels": (Plan(1, 8, 1), Plan(1, 8, 1)),
    "runs of two": (Plan(4, 4, 2), Plan(4, 4, 2)),
    "runs of three, single channels": (Plan(1, 4, 3), Plan(1, 4, 3)),
    "a run as long as a line": (Plan(4, 2, 8), Plan(4, 2, 8)),
    "runs longer than lines": (Plan(4, 2, 11), Plan(4, 2, 11)),
    "tasks of two segments": (Plan(4, 4, 1, False, 2), Plan(4, 4, 1, False, 2)),
    "tasks of all segments, runs": (Plan(1, 8, 2, False, 9), Plan(4, 4, 3, False, 9)),
    "tiled": (Plan(4, 4, 1), Plan(4, 4, 1, True)),
    "tiled runs": (Plan(1, 4, 2), Plan(1, 4, 3, True)),
}


@pytest.mark.parametrize("plans", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("groups", [24, 6, 2, 1], ids="groups={}".format)
@pytest.mark.parametrize("segment", [0, 3], ids="segment={}".format)
def test_plans(library, plans, groups, segment):
    compare(library, Scan(2, 5, 8, 24, groups, segment=segment), torch.float32, *plans)


@pytest.mark.parametrize("directions", [("left",), ("up", "right", "left")], ids=str)
@pytest.mark.parametrize("groups", [2, 1], ids="groups={}".format)
def test_logits_in_either_half_of_a_word(library, directions, groups):
    """An odd number of logits a pixel: from pixel to pixel they change halves."""
    for run in (1, 3):
        scan = Scan(2, 5, 6, 16, groups, directions, segment=3)
        compare(library, scan, torch.bfloat16, Plan(8, 2, run, False, 2), Plan(4, 2, run))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [32, 4, 1], ids="groups={}".format)
@pytest.mark.parametrize("vector", [8, 4, 1], ids="vector={}".format)
@pytest.mark.parametrize("run", [1, 3], ids="run={}".format)
def test_half_precision(library, dtype, groups, vector, run):
    widest = 8 if run == 1 and groups < 32 else 4
    backward = Plan(min(vector, widest), 2, run, tiled=run == 3)
    compare(library, Scan(2, 6, 5, 32, groups, segment=4), dtype, Plan(vector, 2, run), backward)


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes_as_the_op_plans_them(library, shape, dtype):
    *sizes, segment = shape
    compare(library, Scan(*sizes, segment=segment), dtype)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("groups", [8, 1])
def test_normalizations(library, normalization, groups):
    for directions in (("left",), ("up", "right")):
        scan = Scan(2, 4, 7, 8, groups, directions, normalization=normalization)
        compare(library, scan, torch.float32, scale=0.2 if normalization == "none" else 40.0)


def test_each_subset_of_directions(library):
    for directions in SUBSETS:
        compare(library, Scan(1, 3, 4, 4, 4, directions), torch.float32)


EXTREMES = {
    "of every size": [-3.4e38, -1e4, 3.4e38, 1e4, -88.0, -28.0, 0.0, 3.0],
    "-1e9": [-1e9],
    "-1e10": [-1e10],
    "-1e20": [-1e20],
    "-3.4e38": [-3.4e38],
    "large and negative": [-1e9, -1e10, -1e20, -1e9 - 64, -3.4e38, -3e38],
    "large and negative among others": [-1e9, -1e10, -1e20, 0.5, -2.0, 1e9],
}


@pytest.mark.parametrize("values", EXTREMES.values(), ids=EXTREMES.keys())
@pytest.mark.parametrize("groups", [40, 4])
def test_extreme_logits(library, values, groups):
    values = torch.tensor(values)
    for normalization in ("row_stochastic", "sigmoid"):
        scan = Scan(2, 4, 6, 40, groups, normalization=normalization)
        inputs = scan.inputs(torch.float32)
        choice = torch.randint(len(values), inputs[2].shape, generator=torch.Generator().manual_seed(2))
        inputs[2] = values[choice]
        wide = widened(inputs)
        expected = gspn_scan_reference(*wide, normalization=scan.normalization)
        h = run_forward(library, scan, inputs)
        assert_near(h, expected, "h")
        wanted = torch.autograd.grad(expected.sum(), wide)
        gradients = run_backward(library, scan, [torch.ones_like(h), *inputs, h])
        for actual, gradient in zip(gradients, wanted, strict=True):
            assert_near(actual, gradient)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("neighbour", [0, 1, 2])
def test_nan_logits_are_not_dropped(library, normalization, neighbour):
    scan = Scan(1, 3, 4, 4, 4, ("right",), normalization=normalization)
    inputs = scan.inputs(torch.float32)
    inputs[2][0, 1, 1, 0, neighbour, 2] = torch.nan
    h = run_forward(library, scan, inputs)
    assert h[0, 1, 1, 0, 2].isnan()
    assert h.isnan().equal(gspn_scan_reference(*inputs, ("right",), 0, normalization).isnan())
    _, _, dlogits = run_backward(library, scan, [torch.ones_like(h), *inputs, h.nan_to_num()])
    assert dlogits[0, 1, 1, 0, neighbour, 2].isnan() or normalization == "none"


def test_bit_equal_for_every_order_of_blocks_and_threads(library):
    scan = Scan(2, 6, 5, 24, 2)
    inputs = scan.inputs(torch.float32)
    runs = []
    for seed in range(4):
        h = run_forward(library, scan, inputs, seed=seed)
        runs.append([h, *run_backward(library, scan, [h, *inputs, h], Plan(4, 1, 1), seed=seed)])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


ONE_TYPE = {"level": "-O0", "kernels": ("scan",)}
ONLY_FLOAT = {**ONE_TYPE, "dtypes": (torch.float32,)}
BARRIERS = (
    Mutation("scan_forward.cuh", "    __syncthreads();\n    parity", "    parity", "shared memory"),
    Mutation("scan_backward.cuh", "if (item.place == 0) __syncthreads();", "", "shared memory"),
)
INDICES = (
    Mutation(
        "scan_forward.cuh",
        "slots.at(kFirst, part) + slots.row_stride + parity",
        "slots.at(kFirst, part) + parity",
        "^h ",
    ),
    Mutation("scan_backward.cuh", "ring.read_of(beside[1],", "ring.read_of(beside[0],", "^dlogits "),
)
BOUNDS = (
    Mutation(
        "scan_forward.cuh",
        "task.exists && position < walk.length ? min(lines, walk.lines - first_line) : 0",
        "min(lines, walk.lines - first_line)",
        "every tensor|second write",
    ),
    Mutation("scan_backward.cuh", "item.lines <= own_lines &&", "", "every tensor|second write"),
)
NO_WAIT = (
    Mutation("scan_forward.cuh", "wait_for_copies<kStages - 1>();", "", "before its copy has landed"),
    Mutation("scan_backward.cuh", "wait_for_copies<kStages - 2>();", "", "before its copy has landed"),
)
GROUPS = (
    Mutation("scan_forward.cuh", "copies<kStages - 1>", "copies<kStages>", "before its copy has landed"),
    Mutation("scan_backward.cuh", "copies<kStages - 2>", "copies<kStages - 1>", "before its copy has landed"),
)
STAGES = (
    Mutation("scan_forward.cuh", "i < kStages; i++", "i < kStages - 1; i++", "before its copy|before it is"),
    Mutation(
        "scan_backward.cuh", "i < kStages - 1; i++", "i < kStages - 2; i++", "before its copy|before it is"
    ),
)
PLACES = (
    Mutation("scan_ring.cuh", "(kStages - 1) * kPlace ? 0", "kStages * kPlace ? 0", "memory|copy"),
    Mutation("scan_ring.cuh", "(kStages - 1) * kPlace ? 0", "(kStages - 2) * kPlace ? 0", "memory|copy"),
)
MUTATIONS = {
    "barrier": BARRIERS,
    "index": INDICES,
    "bounds": BOUNDS,
    "no wait": NO_WAIT,
    "group number": GROUPS,
    "stage count": STAGES,
    "a place too many": PLACES[:1] * 2,
    "a place too few": PLACES[1:] * 2,
}


@pytest.mark.parametrize("mutations", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_mutations_are_noticed(mutations, tmp_path):
    library = compile_emulation(tmp_path, mutated([*VECTORS_OF_4, *dict.fromkeys(mutations)]), **ONLY_FLOAT)
    scan = Scan(2, 5, 9, 8, 8, segment=3)
    inputs = scan.inputs(torch.float32)
    wide = widened(inputs)
    h = gspn_scan_reference(*wide, segment=scan.segment)
    wanted = torch.autograd.grad(h.sum(), wide)
    with pytest.raises(AssertionError, match=mutations[0].noticed):
        assert_near(run_forward(library, scan, inputs, Plan(4, 2, 1)), h, "h")
    stored = h.detach().float()
    with pytest.raises(AssertionError, match=mutations[1].noticed):
        gradients = run_backward(library, scan, [torch.ones_like(stored), *inputs, stored], Plan(4, 2, 1))
        for name, actual, expected in zip(("dx", "dlam", "dlogits"), gradients, wanted, strict=True):
            assert_near(actual, expected, name)


TILED = Plan(4, 16, 1, True)
WITH_SCRATCH = Plan(4, 4, 1)  # of dx by direction, and, with one group, of parts of dlogits


@pytest.mark.parametrize("groups", [64, 8, 1], ids="groups={}".format)
@pytest.mark.parametrize("plan", [TILED, WITH_SCRATCH], ids=["tiled", "with scratch"])
def test_past_two_to_the_31_elements(library, groups, plan):
    """The last two images of x with 4.8e9 elements, and four times as many in lam; those before are not in memory."""
    compare_last_images(library, groups, plan)


def compare_last_images(library, groups, plan):
    first, pair = 2**18 + 2**15, Scan(2, 16, 16, 64, groups)
    scan, inputs = pair._replace(batch=first + 2), pair.inputs(torch.bfloat16)
    wide = widened(inputs)
    expected = gspn_scan_reference(*wide)
    h = run_forward(library, scan, inputs, first_image=first)
    assert_near(h, expected, "h")
    wanted = torch.autograd.grad(expected.sum(), wide)
    gradients = run_backward(library, scan, [torch.ones_like(h), *inputs, h], plan, first_image=first)
    for name, actual, gradient in zip(("dx", "dlam", "dlogits"), gradients, wanted, strict=True):
        assert_near(actual, gradient, name)


def test_copies_left_in_flight_between_directions_are_noticed(tmp_path):
    mutation = Mutation("scan_backward.cuh", "wait_for_copies<0>();", "", "copy in flight")
    library = compile_emulation(tmp_path, mutated([*VECTORS_OF_4, mutation]), **ONLY_FLOAT)
    scan = Scan(1, 4, 4, 8, 8)
    inputs = scan.inputs(torch.float32)
    h = run_forward(library, scan, inputs)
    with pytest.raises(AssertionError, match=mutation.noticed):
        run_backward(library, scan, [h, *inputs, h], Plan(4, 2, 1, True))


NARROW = (
    Mutation(
        "scan_forward.cuh", "const int64_t image = task.image", "const int image = task.image", "tensor"
    ),
    Mutation(
        "scan_backward.cuh", "x_start = image * p.x_stride +", "x_start = int(image) * p.x_stride +", "tensor"
    ),
    Mutation("scan_backward.cuh", "(logits_start + d *", "int(logits_start + d *", "tensor"),
)


@pytest.mark.parametrize(
    "mutation, plan",
    list(zip(NARROW, (TILED, TILED, WITH_SCRATCH), strict=True)),
    ids=["forward", "backward", "scratch"],
)
def test_indices_of_32_bits_are_noticed(mutation, plan, tmp_path):
    library = compile_emulation(
        tmp_path, mutated([*VECTORS_OF_4, mutation]), **ONE_TYPE, dtypes=(torch.bfloat16,)
    )
    with pytest.raises(AssertionError, match=mutation.noticed):
        compare_last_images(library, 1, plan)


def test_what_the_mutations_change_is_right_without_them(tmp_path):
    """So that what they are noticed by is not of the kernels that are left out."""
    plan = Plan(4, 2, 1)
    library = compile_emulation(tmp_path / "float32", mutated(VECTORS_OF_4), **ONLY_FLOAT)
    compare(library, Scan(2, 5, 9, 8, 8, segment=3), torch.float32, plan, plan)
    library = compile_emulation(
        tmp_path / "bfloat16", mutated(VECTORS_OF_4), **ONE_TYPE, dtypes=(torch.bfloat16,)
    )
    for plan in (TILED, WITH_SCRATCH):
        compare_last_images(library, 1, plan)


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


@pytest.mark.parametrize("side", [1, 2, 64, 128, 256, 700, 1024, 4096, 9000])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("channels, groups", [(8, 8), (1152, 72), (1500, 1500), (7, 1)])
def test_plan_exists_and_fits(library, side, backward, channels, groups):
    for dtype in (torch.float32, torch.bfloat16):
        for shared in (99 * 1024, 163 * 1024, 227 * 1024):
            scan = Scan(1, side, side, channels, groups)
            plan = report(library, scan, backward, dtype, shared_per_block=shared)
            assert plan.vector >= 1
            assert plan.rows * plan.run >= side
            assert plan.threads <= 512
            assert plan.shared_bytes <= shared
            if plan.vector == 8:
                assert not backward or (plan.run == 1 and groups < channels)


def test_plan_refuses_lines_that_no_block_holds(library):
    assert report(library, Scan(1, 1, 200_000, 8, 8)).vector == 0


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
