"""Several processes: the same global batch gives the same losses and weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gspn_dit.checkpoint import latest_checkpoint
from tests.launch import ROOT, accelerate_launch, free_port
from tests.training.run_state import log_rows


def launch_processes(program: str, *arguments: str) -> None:
    """Start two processes as a launcher does: the same command, and who is who in the environment."""
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(2):
        settings = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
        environment = os.environ | {key: str(value) for key, value in settings.items()}
        processes.append(subprocess.Popen([sys.executable, program, *arguments], cwd=ROOT, env=environment))
    assert [process.wait() for process in processes] == [0, 0]


def launch_training(program: str, *arguments: str) -> None:
    """Start two processes by the command of the README."""
    assert "2 x cpu" in accelerate_launch(program, *arguments)


def assert_equal_runs(run_a: Path, run_b: Path) -> None:
    """Losses equal to 1e-5 relative; averaged weights to what Adam makes of rounding in the gradient."""
    for row, other in zip(log_rows(run_a), log_rows(run_b), strict=True):
        for key in (key for key in row if key == "loss" or key.startswith("validation")):
            assert other[key] == pytest.approx(row[key], rel=1e-5)
    assert "validation_high" in row
    tensors = [load_file(latest_checkpoint(run) / "ema.safetensors") for run in (run_a, run_b)]
    torch.testing.assert_close(*tensors, rtol=1e-3, atol=1e-4)


def test_two_processes_with_micro_batches_equal_one(train_run, tiny_yaml, tmp_path):
    validate = ("train.validate_every=4", "train.validation_images=33")
    one = train_run("one", *validate)
    two = tmp_path / "two"
    cut = ("train.micro_batch=2", "train.sample_every=5")
    launch_processes("train.py", str(tiny_yaml), f"run_dir={two}", *cut, *validate)
    assert_equal_runs(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "program"),
    [(launch_training, "train.py"), (launch_processes, "tests/training/fsdp2_on_cpu.py")],
    ids=["ddp", "fsdp2"],
)
def test_fifty_steps_of_two_processes_resumed_half_way(train_run, tiny_yaml, tmp_path, launch, program):
    overrides = (
        "train.schedule=constant",
        "train.checkpoint_every=20",
        "train.sample_every=15",
        "train.validate_every=25",
        "train.validation_images=33",
        "model.depth=2",
    )
    one = train_run("one", *overrides, "train.steps=50")
    two = tmp_path / "two"
    for steps in (25, 50):
        launch(program, str(tiny_yaml), f"run_dir={two}", *overrides, f"train.steps={steps}")
    assert_equal_runs(one, two)
