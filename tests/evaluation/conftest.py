"""Sets of images, a real InceptionV3 with weights made here, pixels in its place, a cache of the test's own."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save

import eval_fid
from gspn_dit.evaluation import digits
from gspn_dit.evaluation.extractors import Features
from tests.latents.conftest import store_folder  # noqa: F401 (a fixture of these tests too)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """torch-fidelity's architecture with random weights, saved as its own are.

    They keep the scale from layer to layer: with torch's own initial weights all images have the same features.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    # The extractor has no way to be made without weights: give it none to load.
    with mock.patch("torch.load", return_value={}), mock.patch.object(torch.nn.Module, "load_state_dict"):
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="none")
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.nn.init.normal_(network.fc.weight)
    torch.nn.init.normal_(network.fc.bias, std=3.0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def classifier() -> digits.DigitClassifier:
    return digits.load_classifier()


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache in the test's folder."""
    monkeypatch.setenv("GSPN_DIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pixels(monkeypatch, own_cache):
    """eval_fid.py with the pixel network in Inception's place."""
    monkeypatch.setattr("gspn_dit.evaluation.scores.check_network", lambda options: None)
    monkeypatch.setattr("gspn_dit.evaluation.scores.create_network", lambda options, device: Pixels())


@pytest.fixture
def digit_cache(classifier, tmp_path, monkeypatch) -> Path:
    """A cache in the test's folder that holds the digit classifier alone."""
    monkeypatch.setenv("GSPN_DIT_CACHE", str(tmp_path / "cache"))
    digits.cached_path().write_bytes(save(classifier.state_dict()))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def random_images(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Images (count, size, size, 3) uint8 that differ in colour and texture."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (count, 1, 1, 3))
    return (base + rng.integers(0, 56, (count, size, size, 3))).astype(np.uint8)


class Pixels:
    """A network whose features are pixels: any number of images costs nothing."""

    kind, identity, width, published = "inception", "pixels", 40, False

    def __call__(self, images):
        rows = torch.from_numpy(images).flatten(1).float()
        return Features(rows[:, :40] / 64, rows[:, 40:70] / 64, rows[:, 70:82] / 64)


def score(*arguments) -> dict:
    """The JSON of eval_fid.py in process; the last argument is where it is written."""
    path = Path(arguments[-1])
    assert eval_fid.main([*map(str, arguments[:-1]), "--json", str(path)]) == 0
    return json.loads(path.read_text())
