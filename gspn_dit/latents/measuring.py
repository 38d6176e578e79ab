"""The mean and standard deviation of every channel, over all latents of a store."""

from pathlib import Path

import numpy as np

from gspn_dit.latents.dataset import DTYPE, MIRRORS, Manifest
from gspn_dit.processes import progress_bar

ROWS = 16
"""Images read at once. The sums are cut by this alone, so that nothing else can change their last bit."""


def measure_channels(path: Path, manifest: Manifest, encoded: np.ndarray) -> dict[str, tuple[float, ...]]:
    """channel_mean and channel_std of a manifest, each (C,) float64, over both mirrors and all positions.

    Read back from moments.bin, in the order of its rows, and summed in float64: neither batch size, processes nor an
    interruption can change them. Of posteriors they are those of the latents drawn: the variance is that of the means
    plus the mean of the variances.

    Args:
        path: moments.bin.
        manifest: its shape.
        encoded: (images,) bool, False for the images that were skipped; at least one is True.
    """
    sums, squares = np.zeros((2, manifest.latent_shape[0]))
    with (
        open(path, "rb") as file,
        progress_bar(total=manifest.images, desc="measuring", unit="image") as bar,
    ):
        for start in range(0, manifest.images, ROWS):
            rows = encoded[start : start + ROWS]
            moments = np.fromfile(file, DTYPE, len(rows) * MIRRORS * int(np.prod(manifest.block_shape)))
            moments = moments.reshape(-1, MIRRORS, *manifest.block_shape)[rows].astype(np.float64)
            mean = moments[:, :, 0]  # (rows, mirrors, C, h, w)
            sums += mean.sum((0, 1, 3, 4))
            squares += np.square(mean).sum((0, 1, 3, 4))
            if manifest.posterior:
                squares += np.exp(moments[:, :, 1]).sum((0, 1, 3, 4))
            bar.update(len(rows))
    _, height, width = manifest.latent_shape
    count = np.count_nonzero(encoded) * MIRRORS * height * width
    means = sums / count
    variances = (squares / count - np.square(means)).clip(min=0)
    return {"channel_mean": tuple(means.tolist()), "channel_std": tuple(np.sqrt(variances).tolist())}
