"""A training that is stopped: a checkpoint of the step reached, the exit status of the signal, and on from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gspn_dit import signals
from gspn_dit.checkpoint import latest_checkpoint
from gspn_dit.training import stops
from gspn_dit.training.stops import Agreement
from gspn_dit.training.trainer import Trainer
from tests.launch import ROOT, free_port
from tests.training.run_state import final_state


def interrupt(monkeypatch, numbers: list[int], step: int = 6) -> None:
    """Have a training send itself signals in a step."""
    train_step = Trainer.train_step

    def interrupted(self, batches):
        train_step(self, batches)
        if self.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", interrupted)


def test_each_signal_saves_and_the_same_command_continues(train_run, monkeypatch, capfd):
    straight = train_run("straight")
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        with monkeypatch.context() as patch:
            interrupt(patch, [number])
            stopped = train_run(f"stopped_{status}", status=status)
        assert latest_checkpoint(stopped).name == "step_00000006"
        assert (
            f"stopped by {signals.name_of(number)} at step 6; the same command continues"
            in capfd.readouterr().err
        )
    assert final_state(train_run(f"stopped_{status}")) == final_state(straight)


def test_a_signal_in_the_last_step_leaves_the_results_to_the_same_command(train_run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, [signal.SIGTERM], step=10)
        run_dir = train_run("run", status=143)
    assert not (run_dir / "samples").exists()
    train_run("run")
    assert (run_dir / "samples/final.png").exists()


def test_a_second_signal_says_which_steps_are_lost(train_run, monkeypatch):
    class Left(Exception):
        """In place of the end of the process."""

    def leave(number, lost):
        raise Left(lost)

    monkeypatch.setattr(signals, "leave", leave)
    monkeypatch.setattr(signals, "ECHO", 0.0)
    interrupt(monkeypatch, [signal.SIGINT, signal.SIGINT])
    with pytest.raises(Left, match=r"^steps 5 to 6 are lost; the same command continues from step 4$"):
        train_run("run")


def test_processes_agree_at_the_pace_of_the_slowest(monkeypatch):
    """The other process runs at half a second a step, and receives a signal in its third."""
    clock = iter(range(100))
    monkeypatch.setattr(stops, "time", SimpleNamespace(perf_counter=lambda: 0.01 * next(clock)))
    monkeypatch.setattr(stops, "SECONDS", 1.0)
    compared = []

    def gather(notes):
        compared.append(step)
        return torch.cat([notes, torch.tensor([[15.0 if step >= 3 else 0.0, 0.5]])])

    accelerator = SimpleNamespace(num_processes=2, device="cpu", gather=gather)
    agreement, answers = Agreement(accelerator, 0), []
    for step in range(1, 6):
        answers.append(agreement(0, step))
    assert compared == [1, 3, 5]
    assert answers == [0, 0, 15, 0, 15]


def launch(tiny_yaml: Path, run_dir: Path) -> subprocess.Popen:
    """Two processes by the command of the README, in a session of their own, as a terminal's foreground."""
    options = ["--config_file", "configs/accelerate/ddp.yaml", "--num_processes", "2"]
    options += ["--main_process_port", str(free_port())]
    settings = ["train.steps=1000000", "train.checkpoint_every=0", "train.log_every=100000"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "train.py", str(tiny_yaml)]
    return subprocess.Popen(
        [*command, f"run_dir={run_dir}", *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_stop_with_a_checkpoint(tiny_yaml, tmp_path, number):
    """SIGTERM to the launcher, as a cluster sends it; Ctrl-C to launcher and processes, which get it twice."""
    with launch(tiny_yaml, tmp_path / "run") as launcher:
        while not (tmp_path / "run/metrics.jsonl").exists():
            assert launcher.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        if number == signal.SIGINT:
            os.killpg(launcher.pid, number)
        else:
            launcher.send_signal(number)
        error = launcher.communicate(timeout=120)[1]
    reached = int(latest_checkpoint(tmp_path / "run").name.removeprefix("step_"))
    assert f"stopped by {signals.name_of(number)} at step {reached}; the same command continues" in error
    assert "left at once" not in error
