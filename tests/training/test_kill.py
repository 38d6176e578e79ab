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


def start(tiny_yaml: Path, run_dir: Path) -> subprocess.Popen:
    """Start the training of a run, or its continuation."""
    command = [sys.executable, "train.py", tiny_yaml, f"run_dir={run_dir}", *OVERRIDES]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def killed_when(process: subprocess.Popen, reached: Callable[[], bool]) -> bool:
    """SIGKILL a process as soon as `reached()` holds; False when it ended by itself before."""
    with process:
        while True:
            try:
                process.wait(timeout=0.002)
                return False
            except subprocess.TimeoutExpired:
                if reached():
                    process.kill()
                    return True


def last_step(run_dir: Path) -> int:
    newest = latest_checkpoint(run_dir)
    return int(newest.name.removeprefix("step_")) if newest else 0


def rows(run_dir: Path) -> int:
    log = run_dir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def in_a_save(run_dir: Path, before: int) -> bool:
    """Whether the run has moved on and is writing a checkpoint."""
    return last_step(run_dir) > before and any(run_dir.glob("checkpoints/.tmp-step_*/*.safetensors"))


def past(run_dir: Path, before: int, steps: int) -> bool:
    """Whether the run has moved on, to this step at least."""
    return last_step(run_dir) > before and rows(run_dir) >= steps


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tiny_yaml, tmp_path):
    """Half of the kills fall inside a save, half at a random number of steps after the last checkpoint."""
    straight, run_dir = tmp_path / "straight", tmp_path / "killed"
    assert start(tiny_yaml, straight).wait() == 0
    chance = random.Random(0)
    inside = 0
    for kill in range(KILLS):
        before = last_step(run_dir)
        after_steps = partial(past, run_dir, before, before + chance.randint(6, 12))
        moment = partial(in_a_save, run_dir, before) if kill % 2 else after_steps
        assert killed_when(start(tiny_yaml, run_dir), moment)
        inside += any(run_dir.glob("checkpoints/.tmp-step_*"))
        assert last_step(run_dir) > before
    assert inside >= KILLS // 4
    assert start(tiny_yaml, run_dir).wait() == 0
    assert final_state(run_dir) == final_state(straight)
