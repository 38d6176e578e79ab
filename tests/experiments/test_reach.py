"""What one output token sees: known networks see what they see, and the record is made once."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from experiments import reach
from experiments.mixers_plan import STUDIES, mixer_runs
from experiments.train_run import run_one
from tests.experiments.test_mixers import images  # noqa: F401 (a fixture)

MINI = STUDIES["mini"]


class Local(nn.Module):
    """A convolution over tokens of two pixels: each sees `size` tokens in each direction."""

    def __init__(self, size):
        super().__init__()
        self.settings = SimpleNamespace(patch_size=2)
        self.size = size

    def forward(self, x, t, y):
        tokens = nn.functional.avg_pool2d(x, 2)
        sums = nn.functional.avg_pool2d(tokens, self.size, 1, self.size // 2)
        return nn.functional.interpolate(sums, scale_factor=2)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_gradients_lie_where_the_network_looks(size):
    x, y = torch.randn(3, 2, 16, 12), torch.zeros(3, dtype=torch.int64)
    found = reach.token_gradients(Local(size), x, 0.5, y)
    expected = torch.zeros(8, 6)
    half = size // 2
    expected[4 - half : 5 + half, 3 - half : 4 + half] = 1 / size**2
    torch.testing.assert_close(found, expected)


def test_half_of_the_gradient_within_a_distance():
    gradients = torch.zeros(8, 8)
    gradients[4, 4] = 1.0
    assert reach.median_distance(gradients) == pytest.approx(-0.5)  # half of the token itself
    gradients[4, 4] = gradients[4, 7] = 0.5
    assert reach.median_distance(gradients) == pytest.approx(0.0)
    gradients[4, 4] = 0.25
    gradients[5, 4] = 0.5
    gradients[4, 7] = 0.25
    assert reach.median_distance(gradients) == pytest.approx(0.5)


def test_the_record_is_of_the_screening_until_the_finals_are_there_and_made_once(images, tmp_path):  # noqa: F811
    results, work = tmp_path / "results", tmp_path / "work"
    runs = mixer_runs(MINI, images)
    assert reach.measure(MINI, runs, results, work) is None and not results.exists()
    names = {f"screening-{name}-seed0" for name in reach.NAMES["screening"].values()}
    for run in runs:
        if run.name in names:
            run_one(run, results, work)
    record = reach.measure(MINI, runs, results, work)
    assert json.loads((results / "reach.json").read_text()) == record
    assert [(row["network"], row["t"]) for row in record["rows"]][:3] == [
        ("scan", 0.25),
        ("scan", 0.75),
        ("no scan", 0.25),
    ]
    assert all(len(row["gradients"]) == 4 == len(row["gradients"][0]) for row in record["rows"])
    assert reach.measure(MINI, runs, results, work) is None
