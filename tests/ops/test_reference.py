"""The reference itself: against the equations written as loops over single numbers, and by gradcheck."""

import math
from itertools import product

import pytest
import torch
import torch._dynamo

from benchmarks.gpu_scans import compiled_reference
from ops import gspn_scan, gspn_scan_reference
from ops.arguments import DIRECTIONS, NORMALIZATIONS
from tests.ops.cases import make_inputs
from tests.utils import assert_near


def scan_by_the_equations(x, lam, logits, directions, segment, normalization):
    """README.md's recurrence, one number at a time."""
    batch, height, width, channels = x.shape
    heads = channels // logits.shape[5]
    h = torch.zeros_like(lam)
    for b, (k, direction), c in product(range(batch), enumerate(directions), range(channels)):
        columns = direction in ("right", "left")
        lines, length = (width, height) if columns else (height, width)
        order = list(range(lines))[:: -1 if direction in ("left", "up") else 1]
        for t, line in enumerate(order):
            for n in range(length):
                here = (b, n, line) if columns else (b, line, n)
                value = float(lam[(*here, k, c)] * x[(*here, c)])
                starts = t == 0 or (segment > 0 and t % segment == 0)
                exist = [d for d in (-1, 0, 1) if 0 <= n + d < length and not starts]
                raw = {d: float(logits[(*here, k, d + 1, c // heads)]) for d in exist}
                weights = {d: 1 / (1 + math.exp(-raw[d])) for d in exist}
                if normalization == "row_stochastic":
                    weights = {d: w / sum(weights.values()) for d, w in weights.items()}
                elif normalization == "none":
                    weights = raw
                for d in exist:
                    before = (b, n + d, order[t - 1]) if columns else (b, order[t - 1], n + d)
                    value += weights[d] * float(h[(*before, k, c)])
                h[(*here, k, c)] = value
    return h


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    "sizes", [(1, 3, 4, 4, 2, 0), (1, 4, 3, 2, 2, 2), (1, 1, 3, 2, 1, 0), (1, 3, 1, 1, 1, 0)]
)
def test_reference_equals_the_equations(sizes, normalization):
    *shape, segment = sizes
    inputs = [tensor.detach() for tensor in make_inputs(*shape, 4, torch.float64)]
    directions = ("up", "left", "right", "down")
    settings = {"directions": directions, "segment": segment, "normalization": normalization}
    assert_near(gspn_scan_reference(*inputs, **settings), scan_by_the_equations(*inputs, **settings), "h")


@pytest.mark.parametrize("scan", [gspn_scan_reference, gspn_scan], ids=["reference", "compiled"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradcheck(scan, normalization, groups):
    inputs = make_inputs(1, 3, 4, 4, groups, 4, torch.float64, scale=1.0)
    settings = {"directions": DIRECTIONS, "segment": 2 if groups == 2 else 0, "normalization": normalization}
    assert torch.autograd.gradcheck(lambda *tensors: scan(*tensors, **settings), inputs)


def test_missing_neighbours_have_no_weight():
    """A column of length one passes its value on unchanged, whatever the logits of neighbours that do not exist."""
    x = torch.ones(1, 1, 5, 1, dtype=torch.float64)
    lam = torch.zeros(1, 1, 5, 1, 1, dtype=torch.float64)
    lam[:, :, 0] = 1
    logits = torch.full((1, 1, 5, 1, 3, 1), -50.0, dtype=torch.float64)
    h = gspn_scan_reference(x, lam, logits, ("right",))
    assert torch.equal(h, torch.ones_like(h))


@pytest.mark.slow  # a compiler of C++ runs for a minute
def test_the_reference_compiled_by_the_line_is_the_reference():
    """In all that a benchmark asks of it: without gradients and with them, in room for every layout."""
    inputs = make_inputs(1, 5, 5, 8, 8, 4, torch.float32)
    expected = gspn_scan_reference(*(t.double() for t in inputs))
    # The patch puts the limit's setting back afterwards: other tests share this process.
    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
        compiled_reference(as_one=False) as run,
    ):
        with torch.no_grad():
            assert_near(run(*inputs), expected, "h without gradients")
        assert_near(run(*inputs), expected, "h")
