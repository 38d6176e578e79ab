"""The study of classification: its plan, the miniature of it, and what the report says of its results."""

import json

import pytest

from experiments import classification
from experiments.__main__ import main
from experiments.classification import classification_runs, load_classification
from experiments.train_run import write_json
from gspn_dit.errors import UserError
from tests.experiments.test_mixers import images  # noqa: F401 (a fixture)


def test_networks_differ_by_their_scan_alone():
    runs = classification_runs("cpu")
    assert [(run.variant, run.seed) for run in runs] == [
        (scan, seed) for seed in (0, 1, 2) for scan in ("lines", "identity")
    ]
    assert len({run.key for run in runs}) == len(runs)
    for lines, identity in zip(runs[::2], runs[1::2], strict=True):
        config = json.loads(json.dumps(lines.settings["config"]))
        assert config["model"].pop("scan") == "lines"
        assert config == {
            **identity.settings["config"],
            "model": {k: v for k, v in identity.settings["config"]["model"].items() if k != "scan"},
        }


def command(images, out):  # noqa: F811
    options = ["--scale", "mini", "--only", "classification", "--workers", "0"]
    return [*options, "--data", str(images), "--out", str(out)]


@pytest.mark.slow
def test_the_miniature_is_trained_once_and_reported(images, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(classification, "SEEDS", (0,))
    assert main(command(images, tmp_path)) == 0
    results = tmp_path / "results" / "experiments" / "classification-mini" / "runs"
    found = {path.name: json.loads(path.read_text()) for path in sorted(results.iterdir())}
    assert list(found) == ["identity-seed0.json", "lines-seed0.json"]
    for result in found.values():
        assert result["images"] == 32 and [count for count, _ in result["validation"]] == [16, 32]
        assert sum(map(sum, result["confusion"])) == result["test_images"]
        right = sum(row[place] for place, row in enumerate(result["confusion"]))
        assert result["top1"] == pytest.approx(right / result["test_images"])
    docs = tmp_path / "docs"
    text = (docs / "experiments-mini.md").read_text()
    assert "## Classes of photographs" in text and "python -m experiments --only classification" in text
    assert f"{100 * found['lines-seed0.json']['top1']:.2f} (one seed)" in text
    assert {path.name for path in (docs / "experiments-mini").glob("classification*")} == {
        "classification.png",
        "classification_confusion.png",
    }
    capsys.readouterr()
    monkeypatch.setattr(classification, "run_one", None)  # what is done is not done again
    assert main(command(images, tmp_path)) == 0
    assert "2 of 2 trainings done" in capsys.readouterr().out


def test_results_of_another_recipe_do_not_count(tmp_path):
    run = classification_runs("cpu")[0]
    result = {"name": run.name, "variant": run.variant, "seed": 0, "diverged": None, "top1": 0.8}
    path = run.result_path(tmp_path / "classification")
    write_json(path, {**result, "key": run.key})
    assert load_classification("cpu", tmp_path / "cpu")["lines"].get("top1").mean == 0.8
    write_json(path, {**result, "key": "another"})
    assert not load_classification("cpu", tmp_path / "cpu")


def test_missing_images_are_told(tmp_path):
    with pytest.raises(
        UserError, match=r"^classification: no images in .*/none: `python -m gspn_dit.data.cifar10"
    ):
        main(command(tmp_path / "none", tmp_path))
