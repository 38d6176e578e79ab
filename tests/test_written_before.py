"""Runs, checkpoints and releases written by an earlier version go on as if nothing had happened."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sample
from gspn_dit.checkpoint import load_model
from gspn_dit.config import load_config
from gspn_dit.hub import from_pretrained
from gspn_dit.training.trainer import train
from tests.training.run_state import log_rows

BEFORE = Path(__file__).parent / "written_before"


def train_in(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Train the old run's config in a folder; its last weights."""
    config = load_config(BEFORE / "run" / "config.yaml", [f"run_dir={folder}", *overrides])
    assert train(config) == 0
    return load_file(max((folder / "checkpoints").glob("step_*")) / "model.safetensors")


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_old_run_continues_as_it_would_have(tmp_path):
    """To the bit on a processor that gives the old bits of the first four steps; beyond rounding on others."""
    again = train_in(tmp_path / "again")
    stored = load_file(BEFORE / "run" / "checkpoints" / "step_00000004" / "model.safetensors")
    torch.testing.assert_close(again, stored, rtol=1e-4, atol=1e-6)

    shutil.copytree(BEFORE / "run", tmp_path / "run")
    continued = train_in(tmp_path / "run", "train.steps=8")
    expected = load_file(BEFORE / "uninterrupted" / "model.safetensors")
    torch.testing.assert_close(continued, expected, rtol=1e-4, atol=1e-6)
    rows, expected_rows = log_rows(tmp_path / "run"), log_rows(BEFORE / "uninterrupted")
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row, other in zip(rows, expected_rows, strict=True):
        assert {key: row[key] for key in other} == pytest.approx(other, rel=1e-4)
    if same_bits(again, stored):
        assert same_bits(continued, expected)
        assert [
            {key: row[key] for key in other} for row, other in zip(rows, expected_rows, strict=True)
        ] == expected_rows


def test_old_run_and_release_are_the_same_model():
    model, config, info = load_model(BEFORE / "run")
    released, _, _ = load_model(BEFORE / "release")
    assert info["step"] == 4 and config.model.width == 8
    assert same_bits(model.state_dict(), released.state_dict())
    assert same_bits(model.state_dict(), from_pretrained(BEFORE / "release").state_dict())


@pytest.mark.parametrize("source", ["run", "release"])
def test_old_weights_are_sampled(tmp_path, source):
    out = tmp_path / "grid.png"
    arguments = [
        str(BEFORE / source),
        "--classes",
        "0,3",
        "--per-class",
        "2",
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    assert sample.main(arguments) == 0
    with Image.open(out) as grid:
        assert grid.size == (70, 70) and np.asarray(grid).std() > 1
