"""Where a run's metrics go beside metrics.jsonl."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from gspn_dit.errors import UserError
from gspn_dit.training.log import read_metrics, rows_until, wandb_id
from tests.training.run_state import log_rows

ROWS = b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("tail", [b'{"step": 3', b"", b"\0\0\0\n\0", b"\xff\xfe\n", b'{"st\n{"step": 3}\n'])
def test_a_torn_end_is_cut(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROWS + tail)
    assert rows_until(path, 2) == [{"step": 1}, {"step": 2}]
    assert rows_until(path, 1) == [{"step": 1}]


@pytest.mark.parametrize("line", [b'{"step": 3', b"\0\0", b"[3]", b'{"loss": 1}'])
def test_a_line_that_is_no_row_among_the_rows_costs_none(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROWS + line + b'\n{"step": 4}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 4}]
    with pytest.raises(UserError, match=r"metrics.jsonl, line 3, is no row that train.py wrote: mend it"):
        rows_until(path, 4)


def test_a_run_begun_anew_keeps_the_old_rows(train_run):
    run_dir = train_run("run")
    for _ in range(2):
        before = (run_dir / "metrics.jsonl").read_bytes()
        shutil.rmtree(run_dir / "checkpoints")
        train_run("run", "train.seed=1")
        assert max(run_dir.glob("metrics_old_*")).read_bytes() == before
    assert len(log_rows(run_dir)) == 10


def test_wandb_gets_every_row(train_run, monkeypatch):
    started, rows, ended = [], [], []
    client = SimpleNamespace(
        log=lambda values, step: rows.append({"step": step, **values}), finish=lambda: ended.append(True)
    )
    wandb = SimpleNamespace(init=lambda **settings: started.append(settings) or client)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_dir = train_run("run", "train.wandb=digits")
    (settings,) = started
    assert (settings["project"], settings["name"], settings["resume"]) == ("digits", "run", "allow")
    assert settings["id"] == wandb_id(run_dir)
    assert settings["config"]["train"]["batch_size"] == 8
    for row in rows:
        del row["images_per_second"]
    assert rows == log_rows(run_dir)
    assert ended == [True]


def test_a_wandb_run_is_known_by_its_folder_not_by_the_folder_s_name(tmp_path):
    runs = [tmp_path / place / "run" for place in ("a", "b")]
    for run_dir in runs:
        run_dir.mkdir(parents=True)
    first, second = map(wandb_id, runs)
    assert first != second
    assert wandb_id(runs[0]) == first


def test_wandb_that_is_not_installed_is_named(train_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"train\.wandb needs wandb: pip install wandb"):
        train_run("run", "train.wandb=digits")


def test_tensorboard_shows_the_loss(train_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = train_run("run", "train.tensorboard=true")
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in log_rows(run_dir)]
