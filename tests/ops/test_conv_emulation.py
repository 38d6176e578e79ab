"""The depthwise convolution's CUDA source, run on the CPU: against its definition, watched for races and strays."""

from typing import NamedTuple

import pytest
import torch

from tests.ops.cuda_emulation import (
    ConvPlan,
    Mutation,
    compile_emulation,
    make_conv_plan,
    mutated,
    run_conv,
    run_conv_gradient,
)
from tests.ops.test_conv import by_definition, make_conv
from tests.utils import assert_near

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AS_PLANNED = ConvPlan()


class Case(NamedTuple):
    """A convolution's inputs, what the definition makes of them in float64, and the gradients of that."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    grad_y: torch.Tensor
    y: torch.Tensor
    gradients: tuple[torch.Tensor, ...]
    square: bool


def make_case(shape, size, dtype, square=False):
    x, weight, bias = (tensor.detach() for tensor in make_conv(shape, size, dtype))
    wide = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = by_definition(*wide, activation="relu_squared" if square else None)
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad(y, wide, grad_y.double())
    return Case(x, weight, bias, grad_y, y.detach(), gradients, square)


def compare_forward(library, case, plan=AS_PLANNED, **settings):
    """Run the convolution and its transpose; return y, relu or None, and dx."""
    inputs, square = [case.x, None, case.weight, case.bias], case.square
    y, relu = run_conv(library, inputs, plan, square=square, keep=square, **settings)
    assert_near(y, case.y, "y")
    if square:
        assert_near(relu, case.y.sqrt(), "relu")
    dx, _ = run_conv(library, [case.grad_y, relu, case.weight, None], plan, turned=True, **settings)
    assert_near(dx, case.gradients[0], "dx")
    return y, relu, dx


def compare_gradient(library, case, plan=AS_PLANNED, **settings):
    """Run the gradient of the weights; return dweight and dbias."""
    relu = case.y.sqrt().to(case.x.dtype) if case.square else None
    inputs, size = [case.grad_y, relu, case.x], case.weight.shape[-1]
    dweight, dbias = run_conv_gradient(library, inputs, size, plan, **settings)
    assert_near(dweight, case.gradients[1], "dweight")
    assert_near(dbias, case.gradients[2], "dbias")
    return dweight, dbias


def compare(library, shape, size, dtype, plan=AS_PLANNED, square=False):
    case = make_case(shape, size, dtype, square)
    compare_forward(library, case, plan)
    compare_gradient(library, case, plan)


# Plans that between them take every branch.
PLANS = {
    "the usual one": ConvPlan(64, 16, 9, 1),
    "the usual one, all images": ConvPlan(64, 16, 9, 3),
    "rows in three": ConvPlan(64, 16, 3, 1),
    "single rows, images in two": ConvPlan(64, 16, 1, 2),
    "rows and images": ConvPlan(64, 16, 4, 2),
    "few channels": ConvPlan(8, 16, 9, 1),
    "narrow accesses": ConvPlan(64, 8, 5, 2),
    "words": ConvPlan(32, 4, 9, 1),
    "many channels": ConvPlan(128, 8, 4, 3),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("size", [3, 5, 7])
def test_plans(conv_library, plan, size):
    for square in (False, True):
        compare(conv_library, (3, 9, 11, 72), size, torch.float32, plan, square)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("access", [16, 8, 4, 2])
@pytest.mark.parametrize("lanes", [128, 64, 16])
def test_half_precision(conv_library, dtype, access, lanes):
    channels = 75 if access == 2 else 70 if access == 4 else 88
    plan = ConvPlan(lanes, access, 4, 2)
    for size in (3, 7):
        compare(conv_library, (2, 5, 17, channels), size, dtype, plan, square=size == 3)


SHAPES = {
    "one pixel": (2, 1, 1, 20),
    "one row": (1, 1, 19, 16),
    "one column": (2, 23, 1, 8),
    "one channel": (3, 6, 4, 1),
    "odd channels": (2, 5, 7, 37),
    "two tiles": (1, 6, 33, 64),
    "three strips": (1, 4, 16, 130),
    "a low and wide map": (1, 2, 150, 8),
}


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes_as_the_op_plans_them(conv_library, shape, dtype):
    for size, square in ((3, True), (5, False), (7, False)):
        compare(conv_library, shape, size, dtype, square=square)


def test_without_bias_or_its_gradient(conv_library):
    x, weight = (tensor.detach() for tensor in make_conv((2, 4, 5, 24), 5, torch.bfloat16, bias=False))
    y, _ = run_conv(conv_library, [x, None, weight, None])
    assert_near(y, by_definition(x.double(), weight.double()), "y")
    alone, nothing = run_conv_gradient(conv_library, [x, None, x], 5, bias=False)
    assert nothing is None and torch.equal(alone, run_conv_gradient(conv_library, [x, None, x], 5)[0])


def test_relu_is_kept_only_where_wanted(conv_library):
    tensors = [tensor.detach() for tensor in make_conv((2, 4, 5, 24), 3, torch.float16)]
    inputs = [tensors[0], None, *tensors[1:]]
    kept, relu = run_conv(conv_library, inputs, square=True, keep=True)
    y, nothing = run_conv(conv_library, inputs, square=True)
    assert nothing is None and relu is not None and torch.equal(y, kept)


def test_a_weight_off_its_words_is_read_by_elements(conv_library):
    x, weight, bias = (tensor.detach() for tensor in make_conv((1, 4, 5, 24), 3, torch.bfloat16))
    memory = torch.empty(weight.numel() + 1, dtype=weight.dtype)
    moved = memory[1:].view_as(weight).copy_(weight)
    y, other = (run_conv(conv_library, [x, None, w, bias])[0] for w in (weight, moved))
    assert moved.data_ptr() % 4 == 2 and torch.equal(y, other)


def test_nan_is_not_dropped(conv_library):
    x, weight, bias = (tensor.detach() for tensor in make_conv((1, 5, 6, 8), 3, torch.float32))
    x[0, 2, 3, 5] = torch.nan
    y, relu = run_conv(conv_library, [x, None, weight, bias], square=True, keep=True)
    wanted = by_definition(x, weight, bias, "relu_squared").isnan()
    assert wanted.sum() == 9 and torch.equal(y.isnan(), wanted) and torch.equal(relu.isnan(), wanted)


def test_bit_equal_for_every_order_of_blocks_and_threads(conv_library):
    plan, case = ConvPlan(64, 16, 3, 1), make_case((3, 8, 18, 72), 3, torch.bfloat16, square=True)
    runs = [
        (
            *compare_forward(conv_library, case, plan, seed=seed),
            *compare_gradient(conv_library, case, plan, seed=seed),
        )
        for seed in range(3)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


# The last two images of x with 4.8e9 elements; those before are not in memory.
LAST = {"plan": ConvPlan(64, 16, 16, 2), "first_image": 2**18 + 2**15}


def test_past_two_to_the_31_elements(conv_library):
    case = make_case((2, 16, 16, 64), 3, torch.float32)
    compare_forward(conv_library, case, **LAST)
    compare_gradient(conv_library, case, **LAST)


OF_SIZE_3 = Mutation(  # no mistake: the other sizes would take half of the compiler's time
    "conv_dispatch.cuh",
    "if (s.size == 5) return with_size(Constant<5>());\n  with_size(Constant<7>());",
    "",
    "",
)
FORWARD = {
    "no barrier": ("    __syncthreads();\n    copy_row", "    copy_row", "shared memory"),
    "no barrier before the last row": (
        "    __syncthreads();\n    store_row",
        "    store_row",
        "shared memory",
    ),
    "no wait": ("{\n    wait_for_copies<kPlaces - 2>();", "{", "copy"),
    "a group too many in flight": (
        "copies<kPlaces - 2>",
        "copies<kPlaces - 1>",
        "copy has landed|before it is",
    ),
    "the border's first column": ("corner = pad *", "corner = (pad - 1) *", "tensor|^y "),
    "a row past the map's last": ("next.images > 0 && next.row < height", "next.images > 0", "tensor"),
    "sums of the image before": ("    sums.set_all(bias);\n    int row", "    int row", "^y |finite"),
    "the order of the kernel's rows": ("weights[(Size - 1 - i) *", "weights[i *", "^y "),
    "weights not turned": ("tensors.turned ? -element", "false ? -element", "^dx|memory"),
    "the gate's place": ("mine + row_bytes, stride", "mine, stride", "^dx"),
    "two rows out in one place": ("out = 2 * rows_out + out_bytes - out;", "", "race|shared memory"),
}
GRADIENT = {
    "no barrier": ("      __syncthreads();\n      copy_rows", "      copy_rows", "shared memory"),
    "no barrier before the sum": (
        "  __syncthreads();\n  const Shared of_bias",
        "  const Shared of_bias",
        "shared memory",
    ),
    "a group too many in flight": (
        "copies<kPlaces - 2>",
        "copies<kPlaces - 1>",
        "copy has landed|before it is",
    ),
    "a row past the map's last": ("if (next.row < height)", "", "tensor"),
    "rows of x before the block's": (
        "if (walk.row - pad >= task.begin) {",
        "if (walk.row >= pad) {",
        "dweight|memory|copy",
    ),
    "rows of the bias": ("walk.row >= task.begin && walk.row < task.end", "walk.row < height", "^dbias"),
    "rows of the image before": ("    products.forget();\n    const", "    const", "^dweight"),
    "the window's rows": ("g[Size - 1 - i][q], x", "g[i][q], x", "^dweight"),
    "threads of a channel": ("i < kThreads / lanes; i++", "i < 1; i++", "^dweight"),
    "parts": ("j = threadIdx.y; i", "j = 0; i", "^dweight"),
    "rows of parts": ("j < kSumRows; j++", "j < kSumRows - 1; j++", "^dweight"),
}
TILE = {
    "a place too few": ("at = at == last ? begin", "at = at + bytes == last ? begin", "copy|memory|^y "),
    "the end of a row": ("static_cast<unsigned>(left + i) < width;", "width > 0;", "tensor|^y "),
    "channels that do not exist": (
        "channel < s.channels ? static_cast<unsigned>(s.width) : 0",
        "static_cast<unsigned>(s.width)",
        "tensor|second write",
    ),
    "from image to image": ("place += jump;", "", "^y |tensor"),
    "the gate's factor": ("*= 2.f *", "*=", "^dx"),
    "columns of a row out": (
        "if (static_cast<unsigned>(left + i) >= width) return;",
        "",
        "tensor|second write",
    ),
}
# 12 parts, and tiles, strips, rows and images that begin and end inside of the map.
SHAPE, PLAN = (3, 13, 19, 72), ConvPlan(64, 16, 5, 2)


def compile_mutated(tmp_path, *mutations):
    edit = mutated([OF_SIZE_3, *mutations])
    return compile_emulation(tmp_path, edit, level="-O0", kernels=("conv",), dtypes=(torch.float32,))


@pytest.mark.parametrize("number", range(len(FORWARD)))
def test_mutations_are_noticed(number, tmp_path):
    """One of each kernel's at a time, in one library."""
    forward = Mutation("conv_forward.cuh", *list(FORWARD.values())[number])
    gradient = Mutation("conv_gradient.cuh", *list(GRADIENT.values())[number])
    library = compile_mutated(tmp_path, forward, gradient)
    case = make_case(SHAPE, 3, torch.float32, square=True)
    with pytest.raises(AssertionError, match=forward.noticed):
        compare_forward(library, case, PLAN)
    with pytest.raises(AssertionError, match=gradient.noticed):
        compare_gradient(library, case, PLAN)


@pytest.mark.parametrize("mutation", TILE.values(), ids=TILE.keys())
def test_mutations_of_both_are_noticed(mutation, tmp_path):
    mutation = Mutation("conv_tile.cuh", *mutation)
    library = compile_mutated(tmp_path, mutation)
    with pytest.raises(AssertionError, match=mutation.noticed):
        compare_forward(library, make_case(SHAPE, 3, torch.float32, square=True), PLAN)


def test_indices_of_32_bits_are_noticed(tmp_path):
    first_row = "(task.image * s.height + first) * pitch"
    narrow = Mutation("conv_tile.cuh", first_row, f"static_cast<int>({first_row})", "every tensor")
    library = compile_mutated(tmp_path, narrow)
    case = make_case((2, 16, 16, 64), 3, torch.float32)
    for compare_pass in (compare_forward, compare_gradient):
        with pytest.raises(AssertionError, match=narrow.noticed):
            compare_pass(library, case, **LAST)


def plan_of(library, shape, size=7, dtype=torch.bfloat16, **settings):
    return make_conv_plan(library, shape, size, dtype, **settings)


def test_access_is_as_wide_as_rows_and_addresses_allow(conv_library):
    widths = [(1152, 16), (1500, 8), (900, 8), (18, 4), (37, 2)]
    for channels, access in widths:
        assert plan_of(conv_library, (2, 16, 16, channels)).access == access
    assert plan_of(conv_library, (2, 16, 16, 37), dtype=torch.float32).access == 4
    assert [plan_of(conv_library, (2, 16, 16, 1152), alignment=a).access for a in (16, 8, 4, 2)] == [
        16,
        8,
        4,
        2,
    ]


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("side, batch", [(16, 64), (32, 16), (64, 4), (128, 1), (256, 1)])
def test_plans_of_the_models_keep_the_gpu_busy(conv_library, side, batch, size):
    for channels in (1500, 1152, 384):
        shape = (batch, side, side, channels)
        plan = plan_of(conv_library, shape, size)
        assert plan.lanes * 2 >= 64 and plan.blocks >= 132  # two sectors of memory at least
        assert plan.rows * plan.images >= 16  # or a block does little else than to start
        # The sums of the second stage are a fourth of the maps at the most.
        gradient = plan_of(conv_library, shape, size, gradient=True)
        assert gradient.parts * (size * size + 1) * 4 * 4 <= batch * side * side * 2 * 2


@pytest.mark.parametrize("side", [1, 7, 64, 1000])
@pytest.mark.parametrize("channels", [1, 8, 37, 1152])
@pytest.mark.parametrize("maps", [0, 2, 4])
def test_plan_exists_and_fits(conv_library, side, channels, maps):
    for dtype in FLOATS.values():
        for shared in (99 * 1024, 163 * 1024, 227 * 1024):
            for gradient in (False, True)[: 1 if maps == 4 else 2]:
                settings = {"gradient": gradient, "maps": maps, "shared_per_block": shared}
                plan = plan_of(conv_library, (3, side, side, channels), dtype=dtype, **settings)
                assert plan.lanes in (8, 16, 32, 64, 128) and plan.shared_bytes <= shared
                assert 1 <= plan.rows <= side and 1 <= plan.images <= 4
