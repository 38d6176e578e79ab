"""The order of training: a keyed permutation for every epoch.

Which image comes when depends on the seed and the image's number in training alone: a resumed run, or one
with another number of processes, sees the same images.
"""

import numpy as np
import torch

from gspn_dit.random import ORDER, generator


class EpochOrder:
    """Maps image numbers, counted over the whole training, to indices of a data set of `size` images."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"size: expected at least one image, got {size}")
        self.size = size
        self.seed = seed
        self.permutations: dict[int, np.ndarray] = {}

    def indices(self, image_numbers: np.ndarray) -> np.ndarray:
        """Indices (n,) int64 of the images with these numbers (n,) int64."""
        epochs, places = np.divmod(image_numbers, self.size)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            indices[epochs == epoch] = self.permutation(epoch)[places[epochs == epoch]]
        return indices

    def permutation(self, epoch: int) -> np.ndarray:
        """The order of one epoch; two are kept, this and the newest other, as a batch may span both."""
        if epoch not in self.permutations:
            key = generator(ORDER, self.seed, epoch)
            self.permutations[epoch] = torch.randperm(self.size, generator=key).numpy()
            others = sorted(self.permutations.keys() - {epoch})
            for old in others[:-1]:
                del self.permutations[old]
        return self.permutations[epoch]
