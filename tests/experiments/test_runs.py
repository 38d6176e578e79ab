"""Training runs: skipped once done, taken up again, and divergence as a result."""

import dataclasses
import json
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tqdm import tqdm

from experiments import pool, train_run
from experiments.__main__ import main
from experiments.plan import EXPERIMENTS, SCALES, VARIANTS, make_run, training_runs
from gspn_dit.data.mnist import load_digits
from gspn_dit.errors import UserError
from gspn_dit.files import claimed
from gspn_dit.signals import Stopped

MINI = SCALES["mini"]
BY_NAME = {variant.name: variant for variant in VARIANTS}


def mini_run(name="gspn", **train):
    variant = BY_NAME[name]
    return make_run(dataclasses.replace(variant, train=train), MINI, 0)


@pytest.mark.slow
def test_the_miniature_runs_everything_reports_it_and_does_nothing_twice(tmp_path, monkeypatch):
    command = ["--scale", "mini", "--out", str(tmp_path), "--workers", "0"]
    assert main(command) == 0
    results = tmp_path / "results" / "experiments" / "mini"
    check_results(results)
    check_report(tmp_path / "docs")
    assert pool.is_done(mini_run(), results)
    assert not pool.is_done(mini_run(clip=2.0), results)

    run_one = pool.run_one
    monkeypatch.setattr(pool, "run_one", lambda *_: pytest.fail("trained again"))
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*.json")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*.json")} == before

    monkeypatch.setattr(pool, "run_one", run_one)
    assert main([*command, "--only", "lines"]) == 0
    assert {path.stem for path in set(results.rglob("*.json")) - set(before)} == {"identity-16-lines-seed0"}


def check_results(results):
    runs = {path.stem for path in (results / "runs").iterdir()}
    assert runs == {f"{name}-seed0" for names in EXPERIMENTS.values() for name in names}
    for path in (results / "runs").iterdir():
        result = json.loads(path.read_text())
        assert result["diverged"] is None or "loss rose" in result["diverged"], path
        assert result["fid"] > 0
        assert 0 <= result["accuracy"] <= 1
        assert result["parameters"] > 0
        assert len(result["loss_curve"]) == (2 if "16-lines" in path.stem else 4)


def check_report(docs):
    text = (docs / "experiments-mini.md").read_text()
    pictures = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(pictures) == 8
    assert all((docs / picture).stat().st_size > 1000 for picture in pictures)


def test_workers_in_processes_do_a_run_and_name_one_that_fails(tmp_path):
    good = mini_run()
    bad = dataclasses.replace(good, name="bad", settings={**good.settings, "config": {}})
    assert pool.run_all([good, bad], tmp_path / "results", tmp_path / "work", workers=2) == ["bad"]
    assert pool.is_done(good, tmp_path / "results")
    assert "missing key" in pool.log_path(tmp_path / "work", "bad").read_text()


def test_an_interrupt_stops_the_workers_which_are_as_many_as_asked_for(tmp_path, monkeypatch):
    started = []

    def start(*_):
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[-1]

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "start", start)
    monkeypatch.setattr(pool, "time", SimpleNamespace(sleep=interrupt))
    runs = [make_run(variant, MINI, 0) for variant in VARIANTS[:3]]
    with pytest.raises(KeyboardInterrupt):
        pool.in_processes(runs, tmp_path, tmp_path, 2, tqdm(disable=True))
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2


def test_a_stopped_run_leaves_no_result_and_continues(tmp_path, monkeypatch):
    run = mini_run(checkpoint_every=1)
    trained = train_run.train
    monkeypatch.setattr(train_run, "train", lambda config: 128 + signal.SIGTERM)
    with pytest.raises(Stopped) as caught:  # by which the runs that wait are not begun
        pool.run_all([run, mini_run("dit")], tmp_path / "results", tmp_path / "work", workers=0)
    assert caught.value.number == signal.SIGTERM
    assert not run.result_path(tmp_path / "results").exists()
    monkeypatch.setattr(train_run, "train", trained)
    assert train_run.run_one(run, tmp_path / "results", tmp_path / "work")["fid"] > 0


def test_a_second_command_is_told_who_is_at_work(tmp_path):
    with (
        claimed(tmp_path / "runs/experiments/mini"),
        pytest.raises(UserError, match=r"in use by process \d+ on"),
    ):
        main(["--scale", "mini", "--out", str(tmp_path), "--workers", "0"])


def test_a_training_that_blows_up_is_a_result(tmp_path):
    result = train_run.run_one(
        mini_run(learning_rate=1e30, warmup_steps=0, clip=None), tmp_path / "results", tmp_path / "work"
    )
    assert result["diverged"].startswith("step ")
    assert "fid" not in result
    assert json.loads((tmp_path / "results" / "runs" / "gspn-seed0.json").read_text()) == result


def test_other_errors_are_not_taken_for_divergence(tmp_path, monkeypatch):
    def fail(config):
        raise UserError("step 3: no checkpoint written (disk full)")

    monkeypatch.setattr(train_run, "train", fail)
    with pytest.raises(UserError, match="disk full"):
        train_run.run_one(mini_run(), tmp_path / "results", tmp_path / "work")


def test_a_loss_above_its_start_counts_as_diverged(tmp_path, monkeypatch):
    rows = [{"images": 8, "loss": 1.0}, {"images": 16, "loss": 1.5}]
    monkeypatch.setattr(train_run, "read_metrics", lambda path: rows)
    result = train_run.run_one(mini_run(), tmp_path / "results", tmp_path / "work")
    assert result["diverged"] == "the loss rose from 1 to 1.5"
    assert result["fid"] > 0


def test_a_result_scores_the_samples_and_the_end_of_the_training(tmp_path, monkeypatch):
    digits, labels = load_digits("heldout")
    images = np.repeat(digits[..., None], 3, axis=-1)
    rows = [{"images": 8 * i, "loss": 20.0 - i} for i in range(20)]
    monkeypatch.setattr(train_run, "draw", lambda *_: (images, labels))
    monkeypatch.setattr(train_run, "read_metrics", lambda path: rows)
    result = train_run.run_one(mini_run(), tmp_path / "results", tmp_path / "work")
    assert result["accuracy"] > 0.95 and result["fid"] < 1e-6  # held-out digits against themselves
    assert result["final_loss"] == pytest.approx(4.5)  # of the last eight rows, 8 to 1


def test_a_plan_cut_short_has_every_setting():
    runs = training_runs(SCALES["cpu"], ("stability",))
    settings = len(runs) // 3
    assert [run.seed for run in runs] == [0] * settings + [1] * settings + [2] * settings
    assert runs[0].seconds > runs[settings - 1].seconds


def test_no_worker_is_left_idle_or_zero():
    assert pool.worker_count() == 1 if torch.cuda.is_available() else pool.worker_count() >= 1
