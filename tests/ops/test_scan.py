"""The compiled scan against the float64 reference: outputs and every gradient."""

import pytest
import torch

from ops import gspn_scan, gspn_scan_reference
from ops.arguments import DIRECTIONS, NORMALIZATIONS
from tests.ops.cases import SHAPES, SUBSETS, make_inputs, widened
from tests.utils import assert_near

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def compare(inputs, **settings):
    """Run both scans and compare h and the three gradients."""
    expected_inputs = widened(inputs)
    h = gspn_scan(*inputs, **settings)
    expected = gspn_scan_reference(*expected_inputs, **settings)
    grad_h = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad_h = grad_h.to(h.device, h.dtype)
    gradients = torch.autograd.grad(h, inputs, grad_h)
    expected_gradients = torch.autograd.grad(
        expected, expected_inputs, grad_h.cpu().double(), materialize_grads=True, allow_unused=True
    )
    assert_near(h, expected, "h")
    for name, actual, wanted in zip(("dx", "dlam", "dlogits"), gradients, expected_gradients, strict=True):
        assert_near(actual, wanted, name)


def skip_unsupported(dtype, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 is for the CPU alone")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shape, dtype, device, poisoned_memory):
    skip_unsupported(dtype, device)
    *sizes, segment = shape
    for normalization in NORMALIZATIONS:
        # Without the division weights must be small for 130 lines to stay within float16's range.
        scale, shift = {"row_stochastic": (2.0, 0.0), "sigmoid": (1.0, -1.5), "none": (0.2, 0.0)}[
            normalization
        ]
        inputs = make_inputs(*sizes, 4, dtype, device, scale, shift)
        compare(inputs, segment=segment, normalization=normalization)


@pytest.mark.parametrize("directions", SUBSETS, ids="-".join)
def test_each_subset_of_directions(directions, device, poisoned_memory):
    for groups in (1, 3, 12):
        inputs = make_inputs(2, 4, 6, 12, groups, len(directions), torch.float32, device)
        compare(inputs, directions=directions, segment=3)
    backwards = tuple(reversed(directions))
    inputs = make_inputs(1, 3, 5, 4, 4, len(directions), torch.float32, device)
    compare(inputs, directions=backwards)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 4, 12])
def test_non_contiguous_inputs(dtype, groups, device):
    skip_unsupported(dtype, device)
    x, lam, logits = make_inputs(2, 5, 4, 12, groups, 4, dtype, device)
    strided = [
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        lam.detach().repeat_interleave(2, dim=4)[..., ::2].requires_grad_(),
        logits.detach().movedim(3, 0).contiguous().movedim(0, 3).requires_grad_(),
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    compare(strided)
    h = gspn_scan(*strided)
    h.transpose(1, 2).sum().backward()  # an expanded, non-contiguous gradient
    assert_near(strided[0].grad, torch.autograd.grad(gspn_scan(x, lam, logits).sum(), x)[0], "dx")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits(dtype, device, poisoned_memory):
    skip_unsupported(dtype, device)
    largest = 6e4 if dtype == torch.float16 else 1e4
    values = torch.tensor([-largest, largest, -27.9, 27.9, -28.1, 28.1, -88.0, -104.0, 0.0, 3.0])
    x, lam, logits = make_inputs(2, 4, 6, 40, 40, 4, dtype, device)
    choice = torch.randint(len(values), logits.shape, generator=torch.Generator().manual_seed(2))
    logits = values[choice].to(device, dtype).requires_grad_()
    for normalization in ("row_stochastic", "sigmoid"):
        compare([x, lam, logits], normalization=normalization)
    # Of all channels: one large logit decides how a whole vector is computed.
    for value in (-largest, largest, -40.0):
        compare([x, lam, torch.full_like(logits, value).requires_grad_()])


def test_bit_equal_on_repeat_and_for_any_thread_count():
    threads = torch.get_num_threads()
    try:
        for groups, dtype in (
            (1, torch.bfloat16),
            (16, torch.float32),
            (256, torch.float32),
            (256, torch.float16),
        ):
            results = []
            for count in (1, 2, 3, 7, 1):
                torch.set_num_threads(count)
                inputs = make_inputs(1, 6, 7, 256, groups, 4, dtype)
                h = gspn_scan(*inputs)
                results.append([h, *torch.autograd.grad(h.float().square().sum(), inputs)])
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_bit_equal_on_repeat_on_each_device(device):
    inputs = make_inputs(2, 16, 16, 64, 4, 4, torch.float32, device)
    runs = []
    for _ in range(3):
        h = gspn_scan(*inputs)
        runs.append([h, *torch.autograd.grad(h.square().sum(), inputs)])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_norm_bounds_of_the_stability_context_condition(direction, groups, device):
    """|h[t]|_inf is at most the sum of |lam x|_inf over the lines so far; backward, 1-norms do not grow."""
    x, lam, logits = make_inputs(2, 33, 33, 8, groups, 1, torch.float32, device, scale=8.0)
    h = gspn_scan(x, lam, logits, (direction,))
    columns = direction in ("right", "left")
    norms = lambda tensor: tensor.abs().amax(dim=1 if columns else 2).detach().cpu().double()  # noqa: E731
    bounds = norms(lam[:, :, :, 0] * x)  # (B, T, C)
    bounds = bounds.flip(1).cumsum(1).flip(1) if direction in ("left", "up") else bounds.cumsum(1)
    assert (norms(h[:, :, :, 0]) <= bounds * (1 + 1e-5)).all()

    last = {
        "right": (slice(None), slice(None), -1),
        "left": (slice(None), slice(None), 0),
        "down": (slice(None), -1),
    }
    last["up"] = (slice(None), 0)
    unit_gain = torch.ones_like(lam)
    h = gspn_scan(x, unit_gain, logits, (direction,))
    (dx,) = torch.autograd.grad(h[last[direction]].sum(), x)
    one_norms = dx.abs().sum(dim=1 if columns else 2).cpu()
    assert (one_norms <= 33 * (1 + 1e-5)).all()


def test_rows_sum_to_one(device):
    """A constant stays constant where lam feeds the first line alone: the weights of a position sum to 1."""
    x = torch.ones(1, 9, 9, 4, device=device)
    lam = torch.zeros(1, 9, 9, 1, 4, device=device)
    lam[:, 0] = 1
    logits = torch.randn(1, 9, 9, 1, 3, 4, generator=torch.Generator().manual_seed(3)).to(device) * 4
    assert_near(gspn_scan(x, lam, logits, ("down",)), torch.ones(1, 9, 9, 1, 4), "h")


@pytest.mark.parametrize("segment", [4, 6])
@pytest.mark.parametrize("groups", [1, 16])
def test_what_is_not_finite_stays_in_its_segment(groups, segment, device):
    """Places of working memory that held the states of another segment are not read as the map's border."""
    x, lam, logits = (t.detach() for t in make_inputs(1, 40, 5, 16, groups, 1, torch.float32, device))
    settings = {"directions": ("down",), "segment": segment}
    expected = gspn_scan(x, lam, logits, **settings)
    x[:, :segment] = torch.nan
    h = gspn_scan(x, lam, logits, **settings)
    assert h[:, :segment].isnan().all()
    assert torch.equal(h[:, segment:], expected[:, segment:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(dtype, device):
    skip_unsupported(dtype, device)
    inputs = make_inputs(0, 4, 4, 6, 3, 4, dtype, device)
    h = gspn_scan(*inputs)
    assert h.shape == (0, 4, 4, 4, 6)
    assert all(g.shape == t.shape for g, t in zip(torch.autograd.grad(h.sum(), inputs), inputs, strict=True))


@pytest.mark.parametrize("channels", [1024, 1020], ids=["whole cache lines", "ragged"])
def test_outputs_larger_than_the_caches(channels):
    """Past some size outputs are written around the caches: the same bits as in parts below that size."""
    inputs = make_inputs(1, 48, 48, channels, channels, 4, torch.float32)
    h = gspn_scan(*inputs)
    assert h.numel() * h.element_size() > 32 << 20
    gradients = torch.autograd.grad(h.square().sum(), inputs)
    for part in (slice(0, 512), slice(512, None)):
        parts = [tensor.detach()[..., part].clone().requires_grad_() for tensor in inputs]
        h_part = gspn_scan(*parts)
        assert torch.equal(h_part, h[..., part])
        for whole, mine in zip(gradients, torch.autograd.grad(h_part.square().sum(), parts), strict=True):
            assert torch.equal(mine, whole[..., part])


def test_slices_of_groups_begin_at_whole_cache_lines():
    """Groups of 6 channels, cut between two threads: stores past the caches fault where a line is not met."""
    inputs = make_inputs(1, 160, 160, 96, 16, 1, torch.float32)
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            h = gspn_scan(*inputs, directions=("right",))
            found.append((h, *torch.autograd.grad(h.square().sum(), inputs)))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
