"""What each picture of a step draws: its augmentation, whom it is mixed with, and the paths that it takes.

All of it is keyed by the picture's number in training (see gspn_dit/data/batches.py).
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torchvision.transforms import v2

from gspn_dit.classification.recipe import AugmentConfig
from gspn_dit.data.batches import Shares, Tensors
from gspn_dit.errors import UserError
from gspn_dit.random import MIX, PATHS, seed_of, seeded
from gspn_dit.signals import STOPS

GRACE = 120
"""Seconds that a worker lives on after SIGTERM."""


@dataclass(frozen=True)
class PictureBatch(Tensors):
    """The pictures of one forward pass."""

    x: torch.Tensor
    """(n, 3, H, W) float32, normalised"""
    y: torch.Tensor
    """(n,) int64; (n, classes) float32 shares where pictures are mixed"""
    paths: torch.Tensor
    """(n, branches) float32 in [0, 1), see `Backbone.forward`"""


class PictureBatches(Shares):
    """The batches of a classifier, drawn by worker processes: augmentation draws from torch's one generator.

    Pictures 2 i and 2 i + 1 of the training are mixed with each other, keyed by i: in a random order they are a random
    pair, and neither micro-batch nor the number of processes changes it as long as shares are even.
    """

    def __init__(self, *arguments, augment: AugmentConfig, branches: int, workers: int, **shares) -> None:
        """The rest is what `Shares` takes; `branches` are those of the network."""
        super().__init__(*arguments, **shares)
        self.branches, self.workers = branches, workers
        kinds = {v2.MixUp: augment.mixup, v2.CutMix: augment.cutmix}
        self.mixes = [
            kind(alpha=alpha, num_classes=self.dataset.num_classes) for kind, alpha in kinds.items() if alpha
        ]

    def check_pairs(self) -> None:
        """Raise `UserError` where a pair would lie in two micro-batches."""
        if self.mixes and (self.local % 2 or self.micro_batch % 2):
            raise UserError(
                f"train.batch_size: expected an even number of pictures for each process and micro-batch, which are "
                f"mixed in pairs, got {self.local} and {self.micro_batch}"
            )

    def __call__(self, start: int, stop: int) -> Iterator[list[PictureBatch]]:
        """The micro-batches of steps `start` to `stop` - 1; `UserError` for a picture that cannot be read."""
        loader = DataLoader(
            self,
            sampler=(numbers for step in range(start, stop) for numbers in self.numbers(step)),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.pin,
            worker_init_fn=leave_signals,
        )
        batches, each = iter(loader), len(self.numbers(start))
        while ready := list(islice(batches, each)):
            failed = next((batch for batch in ready if isinstance(batch, UserError)), None)
            if failed is not None:
                # Ends the workers, which would wait out their grace: what is raised keeps this frame.
                del batches
                raise failed
            yield ready

    def __getitem__(self, numbers: np.ndarray) -> PictureBatch | UserError:
        """A micro-batch; from a worker an error comes as a value, or it would arrive with a traceback for message."""
        try:
            return self.draw(numbers)
        except UserError as error:
            if get_worker_info() is None:
                raise
            return error

    def draw(self, numbers: np.ndarray) -> PictureBatch:
        """The pictures with these numbers (n,) int64 and everything they draw."""
        x, y = self.dataset.draw(self.order.indices(numbers), numbers, self.seed)
        x, y = self.mix(x, y, numbers) if self.mixes else (x, y)
        generator = torch.Generator()
        paths = torch.empty(len(numbers), self.branches)
        for row, number in zip(paths, numbers.tolist(), strict=True):
            row.uniform_(generator=generator.manual_seed(seed_of(PATHS, self.seed, number)))
        return PictureBatch(x, y, paths)

    def mix(self, x: torch.Tensor, y: torch.Tensor, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Each pair mixed in one way: x (n, 3, H, W), and shares of classes (n, classes)."""
        pairs = []
        for place in range(0, len(numbers), 2):
            pair = slice(place, place + 2)
            with seeded(MIX, self.seed, int(numbers[place]) // 2):
                mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
                pairs.append(mix(x[pair], y[pair]))
        pictures, shares = zip(*pairs, strict=True)
        return torch.cat(pictures), torch.cat(shares)


def leave_signals(worker: int) -> None:
    """Stop signals are for the process that trains, which ends its workers; a terminal or a cluster sends them to all.

    That process may take `GRACE` to come to the end of its step and its checkpoint.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
