"""Training sets: what an image looks like depends on its index and its number in training alone."""

from typing import Any, Protocol

import numpy as np
import torch


class Dataset(Protocol):
    """What training needs of a data set."""

    num_classes: int
    channels: int
    size: int
    """Height and width of what the diffusion sees."""
    class_names: list[str]
    autoencoder: str | None
    """What decodes it: a hub id or folder; None for pixels."""

    def __len__(self) -> int: ...

    def draw(
        self, indices: np.ndarray, image_numbers: np.ndarray, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images for `indices` (n,) int64: x (n, C, H, W) float32, scaled for diffusion, and y (n,) int64.

        `image_numbers` (n,) int64 count the images of the whole training; random choices (a mirror flip, the
        posterior's noise) are keyed by (seed, image number).
        """
        ...


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint remembers of its data; of latents, also what they were made with and the statistics that
    normalised them; of images, hashes."""
    manifest = getattr(dataset, "manifest", None)
    latents = ("weights_hash", "scale", "shift", "image_size", "images_hash") if manifest else ()
    return {
        "images": len(dataset),
        "size": dataset.size,
        "channels": dataset.channels,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        **{name: getattr(manifest, name) for name in latents},
        **getattr(dataset, "normalized", {}),
        **getattr(dataset, "hashes", {}),
    }
