"""The CUDA kernels' own source, run on the CPU: against the reference, watched for races and strays."""

import pytest
import torch

from ops.arguments import DIRECTIONS, NORMALIZATIONS
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


# Plans that between them take every branch but of tiled ones: (vector, lanes, run), forward and backward.
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
    "runs of two, single channels": (Plan(1, 4, 2), Plan(1, 4, 2)),
}


@pytest.mark.parametrize("plans", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("groups", [24, 6, 2, 1], ids="groups={}".format)
@pytest.mark.parametrize("segment", [0, 3], ids="segment={}".format)
def test_plans(library, plans, groups, segment):
    compare(library, Scan(2, 5, 8, 24, groups, segment=segment), torch.float32, *plans)


ALL_AT_ONCE = {
    "as wide as high": (8, 8, Plan(4, 4, 1, True)),
    "wider": (6, 8, Plan(4, 4, 1, True)),
    "higher": (16, 2, Plan(4, 2, 1, True)),
    "two lines": (2, 8, Plan(4, 8, 1, True)),
    "lanes that outnumber the channels": (8, 4, Plan(4, 16, 1, True)),
    "one lane": (4, 32, Plan(4, 1, 1, True)),
    "rows without a position": (10, 6, Plan(4, 4, 1, True)),
    "single channels": (6, 8, Plan(1, 16, 1, True)),
}


@pytest.mark.parametrize("sizes", ALL_AT_ONCE.values(), ids=ALL_AT_ONCE.keys())
@pytest.mark.parametrize("groups", [24, 2], ids="groups={}".format)
@pytest.mark.parametrize("segment", [0, 3], ids="segment={}".format)
def test_all_directions_at_once(library, sizes, groups, segment):
    height, width, plan = sizes
    for directions in (DIRECTIONS, ("up", "left", "down", "right")):
        scan = Scan(2, height, width, 24, groups, directions, segment)
        compare(library, scan, torch.float32, backward=plan)


@pytest.mark.parametrize(
    "sizes, directions",
    [
        ((5, 8), DIRECTIONS),
        ((8, 5), DIRECTIONS),
        ((8, 8), DIRECTIONS[:2]),
        ((8, 8), (*DIRECTIONS[:3], "right")),
    ],
    ids=["odd height", "odd width", "two directions", "one twice"],
)
def test_directions_that_cannot_go_at_once(library, sizes, directions):
    scan = Scan(2, *sizes, 8, 8, directions)
    x, lam, logits = scan.inputs(torch.float32)
    with pytest.raises(AssertionError, match="cannot do all directions"):
        run_backward(library, scan, [lam, x, lam, logits, lam], Plan(4, 4, 1, True))
    assert not make_plan(library, scan, True, torch.float32).tiled


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
    widest = min(vector, 8 if run == 1 and groups < 32 else 4)
    compare(library, Scan(2, 6, 5, 32, groups, segment=4), dtype, Plan(vector, 2, run), Plan(widest, 2, run))
    if run == 1:
        compare(library, Scan(2, 6, 8, 32, groups, segment=4), dtype, backward=Plan(widest, 4, 1, True))


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
    Mutation("scan_backward.cuh", "if (Single || item.n == run.first) __syncthreads();", "", "shared memory"),
)
INDICES = (
    Mutation(
        "scan_forward.cuh",
        "slots.mine + slots.row_stride + offset(part, parity)",
        "slots.mine + offset(part, parity)",
        "^h ",
    ),
    Mutation("scan_backward.cuh", "ring.read_of(beside[1],", "ring.read_of(beside[0],", "^dlogits "),
)
BOUNDS = (
    Mutation(
        "scan_forward.cuh",
        "task.exists && run.first < walk.length ? min(lines, walk.lines - first_line) : 0",
        "min(lines, walk.lines - first_line)",
        "every tensor|second write|before the write",
    ),
    Mutation(
        "scan_backward.cuh", "item.lines <= own_lines &&", "", "every tensor|second write|before the write"
    ),
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


TILED = Plan(4, 8, 1, True)
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


TURNS = {
    "no turns": Mutation("scan_tile.cuh", "tile.goes = sums && !second", "tile.goes = sums", "deadlock"),
    "the second turn at once": Mutation(
        "scan_tile.cuh",
        "meet_if(waits);\n    body();",
        "body();\n    meet_if(waits);",
        "shared memory",
    ),
    "planes of half warps": Mutation(
        "scan_plan.h", "while (plan.lanes * plan.rows % 32 != 0) plan.rows++;", ";", "threads of a warp"
    ),
    "a plane's threads in one ring": Mutation(
        "scan_ring.cuh", "(plane * blockDim.y + threadIdx.y)", "threadIdx.y", "memory|copy"
    ),
    "a plane's slots": Mutation("scan_task.cuh", "plane * slots * kParts", "plane * kParts", "memory"),
    "the first one later": Mutation(
        "scan_tile.cuh", "far_end + second, half + 1", "far_end, half + 1", "^dx|memory"
    ),
    "the first one of those that run against each other": Mutation(
        "scan_tile.cuh", "half + 1)", "0)", "^dx|memory"
    ),
    "the last one earlier": Mutation(
        "scan_tile.cuh", "min(near_end + second, half)", "min(near_end, half)", "write|^dx|never"
    ),
    "the last one of those that run against each other": Mutation(
        "scan_tile.cuh", "min(near_end + second, half)", "near_end + second", "write|^dx"
    ),
    "lines of one direction alone": Mutation(
        "scan_backward.cuh", "lines = Single && p.tiled ? p.task_lines :", "lines =", "deadlock|memory"
    ),
}


@pytest.mark.parametrize("mutation", TURNS.values(), ids=TURNS.keys())
def test_mistakes_in_step_are_noticed(mutation, tmp_path):
    library = compile_emulation(tmp_path, mutated([*VECTORS_OF_4, mutation]), **ONLY_FLOAT)
    with pytest.raises(AssertionError, match=mutation.noticed):
        compare_tiled(library)


def compare_tiled(library):
    for sizes in ((8, 8), (6, 8), (8, 4), (10, 6)):
        compare(library, Scan(1, *sizes, 16, 16), torch.float32, backward=Plan(4, 4, 1, True))


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
    compare_tiled(library)
    library = compile_emulation(
        tmp_path / "bfloat16", mutated(VECTORS_OF_4), **ONE_TYPE, dtypes=(torch.bfloat16,)
    )
    for plan in (TILED, WITH_SCRATCH):
        compare_last_images(library, 1, plan)
