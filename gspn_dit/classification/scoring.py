"""What a classifier says of held-out pictures, and how often it is right."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, get_worker_info

from gspn_dit.classification.drawing import leave_signals
from gspn_dit.classification.pictures import Pictures
from gspn_dit.data.batches import chunks
from gspn_dit.data.order import EpochOrder
from gspn_dit.errors import UserError
from gspn_dit.processes import progress_bar

KEY = 512
"""Fixed, so that a share of the held-out pictures is the same for every run, whatever its seed."""
BEST = 5


@dataclass(frozen=True)
class Predictions:
    """Of n pictures: the class, the most likely classes, best first, and the cross-entropy."""

    labels: torch.Tensor
    """(n,) int64"""
    best: torch.Tensor
    """(n, up to 5) int64"""
    losses: torch.Tensor
    """(n,) float32"""
    num_classes: int

    def measures(self) -> dict[str, float]:
        """Mean cross-entropy ("loss") and the shares "top1" and, of more than five classes, "top5"."""
        right = self.best == self.labels.unsqueeze(1)
        found = {"loss": self.losses.double().mean(), "top1": right[:, 0].double().mean()}
        if self.num_classes > BEST:
            found["top5"] = right.any(dim=1).double().mean()
        return {name: float(value) for name, value in found.items()}

    def confusion(self) -> torch.Tensor:
        """Counts (classes, classes) int64: a row for each class, a column for each prediction."""
        places = self.labels * self.num_classes + self.best[:, 0]
        return torch.bincount(places, minlength=self.num_classes**2).view(self.num_classes, -1)


class Held:
    """Pictures by batches, for a loader; an unreadable one is a `UserError` in place of a batch."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor] | UserError:
        try:
            return self.pictures.draw(indices, indices, KEY)
        except UserError as error:
            if get_worker_info() is None:
                raise
            return error


@torch.no_grad()
def predict(
    model: nn.Module,
    pictures: Pictures,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    count: int | None = None,
    bar: bool = False,
) -> Predictions:
    """What `model`, in eval mode, says of the first `count` pictures of a fixed order, or of all.

    Every process must call this and gets the whole. Raises `UserError` naming a picture that cannot be read.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    count = min(count or len(pictures), len(pictures))
    # All processes make as many forwards, of one size: a sharded network needs them all at every forward.
    forwards = math.ceil(count / (batch_size * processes))
    size = math.ceil(count / (forwards * processes))
    numbers = (np.arange(size * forwards) + size * forwards * rank).clip(max=count - 1)
    indices = EpochOrder(len(pictures), KEY).indices(numbers)
    loader = DataLoader(
        Held(pictures),
        sampler=list(chunks(indices, size)),
        batch_size=None,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=leave_signals,
    )
    labels, best, losses = [], [], []
    hidden = not (bar and accelerator.is_main_process)
    for batch in progress_bar(iterable=loader, desc="classifying", unit="batch", disable=hidden):
        if isinstance(batch, UserError):
            raise batch
        x, y = (tensor.to(accelerator.device, non_blocking=True) for tensor in batch)
        logits = model(x).float()  # (n, classes)
        labels.append(y)
        best.append(logits.topk(min(BEST, logits.shape[1])).indices)
        losses.append(F.cross_entropy(logits, y, reduction="none"))
    # Process after process, as the numbers; the last ones are again of the last picture, for nobody.
    whole = [accelerator.gather(torch.cat(part))[:count].cpu() for part in (labels, best, losses)]
    return Predictions(*whole, pictures.num_classes)
