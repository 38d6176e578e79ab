"""Measured rows beside published ones."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval_fid
from gspn_dit.errors import UserError
from gspn_dit.evaluation import chart, leaderboard
from gspn_dit.files import claimed_file

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
        "reference": "VIRTUAL_imagenet256_labeled.npz",
        "reference_hash": "0123",
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
    assert "| 15.26 |" in published and "GSPN README (primary)" in published
    assert published.startswith("| GSPN-XL/2[^") and published.count("| 0.670[^") == 2  # precision = recall
    assert next(line for line in table if line.startswith("| GSPN-L/2")).count("[^") == 1
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
    assert [entry["fid"] for entry in leaderboard.read_entries(results)] == [30.0, 31.237]


def row(model="m", fid="20", params="130", guidance="none", measured=False, note=""):
    cells = dict.fromkeys(leaderboard.COLUMNS, "")
    cells |= {"model": model, "fid": fid, "params_m": params, "guidance": guidance}
    return leaderboard.Row(cells, measured, note)


def drawn(tmp_path, *rows, colour):
    """How many pixels of the chart are of a colour."""
    chart.draw(list(rows), tmp_path / "chart.png")
    return int((np.array(Image.open(tmp_path / "chart.png").convert("RGB")) == colour).all(axis=2).sum())


def test_a_setting_that_older_rows_do_not_name_tells_none_apart(results):
    newer = {**SCORES, "settings": {**SCORES["settings"], "internal_guidance": None}}
    guided = {**SCORES, "settings": {**SCORES["settings"], "internal_guidance": 1.4}}
    for entry in (SCORES, newer, guided):
        leaderboard.record(results, entry)
    assert leaderboard.read_entries(results) == [newer, guided]


def test_two_that_record_at_once_lose_neither_row(results):
    other = {**SCORES, "settings": {**SCORES["settings"], "checkpoint": "fedcba9876543210"}}
    path = results / "leaderboard.json"
    with claimed_file(path):
        second = threading.Thread(target=leaderboard.record, args=(results, SCORES))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        path.write_text(json.dumps([other]))
    second.join()
    assert leaderboard.read_entries(results) == [other, SCORES]


def test_measured_published_and_doubtful_rows_are_drawn_apart(tmp_path):
    red, blue = (214, 39, 40), (31, 119, 180)
    published, measured = row(), row(measured=True)
    assert drawn(tmp_path, published, colour=red) == 0 == drawn(tmp_path, measured, colour=blue)
    assert (
        drawn(tmp_path, measured, colour=red)
        > 2 * drawn(tmp_path, row(measured=True, note="?"), colour=red)
        > 0
    )
    assert drawn(tmp_path, published, colour=blue) > 2 * drawn(tmp_path, row(note="?"), colour=blue) > 0
    assert drawn(tmp_path, row(guidance="cfg 1.5"), colour=blue) == 0
    assert drawn(tmp_path, row(fid=""), row(params=""), colour=blue) == 0


def test_names_in_the_chart_cover_neither_each_other_nor_a_mark():
    from matplotlib.figure import Figure

    axis = Figure(figsize=(7, 8)).subplots()
    axis.set(xscale="log", yscale="log", xlim=(50, 300), ylim=(5, 50))
    rows = [row(f"a model {i}", str(20 + i / 4), str(130 + i % 2)) for i in range(12)]
    boxes = chart.name_marks(axis, rows, "params_m")
    marks = axis.transData.transform([(r.number("params_m"), r.number("fid")) for r in rows])
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]) and not box.count_contains(marks)
        assert axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"path": "elsewhere", "reference": "/data/VIRTUAL_imagenet256_labeled.npz"}, 1),
        ({"checkpoint": "fedcba9876543210"}, 2),
        ({"reference_hash": "4567"}, 2),
    ],
)
def test_contents_tell_measurements_apart(change, rows, results):
    for entry in (SCORES, {**SCORES, "settings": {**SCORES["settings"], **change}}):
        leaderboard.record(results, entry)
    assert len(leaderboard.read_entries(results)) == rows


def test_where_contents_have_no_hash_their_place_tells_measurements_apart(results):
    for path, reference in (("a.npz", "x"), ("b.npz", "x"), ("b.npz", "y"), ("b.npz", "y")):
        of_others = {"checkpoint": None, "path": path, "reference": reference, "reference_hash": None}
        leaderboard.record(results, {**SCORES, "settings": {**SCORES["settings"], **of_others}})
    assert len(leaderboard.read_entries(results)) == 3


def test_a_spoilt_leaderboard_is_named(results):
    (results / "leaderboard.json").write_text("[")
    with pytest.raises(UserError, match=r"leaderboard.json is not JSON"):
        leaderboard.measured_rows(results)
    for spoilt in ([{"fid": 1.0}], [1], 1, [{**SCORES, "fid": "low"}], [{**SCORES, "settings": None}]):
        (results / "leaderboard.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match=r"is not a list of scores as --record writes them"):
            leaderboard.measured_rows(results)
    for spoilt in (b"x,y\n1,2\n", b"\xff\xfe\x00"):
        (results / "published.csv").write_bytes(spoilt)
        with pytest.raises(UserError, match=r"published.csv is not as it comes with the repository"):
            leaderboard.published_rows(results)
    (results / "published.csv").unlink()
    with pytest.raises(UserError, match=r"cannot read .*published.csv"):
        leaderboard.published_rows(results)
