"""Sets of images, a real InceptionV3 with weights made here, and a cache of the test's own."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save

from gspn_dit.evaluation import digits


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """torch-fidelity's architecture with random weights, saved as its own are."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    # The extractor has no way to be made without weights: give it none to load.
    with mock.patch("torch.load", return_value={}), mock.patch.object(torch.nn.Module, "load_state_dict"):
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="none")
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
