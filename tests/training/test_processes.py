"""Several processes: the same global batch gives the same losses and weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_state import log_rows
from safetensors.torch import load_file

from gspn_dit.checkpoint import latest_checkpoint

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch_processes(count: int, *arguments: str) -> None:
    """Start train.py as a launcher does: the same command, and who is who in the environment."""
    shared = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    processes = []
    for rank in range(count):
        settings = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
        environment = os.environ | {key: str(value) for key, value in settings.items()}
        processes.append(
            subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, env=environment)
        )
    assert [process.wait() for process in processes] == [0] * count


def accelerate_launch(config_file: str, *arguments: str) -> None:
    command = ["accelerate.commands.launch", "--config_file", ROOT / "configs/accelerate" / config_file]
    options = ["--num_processes", "2", "--main_process_port", str(free_port())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", *command, *options, "train.py", *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
    )


def assert_equal_runs(run_a: Path, run_b: Path) -> None:
    """Losses equal to 1e-5 relative; averaged weights to what Adam makes of rounding in the gradient."""
    for row, other in zip(log_rows(run_a), log_rows(run_b), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)
    tensors = [load_file(latest_checkpoint(run) / "ema.safetensors") for run in (run_a, run_b)]
    torch.testing.assert_close(*tensors, rtol=1e-3, atol=1e-4)


def test_two_processes_with_micro_batches_equal_one(train_run, tiny_yaml, tmp_path):
    one = train_run("one")
    two = tmp_path / "two"
    launch_processes(2, str(tiny_yaml), f"run_dir={two}", "train.micro_batch=2", "train.sample_every=5")
    assert_equal_runs(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("config_file", ["ddp.yaml", "fsdp2.yaml"])
def test_fifty_steps_of_two_processes_resumed_half_way(train_run, tiny_yaml, tmp_path, config_file):
    overrides = ("train.steps=50", "train.checkpoint_every=20", "model.width=32", "model.depth=2")
    one = train_run("one", *overrides)
    two = tmp_path / "two"
    for steps in (25, 50):
        # The rate must not know that the first half is a run of its own.
        halves = ("train.schedule=constant",) if steps == 0 else ()
        accelerate_launch(
            config_file, str(tiny_yaml), f"run_dir={two}", *overrides, f"train.steps={steps}", *halves
        )
    assert_equal_runs(one, two)
