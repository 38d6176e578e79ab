"""Measured rows beside published ones."""

import json
from pathlib import Path

import pytest
from PIL import Image

import eval_fid
from gspn_dit.errors import UserError
from gspn_dit.evaluation import leaderboard

SCORES = {
    "fid": 31.237,
    "sfid": None,
    "is": 40.0,
    "precision": 0.5,
    "recall": 0.6,
    "kid": 0.01,
    "reasons": ["10,000 samples, not 50,000"],
    "settings": {
        "model": "GSPN-B/2",
        "path": "runs/b",
        "parameters": 137_800_000,
        "training_step": 400_000,
        "training_images": 102_400_000,
        "cfg_scale": 1.0,
        "checkpoint": "0123456789abcdef",
        "steps": 250,
        "date": "2026-01-02",
        "seconds": {},
        "versions": {},
    },
}


@pytest.fixture
def results(tmp_path) -> Path:
    (tmp_path / "published.csv").write_text((eval_fid.RESULTS / "published.csv").read_text())
    return tmp_path


def test_measured_and_published_rows_in_one_table(results, capsys):
    leaderboard.record(results, SCORES)
    assert eval_fid.main(["--leaderboard", "--results", str(results)]) == 0
    table = capsys.readouterr().out.splitlines()
    measured = next(line for line in table if "**GSPN-B/2**" in line)
    for cell in (
        "138",
        "400,000 steps",
        "102",
        "none",
        "31.24",
        "40.00",
        "0.500",
        "measured 2026-01-02, 01234567",
    ):
        assert f"| {cell} |" in measured, cell
    published = next(line for line in table if line.startswith("| GSPN-XL/2"))
    assert "[^" in published and "| 15.26 |" in published and "GSPN README (primary)" in published
    assert any(line.startswith("[^") and "doubtful" in line for line in table)
    assert any(line.startswith("[^") and "10,000 samples" in line for line in table)
    rows = [line.split(" | ") for line in table if line.startswith("| ") and "FID ↓" not in line]
    values = [float(row[5]) for row in rows]
    assert values == sorted(values) and len(rows) == 1 + len(leaderboard.published_rows(results))
    assert Image.open(results / "leaderboard.png").size[0] > 1000


def test_the_same_measurement_again_replaces_the_row(results):
    leaderboard.record(results, SCORES)
    again = {**SCORES, "fid": 30.0, "settings": {**SCORES["settings"], "date": "2026-02-03"}}
    leaderboard.record(results, again)
    other = {**SCORES, "settings": {**SCORES["settings"], "steps": 50}}
    leaderboard.record(results, other)
    assert [entry["fid"] for entry in json.loads((results / "leaderboard.json").read_text())] == [
        30.0,
        31.237,
    ]


def test_a_spoilt_leaderboard_is_named(results):
    (results / "leaderboard.json").write_text("[")
    with pytest.raises(UserError, match=r"leaderboard.json is not JSON"):
        leaderboard.measured_rows(results)
    (results / "published.csv").unlink()
    with pytest.raises(UserError, match=r"cannot read .*published.csv"):
        leaderboard.published_rows(results)
