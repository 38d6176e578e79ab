"""Features of a set of images, batch by batch, on any number of processes."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from gspn_dit.errors import UserError
from gspn_dit.evaluation.extractors import Features, Network
from gspn_dit.evaluation.image_sets import Images
from gspn_dit.evaluation.metrics import ROWS, Moments, RunningMoments
from gspn_dit.processes import progress_bar


@dataclass(frozen=True)
class Statistics:
    """What the scores need of a set of images."""

    count: int
    pool: Moments
    spatial: Moments | None
    features: np.ndarray
    """(k, d) float32: pool features of the images that were asked to be kept."""
    logits: np.ndarray | None
    """(n, 1008) float32."""


def extract(
    images: Images,
    network: Network,
    accelerator: Accelerator,
    *,
    batch_size: int,
    kept: np.ndarray | None = None,
    label: str = "features",
) -> Statistics | None:
    """Statistics of all images, in their order whatever the batch size and the number of processes.

    Args:
        kept: rising numbers of the images whose pool features are kept; None for all.

    Every process must call this; the first gets the result, the others None.
    """
    collector = Collector(len(images), kept) if accelerator.is_main_process else None
    stride = batch_size * accelerator.num_processes
    with progress_bar(
        total=len(images), desc=label, unit=" images", disable=not accelerator.is_main_process
    ) as bar:
        for start in range(0, len(images), stride):
            first = start + batch_size * accelerator.process_index
            # All must take part in the gather: a process beyond the end takes the last image, for nobody.
            part = images.read(min(first, len(images) - 1), min(first + batch_size, len(images)))
            valid = min(stride, len(images) - start)
            features = gather(network(part), accelerator, batch_size, valid)
            check_finite(features, start)
            if collector is not None:
                collector.add(features)
            bar.update(valid)
    return collector.result() if collector is not None else None


def gather(features: Features, accelerator: Accelerator, batch_size: int, valid: int) -> Features:
    """The features of all processes in the order of the images, `valid` rows, on every process."""
    if accelerator.num_processes == 1:
        return features

    def join(rows: torch.Tensor | None) -> torch.Tensor | None:
        if rows is None:
            return None
        padded = rows.new_zeros(batch_size, rows.shape[1])
        padded[: len(rows)] = rows
        return accelerator.gather(padded.to(accelerator.device))[:valid]

    return Features(join(features.pool), join(features.spatial), join(features.logits))


def check_finite(features: Features, start: int) -> None:
    """Raise `UserError` for the first image of whose features some are NaN or infinite."""
    for rows in (features.pool, features.spatial, features.logits):
        wrong = [] if rows is None else (~rows.isfinite().all(dim=1)).nonzero()
        if len(wrong):
            number = start + int(wrong[0])
            raise UserError(
                f"the features of image {number} are not finite: the network's weights must be damaged"
            )


class Collector:
    """Takes features batch by batch; keeps moments, logits and the pool features that are asked for."""

    def __init__(self, count: int, kept: np.ndarray | None) -> None:
        self.count = count
        self.kept = np.arange(count) if kept is None else kept
        self.seen = 0
        self.features: np.ndarray | None = None
        self.logits: np.ndarray | None = None
        self.moments: dict[str, RunningMoments] = {}
        self.waiting: dict[str, list[torch.Tensor]] = {"pool": [], "spatial": []}

    def add(self, features: Features) -> None:
        """Take the features of the images that follow those seen so far."""
        size = len(features.pool)
        pool = features.pool.float().cpu()
        first, last = np.searchsorted(self.kept, [self.seen, self.seen + size])
        if self.features is None:
            self.features = np.empty((len(self.kept), pool.shape[1]), dtype=np.float32)
        self.features[first:last] = pool[self.kept[first:last] - self.seen]
        if features.logits is not None:
            if self.logits is None:
                self.logits = np.empty((self.count, features.logits.shape[1]), dtype=np.float32)
            self.logits[self.seen : self.seen + size] = features.logits.float().cpu()
        self.seen += size
        self.waiting["pool"].append(pool)
        if features.spatial is not None:
            self.waiting["spatial"].append(features.spatial.float().cpu())
        if sum(map(len, self.waiting["pool"])) >= ROWS:  # moments cost a pass over d x d numbers each time
            self.flush()

    def flush(self) -> None:
        """Move what waits into the moments."""
        for name, batches in self.waiting.items():
            if batches:
                rows = torch.cat(batches)
                self.moments.setdefault(name, RunningMoments(rows.shape[1])).update(rows)
                batches.clear()

    def result(self) -> Statistics:
        self.flush()
        spatial = self.moments.get("spatial")
        return Statistics(
            count=self.seen,
            pool=self.moments["pool"].result(),
            spatial=spatial.result() if spatial else None,
            features=self.features,
            logits=self.logits,
        )
