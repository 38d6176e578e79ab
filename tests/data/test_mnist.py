"""The digits: real, split for good, and scaled for diffusion."""

import hashlib

import numpy as np
import pytest
import torch

from gspn_dit.config import DataConfig
from gspn_dit.data.mnist import Digits, load_digits
from gspn_dit.evaluation.validation import held_out_dataset
from gspn_dit.training.build import create_dataset

# The split is fixed: scores of old and new models stay comparable.
HELD_OUT_HASH = "98fb5543bef56cee5bebc09de22882be00b23e55fd47f31ec995d026ded3ab21"


def test_split_is_balanced_and_disjoint():
    train, train_labels = load_digits("train")
    held_out, held_out_labels = load_digits("heldout")
    assert train.shape == (4000, 32, 32)
    assert held_out.shape == (1000, 32, 32)
    assert train.dtype == held_out.dtype == np.uint8
    assert np.bincount(train_labels).tolist() == [400] * 10
    assert np.bincount(held_out_labels).tolist() == [100] * 10
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}


def test_split_never_changes():
    images, labels = load_digits("heldout")
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == HELD_OUT_HASH


def test_tuning_leaves_the_held_out_digits_alone():
    train, held_out = (load_digits(split, tuning=True) for split in ("train", "heldout"))
    assert np.bincount(train[1]).tolist() == [300] * 10
    assert np.bincount(held_out[1]).tolist() == [100] * 10
    together = [image.tobytes() for part in (train, held_out) for image in part[0]]
    assert sorted(together) == sorted(image.tobytes() for image in load_digits("train")[0])
    config = DataConfig(kind="mnist", tuning=True)  # a run trains on the one and is validated on the other
    assert torch.equal(create_dataset(config).images, Digits("train", tuning=True).images)
    assert torch.equal(held_out_dataset(config, {}).images, Digits("heldout", tuning=True).images)
    assert [len(create_dataset(config)), len(held_out_dataset(config, {}))] == [3000, 1000]


def test_unknown_split():
    with pytest.raises(ValueError, match="'train' or 'heldout', got 'test'"):
        load_digits("test")


def test_draw_scales_to_one():
    digits = Digits()
    x, y = digits.draw(np.array([5, 0, 5]), np.array([0, 1, 2]), seed=0)
    assert x.shape == (3, 1, 32, 32)
    assert x.dtype == torch.float32
    assert y.tolist() == digits.labels[[5, 0, 5]].tolist()
    pixels, _ = load_digits("train")
    torch.testing.assert_close(x[0, 0], torch.from_numpy(pixels[5]).float() / 127.5 - 1, rtol=0, atol=0)
    assert x.min() == -1
    assert (x[..., :2, :] == -1).all()
    assert 0.9 < x.max() <= 1
