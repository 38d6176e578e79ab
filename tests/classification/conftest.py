"""A folder of pictures in three colours, and runs of a tiny classifier on it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from gspn_dit.classification.classifier import train_classifier
from gspn_dit.classification.recipe import load_recipe

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}
TINY = {
    "model": {
        "name": "gspn_tiny",
        "width": 8,
        "depths": [1, 1, 1, 1],
        "rank": 2,
        "stem_stride": 2,
        "drop_path_rate": 0.2,
    },
    "data": {"size": 16, "crop": "padded", "workers": 0},
    "augment": {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "rand_augment": 9, "jitter": 0.4},
    "train": {
        "steps": 6,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.05,
        "clip": 5.0,
        "label_smoothing": 0.1,
        "ema_decay": 0.9,
        "checkpoint_every": 2,
        "keep_last": 9,
        "validate_every": 3,
        "log_every": 1,
        "tensorboard": False,
    },
}


def write_pictures(folder: Path, count: int, first: int, sides: tuple[int, int] = (16, 16)) -> None:
    """`count` pictures for each colour, with noise keyed by their numbers."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(first, first + count):
            noise = np.random.default_rng(number).integers(0, 56, (*sides, 3))
            Image.fromarray((noise + colour).astype(np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """train/ with ten pictures for each of three classes, test/ with four."""
    root = tmp_path_factory.mktemp("colours")
    write_pictures(root / "train", 10, 0)
    write_pictures(root / "test", 4, 100)
    return root


@pytest.fixture
def recipe(colours, tmp_path) -> Path:
    """The config file of a tiny run in tmp_path/run."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {"run_dir": str(tmp_path / "run"), **TINY, "data": {"path": str(colours), **TINY["data"]}}
        )
    )
    return path


@pytest.fixture
def train_run(recipe, tmp_path) -> Callable[..., Path]:
    """train_run("name", "key=value", ...) trains in tmp_path/name and returns that folder."""

    def run(name: str, *overrides: str) -> Path:
        folder = tmp_path / name
        assert train_classifier(load_recipe(recipe, [f"run_dir={folder}", *overrides])) == 0
        return folder

    return run
