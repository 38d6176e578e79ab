"""What a run shows at its end is of its last checkpoint."""

import json

import pytest

from gspn_dit.training import results, trainer


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """Stand-in for the scores; what they were asked of, by steps."""
    steps = []

    def score_demo(model, config, *_):
        steps.append(config.train.steps)
        return {"fid": 1.0}

    monkeypatch.setattr(results, "score_demo", score_demo)
    monkeypatch.setattr(results, "format_table", str)
    return steps


def killed(*_):
    raise KeyboardInterrupt


def test_results_of_fewer_steps_are_made_again(train_run, scored, monkeypatch):
    settings = ("train.schedule=constant", "eval.samples=4")
    run_dir = train_run("run", *settings)
    grid = run_dir / "samples/final.png"
    before = grid.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "finish_run", killed)
        train_run("run", *settings, "train.steps=14")
    assert grid.read_bytes() == before
    train_run("run", *settings, "train.steps=14")
    assert scored == [10, 14]
    assert grid.read_bytes() != before
    for record in (grid.with_suffix(".json"), run_dir / "scores.json"):
        assert json.loads(record.read_text())["step"] == 14


def test_results_that_are_there_are_not_made_again(train_run, scored):
    run_dir = train_run("run", "eval.samples=4")
    made = [(run_dir / name).stat().st_ino for name in ("samples/final.png", "scores.json")]
    train_run("run", "eval.samples=4")
    assert scored == [10]
    assert [(run_dir / name).stat().st_ino for name in ("samples/final.png", "scores.json")] == made
