"""Distillations of a tiny teacher."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gspn_dit.text_to_image.distil_config import load_distil_config
from gspn_dit.text_to_image.distiller import distil
from tests.text_to_image.tiny import save_pictures, save_teacher

TINY = {
    "student": {"rank": 2},
    "data": {"size": 16},
    "train": {
        "steps": 6,
        "batch_size": 4,
        "micro_batch": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
        "log_every": 1,
        "tensorboard": False,
    },
}


@pytest.fixture
def distil_yaml(tmp_path) -> Path:
    """A config file of a run in tmp_path/run, with its teacher and its pictures."""
    save_teacher(tmp_path / "teacher")
    save_pictures(tmp_path / "pictures")
    data = {"path": str(tmp_path / "pictures"), **TINY["data"]}
    path = tmp_path / "distil.yaml"
    places = {"run_dir": str(tmp_path / "run"), "teacher": str(tmp_path / "teacher")}
    path.write_text(yaml.safe_dump({**TINY, **places, "data": data}))
    return path


@pytest.fixture
def distil_run(distil_yaml, tmp_path) -> Callable[..., Path]:
    """distil_run("name", "key=value", ...) distils in tmp_path/name and returns that folder."""

    def run(name: str, *overrides: str, status: int = 0) -> Path:
        folder = tmp_path / name
        assert distil(load_distil_config(distil_yaml, [f"run_dir={folder}", *overrides])) == status
        return folder

    return run
