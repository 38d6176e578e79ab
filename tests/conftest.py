"""Fixtures shared by all tests: every test runs on the CPU; a GPU only adds a parameter."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ops.library import BACKENDS

# A shell starts what it puts into the background with Ctrl-C ignored, and the tests' own processes would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup does the same with hangups; what handles one here, by doing nothing, is not inherited.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

DEVICES = ["cpu", *(["cuda"] if "cuda" in BACKENDS and torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Each device that this machine can test on."""
    return request.param


@pytest.fixture
def poisoned_memory():
    """Fill fresh memory with NaN, so that an element that nobody wrote shows itself."""
    deterministic, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


TINY = {
    "model": {"name": "GSPN-DiT-S/8", "width": 16, "depth": 1},
    "diffusion": {"objective": "flow"},
    "data": {"kind": "mnist"},
    "train": {
        "steps": 10,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_steps": 3,
        "checkpoint_every": 4,
        "log_every": 1,
        "tensorboard": False,
    },
    "sample": {"steps": 1, "per_class": 1, "classes": [0]},
    "eval": {"samples": 0},
}


@pytest.fixture
def tiny_yaml(tmp_path) -> Path:
    """A config file of a run in tmp_path/run."""
    # Here, since the scan's own tests run where torch is the only package (tests/ops/test_oldest_torch.py).
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run"), **TINY}))
    return path


@pytest.fixture
def train_run(tiny_yaml, tmp_path) -> Callable[..., Path]:
    """train_run("name", "key=value", ...) trains in tmp_path/name and returns that folder."""
    # Here, as above.
    from gspn_dit.config import load_config
    from gspn_dit.training.trainer import train

    def run(name: str, *overrides: str, status: int = 0) -> Path:
        folder = tmp_path / name
        config = load_config(tiny_yaml, [f"run_dir={folder}", *overrides])
        assert train(config) == status
        return folder

    return run
