"""One training of the study of curves, in one process: learn, score by the curve's length, and write one JSON."""

import dataclasses
import math
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.curves_nets import PATCH, Classifier, Network
from experiments.curves_task import NO_CURVE, SYMMETRIES, Layouts, Task, cached_layouts, draw_pictures
from experiments.plan import Run
from experiments.train_run import environment, run_command, write_json

BATCHES, WEIGHTS = range(2)
"""Streams of the random numbers of a training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; the same for all."""

    images: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.01
    clip: float = 1.0
    """Norm to which a larger gradient is scaled."""
    count_weight: float = 1.0
    """Of the loss at the tokens, which are to tell how many marks are on their curve."""
    ramp: float = 0.0
    """Part of the training in which the longest curve rises from the shortest to the task's."""

    @property
    def steps(self) -> int:
        return self.images // self.batch_size

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ...: linear warm-up, then half a cosine to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2


class Batches:
    """Batches of a training, by its seed and the number of the step alone."""

    def __init__(self, layouts: Layouts, recipe: Recipe, seed: int) -> None:
        self.layouts, self.recipe, self.seed = layouts, recipe, seed
        self.by_length = np.argsort(layouts.lengths, kind="stable")
        self.sorted_lengths = layouts.lengths[self.by_length]

    def allowed(self, step: int) -> int:
        """How many layouts, the shortest first, a step draws from."""
        low, high = int(self.sorted_lengths[0]), int(self.sorted_lengths[-1])
        share = min(1.0, (step + 1) / max(1, self.recipe.ramp * self.recipe.steps))
        longest = low + share * (high - low)
        return int(np.searchsorted(self.sorted_lengths, longest, side="right"))

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures (B, 2, S, S), labels (B,), float32, and counts (B, S, S)."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, BATCHES]))
        count = self.recipe.batch_size
        chosen = self.by_length[rng.integers(self.allowed(step), size=count)]
        labels, symmetries = rng.integers(2, size=count), rng.integers(SYMMETRIES, size=count)
        pictures, counts = draw_pictures(self.layouts, chosen, labels, symmetries)
        return torch.from_numpy(pictures), torch.from_numpy(labels).float(), torch.from_numpy(counts)


def losses(
    model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies of the pictures' labels, and of the marks on the curve of every token that has one.

    The labels alone teach next to nothing to begin with: all that is near a mark is alike in both kinds of pictures.
    The tokens beside a mark learn at once, and from them those farther along.
    """
    logits, found = model(pictures)
    of_tokens = F.max_pool2d(
        counts.float(), PATCH
    ).long()  # (B, S / 2, S / 2): a patch has pixels of one curve only
    return (
        F.binary_cross_entropy_with_logits(logits, labels),
        F.cross_entropy(found.flatten(0, 2), of_tokens.flatten(), ignore_index=NO_CURVE),
    )


def train(model: nn.Module, batches: Batches, recipe: Recipe) -> dict[str, Any]:
    """Train; the two losses over the images, the speed, and norms of the gradient before it was scaled."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        fused=True,
    )
    model.train()
    found = {"diverged": None, "loss_curve": []}
    seconds, norms, recent = [], [], []
    every = max(1, recipe.steps // 40)
    for step in range(recipe.steps):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        parts = losses(model, *batches.batch(step))
        (parts[0] + recipe.count_weight * parts[1]).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)))
        recent.append([part.item() for part in parts])
        if not all(map(math.isfinite, (*recent[-1], norms[-1]))):
            return found | {"diverged": f"step {step + 1}: losses {recent[-1]}, gradient {norms[-1]}"}
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        if (step + 1) % every == 0:
            means = [round(statistics.fmean(column), 5) for column in zip(*recent, strict=True)]
            found["loss_curve"].append([(step + 1) * recipe.batch_size, *means])
            speed = recipe.batch_size / statistics.median(seconds)
            print(f"images {found['loss_curve'][-1][0]}: losses {means}, {speed:.0f} images/s", flush=True)
            recent = []
    found["images_per_second"] = recipe.batch_size / statistics.median(seconds)
    found["gradient"] = {"median": statistics.median(norms), "largest": max(norms)}
    return found


@torch.no_grad()
def score(model: nn.Module, layouts: Layouts, batch_size: int = 100) -> dict[str, Any]:
    """Accuracy on every held-out layout with either label; by length and by corners: value -> [right, pictures]."""
    model.eval()
    right = []
    for chosen in np.array_split(np.arange(len(layouts)), math.ceil(len(layouts) / batch_size)):
        both = (draw_pictures(layouts, chosen, np.full(len(chosen), label))[0] for label in (0, 1))
        logits = [model(torch.from_numpy(pictures))[0].numpy() for pictures in both]
        right.append(np.stack([logits[0] <= 0, logits[1] > 0], axis=1))
    right = np.concatenate(right)  # (N, 2)
    tables = {}
    for name in ("lengths", "turns"):
        counts = defaultdict(lambda: [0, 0])
        for value, both in zip(getattr(layouts, name).tolist(), right, strict=True):
            counts[value][0] += int(both.sum())
            counts[value][1] += 2
        tables[name] = {str(value): counts[value] for value in sorted(counts)}
    return {"accuracy": float(right.mean()), **tables}


def run_one(run: Run, results: Path, work: Path) -> dict[str, Any]:
    """Train and score `run`; write and return its result. One that does not stay finite is a result too: `diverged`."""
    start = time.monotonic()
    settings = run.settings
    task, network, recipe = (
        kind(**settings[name]) for name, kind in (("task", Task), ("network", Network), ("recipe", Recipe))
    )
    layouts, held_out = cached_layouts(task, Path(run.data))
    torch.manual_seed(run.seed)
    model = Classifier(network, task.size)
    found = train(model, Batches(layouts, recipe, run.seed), recipe)
    if found["diverged"] is None:
        found |= score(model, held_out)
    result = {
        "name": run.name,
        "variant": run.variant,
        "seed": run.seed,
        "key": run.key,
        "settings": settings,
        "images": recipe.images,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layouts": {"training": layouts.hash, "held_out": held_out.hash},
        **found,
        "seconds": round(time.monotonic() - start, 1),
        **environment(),
    }
    write_json(run.result_path(results), result)
    return result


if __name__ == "__main__":
    run_command(run_one)
