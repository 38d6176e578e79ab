"""A run that is killed again and again ends as one that never was."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_state import final_state

from gspn_dit.checkpoint import latest_checkpoint

ROOT = Path(__file__).parents[2]
KILLS = 20
OVERRIDES = (
    "model.width=192",
    "model.depth=2",
    "train.steps=400",
    "train.checkpoint_every=5",
    "train.keep_last=2",
)


def kill_when(command: list, reached) -> bool:
    """Run a command until `reached()` holds, then SIGKILL it; whether it ended by itself before."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if reached():
                process.send_signal(signal.SIGKILL)
                return False
        return process.returncode == 0


def last_step(run_dir: Path) -> int:
    newest = latest_checkpoint(run_dir)
    return int(newest.name.removeprefix("step_")) if newest else 0


def rows(run_dir: Path) -> int:
    log = run_dir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


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
        steps = start + chance.randint(6, 12)
        aside = run_dir / "checkpoints"

        def in_a_save(start=start, aside=aside) -> bool:
            return last_step(run_dir) > start and any(aside.glob(".tmp-step_*/*.safetensors"))

        def after_steps(steps=steps) -> bool:
            return rows(run_dir) >= steps and last_step(run_dir) > start

        assert not kill_when(command, in_a_save if kill % 2 else after_steps)
        inside += any(aside.glob(".tmp-step_*"))
        assert last_step(run_dir) > start
    assert inside >= 5
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert final_state(run_dir) == final_state(straight)
