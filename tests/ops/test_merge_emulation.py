"""The gated merge's CUDA source, run on the CPU: against the formula, watched for strays."""

import pytest
import torch

from tests.ops.cuda_emulation import Mutation, compile_emulation, mutated, run_merge
from tests.ops.test_merge import make_maps
from tests.utils import assert_near

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compare(library, shape, dtype, vector, seed=0, first_pixel=0):
    """Run both passes at (P, K, C) and compare y, dh and du with the formula's."""
    h, u = (tensor.detach() for tensor in make_maps(shape, dtype))
    grad_y = make_maps((shape[0], shape[2]), dtype, seed=1)[0].detach()
    (y,) = run_merge(library, [h, u], vector, seed, first_pixel)
    assert_near(y, (h.double() * u.double()).sum(1), "y")
    dh, du = run_merge(library, [grad_y, h, u], vector, seed, first_pixel)
    assert_near(dh, u.double() * grad_y.double().unsqueeze(1), "dh")
    assert_near(du, h.double() * grad_y.double().unsqueeze(1), "du")
    return y, dh, du


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS.keys())
@pytest.mark.parametrize(
    "shape", [(9, 4, 24), (40, 1, 16), (3, 7, 40), (300, 4, 8)], ids="P={0[0]} K={0[1]} C={0[2]}".format
)
@pytest.mark.parametrize("vector", [8, 4, 2, 1])
def test_every_width(library, shape, vector, dtype):
    if vector * dtype.itemsize > 16:
        pytest.skip("wider than an access")
    compare(library, shape, dtype, vector)


def test_ragged_channels(library):
    compare(library, (50, 4, 13), torch.bfloat16, 1)
    compare(library, (50, 4, 18), torch.bfloat16, 2)


def test_access_is_as_wide_as_rows_and_addresses_allow(library):
    plan = library.plan_merge
    assert [plan(channels, 2, 16) for channels in (1152, 900, 18, 37)] == [8, 4, 2, 1]
    assert [plan(channels, 4, 16) for channels in (1152, 18, 37)] == [4, 2, 1]
    assert [plan(1152, 2, alignment) for alignment in (16, 8, 4, 2)] == [8, 4, 2, 1]
    assert [plan(1152, 4, alignment) for alignment in (16, 8, 4)] == [4, 2, 1]


def test_bit_equal_for_every_order_of_blocks_and_threads(library):
    runs = [compare(library, (70, 4, 40), torch.float16, 4, seed) for seed in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_past_two_to_the_31_elements(library):
    """The last pixels of h with 4.6e9 elements and y with 1.2e9, and of y past 2^31; those before are not in memory."""
    for first_pixel in (10**6, 2 * 10**6):
        compare(library, (2, 4, 1152), torch.bfloat16, 8, first_pixel=first_pixel // 16 * 16)


MUTATIONS = {
    "place of h": Mutation("merge.cuh", "pixel * (s.directions - 1)", "pixel * s.directions", "every tensor"),
    "directions": Mutation("merge.cuh", "from_u + (k + i) * s.channels", "from_u + k * s.channels", "^y "),
    "end": Mutation("merge.cuh", "if (pixel >= s.pixels) return -1;", "", "every tensor"),
    "factor": Mutation(
        "merge.cuh",
        "dh + at + (k + i) * s.channels, in.u[i]",
        "dh + at + (k + i) * s.channels, in.h[i]",
        "^dh ",
    ),
    "32 bits": Mutation(
        "merge.cuh", "(static_cast<int64_t>(blockIdx.x) *", "(blockIdx.x *", "y: byte 0 was never"
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_mutations_are_noticed(mutation, tmp_path):
    library = compile_emulation(tmp_path, mutated([mutation]), level="-O0", kernels=("merge",))
    with pytest.raises(AssertionError, match=mutation.noticed):
        compare(library, (5, 4, 24), torch.float32, 4)
        compare(library, (2, 4, 1152), torch.bfloat16, 8, first_pixel=2 * 10**6)
