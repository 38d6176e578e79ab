"""What the GPU benchmark says about the resolution from which GSPN beats attention, on made-up rows."""

import pytest

from benchmarks.gpu_models import GRIDS, crossover, show_crossover

PIXELS = [16 * side for side in GRIDS]


def rows(*times_of_gspn):
    """One row for each grid that has a time; attention takes 10 at each."""
    pairs = zip(PIXELS, times_of_gspn, strict=False)
    return [{"pixels": pixels, "gspn, step": time, "attention, step": 10} for pixels, time in pairs]


@pytest.mark.parametrize(
    "measured, said",
    [
        ([], "not measured"),
        (rows(12, 11, 9, 5, 1), "GSPN is faster than attention from 1024 pixels"),
        (rows(9, 8, 7, 6, 5), "GSPN is faster than attention from 256 pixels"),
        (rows(9, 11, 9, 11, 9), "GSPN is faster than attention from 4096 pixels"),
        (rows(9, 9, 9, 9, 11), "GSPN is not faster than attention at 4096 pixels"),
        (rows(12, 9), "GSPN is faster than attention from 512 pixels; not measured beyond 512 pixels"),
        (rows(12), "GSPN is not faster than attention at 256 pixels; not measured beyond 256 pixels"),
    ],
)
def test_crossover_says_how_far_it_was_measured(measured, said):
    assert show_crossover(crossover(measured, "step")) == said
