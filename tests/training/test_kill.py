"""A run that is killed again and again ends as one that never was."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from gspn_dit.checkpoint import latest_checkpoint
from tests.training.run_state import final_state

ROOT = Path(__file__).parents[2]
KILLS = 20
OVERRIDES = (
    "model.width=192",
    "model.depth=2",
    "train.steps=200",
    "train.checkpoint_every=5",
    "train.keep_last=2",
)


def kill_when(command: list, reached: Callable[[], bool]) -> bool:
    """Run a command until `reached()` holds, then SIGKILL it; whether it ended by itself before."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        while True:
            try:
                return process.wait(timeout=0.002) == 0
            except subprocess.TimeoutExpired:
                if reached():
                    process.kill()
                    return False


def last_step(run_dir: Path) -> int:
    newest = latest_checkpoint(run_dir)
    return int(newest.name.removeprefix("step_")) if newest else 0


def rows(run_dir: Path) -> int:
    log = run_dir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def in_a_save(run_dir: Path, start: int) -> bool:
    """Whether the run has moved on and is writing a checkpoint."""
    return last_step(run_dir) > start and any(run_dir.glob("checkpoints/.tmp-step_*/*.safetensors"))


def past(run_dir: Path, start: int, steps: int) -> bool:
    """Whether the run has moved on, to this step at least."""
    return last_step(run_dir) > start and rows(run_dir) >= steps


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(train_run, tiny_yaml, tmp_path):
    """Half of the kills fall inside a save, half at a random number of steps after the last checkpoint."""
    straight = train_run("straight", *OVERRIDES)
    run_dir = tmp_path / "killed"
    command = [sys.executable, "train.py", tiny_yaml, f"run_dir={run_dir}", *OVERRIDES]
    chance = random.Random(0)
    inside = 0
    for kill in range(KILLS):
        start = last_step(run_dir)
        moments = (
            partial(past, run_dir, start, start + chance.randint(6, 12)),
            partial(in_a_save, run_dir, start),
        )
        assert not kill_when(command, moments[kill % 2])
        inside += any(run_dir.glob("checkpoints/.tmp-step_*"))
        assert last_step(run_dir) > start
    assert inside >= 5
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert final_state(run_dir) == final_state(straight)
