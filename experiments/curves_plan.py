"""The study of propagation: which networks learn to follow a curve, at equal parameters, and over how many pixels."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.curves_nets import Network, count_parameters
from experiments.curves_run import Recipe
from experiments.curves_task import Task
from experiments.mixers_plan import study_folder
from experiments.plan import SEEDS, Run

NAME = "curves"
PROGRAM = "experiments.curves_run"


@dataclass(frozen=True)
class Design:
    """One network of the study."""

    name: str
    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs from GSPN's."""
    deeper: int = 0
    """Blocks beyond GSPN's."""
    milliseconds: float = 1.0
    """Time of a training over GSPN's."""


GSPN = Design("gspn", "GSPN")
NO_SCAN = Design("no-scan", "the same, scan left out", {"core": "identity"})
ATTENTION = Design("attention", "attention, sin-cos positions", {"core": "attention"})
CONVOLUTION = Design("convolution", "convolutions of 7x7", {"core": "none", "kernel": 7}, deeper=2)
LOCAL = (
    Design("local-2", "all blocks local, 2 lines", {"segment": 2}),
    Design("local-4", "all blocks local, 4 lines", {"segment": 4}),
    Design("last-global", "local, 2 lines, but the last block", {"segment": 2, "global_blocks": 1}),
)
SIGMOID = Design("sigmoid", "GSPN, sigmoid in place of row-stochastic", {"normalization": "sigmoid"})
MIXERS = (GSPN, NO_SCAN, ATTENTION, CONVOLUTION)
DESIGNS = (*MIXERS, *LOCAL, SIGMOID)


@dataclass(frozen=True)
class Grid:
    """The trainings on pictures of one size."""

    task: Task
    designs: tuple[Design, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    seconds: float
    """Of GSPN's training on one core, measured."""

    def variant(self, design: Design) -> str:
        return f"{design.name}-{self.task.size}"


@dataclass(frozen=True)
class Study:
    """How large the networks and their trainings are."""

    width: int
    depth: int
    hidden: int
    """Of GSPN; the other networks' is what makes their parameters equal."""
    grids: tuple[Grid, ...]


RECIPE = Recipe(images=60_000, batch_size=32, learning_rate=2e-3, warmup_steps=100)
STUDIES = {
    "cpu": Study(
        width=48,
        depth=3,
        hidden=96,
        grids=(
            Grid(Task(size=32, lengths=(10, 44), distractors=6), DESIGNS, SEEDS, RECIPE, seconds=450),
            Grid(
                Task(size=64, lengths=(20, 88), distractors=6, turn=0.05, layouts=10_000, held_out=1000),
                # the same at twice the scale
                (GSPN, NO_SCAN, SIGMOID),
                SEEDS[:1],
                RECIPE,
                seconds=1800,
            ),
        ),
    ),
    "mini": Study(
        width=16,
        depth=2,
        hidden=32,
        grids=(
            Grid(
                Task(size=16, lengths=(8, 12), distractors=1, turn=0.3, layouts=40, held_out=10),
                DESIGNS,
                (0,),
                Recipe(images=16, batch_size=8, learning_rate=1e-3, warmup_steps=1),
                seconds=1,
            ),
            Grid(
                Task(size=20, lengths=(8, 16), distractors=1, turn=0.3, layouts=40, held_out=10),
                (GSPN, NO_SCAN, SIGMOID),
                (0,),
                Recipe(images=16, batch_size=8, learning_rate=1e-3, warmup_steps=1),
                seconds=1,
            ),
        ),
    ),
}


def network_of(design: Design, study: Study) -> Network:
    """The network of a design, with the MLPs' width at which it has GSPN's parameters, as nearly as can be."""
    settings = {"core": "lines", "width": study.width, "depth": study.depth + design.deeper}
    gspn = Network(**{**settings, "depth": study.depth, "hidden": study.hidden})
    base = Network(**{**settings, **design.settings, "hidden": 1})
    if design == GSPN:
        return gspn
    # None of the sizes depends on that of the picture.
    target, least, more = (
        count_parameters(network, 8) for network in (gspn, base, dataclasses.replace(base, hidden=2))
    )
    return dataclasses.replace(base, hidden=max(1, 1 + round((target - least) / (more - least))))


def make_run(design: Design, study: Study, grid: Grid, seed: int, folder: Path) -> Run:
    variant = grid.variant(design)
    settings = {
        "task": dataclasses.asdict(grid.task),
        "network": dataclasses.asdict(network_of(design, study)),
        "recipe": dataclasses.asdict(grid.recipe),
        "seed": seed,
    }
    seconds = grid.seconds * design.milliseconds
    return Run(f"{variant}-seed{seed}", variant, seed, settings, seconds, data=str(folder), program=PROGRAM)


def curves_runs(scale: str, folder: Path = Path()) -> list[Run]:
    """All trainings of a scale, one of `STUDIES`; their layouts are kept in `folder`.

    Seed by seed, so that a study cut short shows every network.
    """
    study = STUDIES[scale]
    return [
        make_run(design, study, grid, seed, folder)
        for seed in SEEDS
        for grid in study.grids
        for design in grid.designs
        if seed in grid.seeds
    ]


def curves_folder(folder: Path) -> Path:
    """Where the study of a scale is kept, beside the folder of the other experiments of that scale."""
    return study_folder(folder, NAME)


def describe(runs: list[Run], waiting: list[Run], workers: int) -> str:
    """The study and its cost, printed before anything runs."""
    hours = [sum(run.seconds for run in part) / 3600 for part in (runs, waiting)]
    images = max(run.settings["recipe"]["images"] for run in runs)
    return (
        f"{NAME}: {len(DESIGNS)} networks, {images:,} images a training; {len(runs) - len(waiting)} of {len(runs)} "
        f"trainings done\ncost: {hours[0]:.1f} hours of one core in all, {hours[1]:.1f} of them to come: "
        f"{hours[1] / workers:.1f} hours with {workers} at a time (estimated from measured runs)"
    )
