"""Images per second of the study's networks as a ratio to GSPN's, timed side by side in one process with one thread."""

import time
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.curves_nets import Classifier
from experiments.curves_plan import GSPN, Design, Grid, Study, network_of
from experiments.curves_run import losses
from experiments.curves_task import CHANNELS, MARKS
from experiments.throughput import summary
from experiments.train_run import environment, is_measured, write_json

KINDS = ("training", "inference")
ROUNDS = {"cpu": 15, "mini": 1}
BATCH = 32


def measure(scale: str, study: Study, path: Path) -> None:
    """Write rows for the networks of every grid, unless they are there; a minute or two."""
    settings = {"rounds": ROUNDS[scale], "batch": BATCH, "threads": 1}
    if is_measured(path, settings):
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for grid in study.grids for row in measure_grid(study, grid, ROUNDS[scale])]
    finally:
        torch.set_num_threads(threads)
    write_json(path, {"settings": settings, "rows": rows, **environment()})


def measure_grid(study: Study, grid: Grid, rounds: int) -> list[dict]:
    """All networks take turns, each round begins at another, and a ratio is the median over the rounds."""
    contenders = {grid.variant(design): Contender(design, study, grid) for design in grid.designs}
    names = list(contenders)
    times = {name: {kind: [] for kind in KINDS} for name in names}
    for number in tqdm(
        range(rounds + 1), desc=f"throughput, {grid.task.size}x{grid.task.size}", unit="round"
    ):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for kind in KINDS:
                seconds = contenders[name].seconds(kind)
                if number:  # the first round warms up
                    times[name][kind].append(seconds)
    base = times[grid.variant(GSPN)]
    return [
        {"variant": name, **{kind: summary(times[name][kind], base[kind], BATCH) for kind in KINDS}}
        for name in names
    ]


class Contender:
    """A network with its optimiser; the speed does not depend on what the pictures show."""

    def __init__(self, design: Design, study: Study, grid: Grid) -> None:
        torch.manual_seed(0)
        self.model = Classifier(network_of(design, study), grid.task.size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.pictures = torch.rand(BATCH, CHANNELS, grid.task.size, grid.task.size).gt(0.9).float()
        self.labels = torch.randint(2, (BATCH,)).float()
        self.counts = torch.randint(MARKS + 1, (BATCH, grid.task.size, grid.task.size))

    def seconds(self, kind: str) -> float:
        """Time of a step of training, or of a batch's logits."""
        start = time.perf_counter()
        if kind == "training":
            sum(losses(self.model, self.pictures, self.labels, self.counts)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            with torch.no_grad():
                self.model(self.pictures)
        return time.perf_counter() - start
