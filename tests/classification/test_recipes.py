"""The configs that are shipped for classifiers: each is valid, and says what it costs and what to expect."""

from pathlib import Path

import pytest

from gspn_dit.classification.recipe import load_recipe
from gspn_dit.classification.sizes import resolve_backbone

FOLDER = Path(__file__).parents[2] / "configs" / "classification"
IMAGENET, EPOCHS = 1_281_167, 300
BASE = {"gspn_t": (5e-4, 5e-6, 2048), "gspn_s": (3e-4, 3e-6, 2048), "gspn_b": (5e-4, 5e-6, 1024)}
"""Rate and last rate for 512 images, and the batch."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_is_valid(path):
    config = load_recipe(path)
    resolve_backbone(**vars(config.model))
    assert config.train.clip == 5.0 and config.train.weight_decay == 0.05
    head = path.read_text().split("run_dir:")[0]
    assert "Budget: " in head and ("not yet measured" in head.lower() or "Measured" in head)


@pytest.mark.parametrize("name", BASE)
def test_the_published_recipe(name):
    path = FOLDER / f"{name}.yaml"
    train, (rate, last, batch) = load_recipe(path).train, BASE[name]
    assert (train.batch_size, Path(load_recipe(path).run_dir).name) == (batch, name)
    assert train.learning_rate == pytest.approx(rate * batch / 512)
    assert train.min_learning_rate == pytest.approx(last * batch / 512)
    assert train.steps * batch == pytest.approx(EPOCHS * IMAGENET, abs=batch)
    assert train.warmup_steps * batch == pytest.approx(20 * IMAGENET, abs=batch)
    assert "Published" in path.read_text() and "Not yet measured" in path.read_text()
