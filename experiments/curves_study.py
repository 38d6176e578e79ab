"""The study of curves: the layouts, the speeds and the trainings that are missing."""

from pathlib import Path

from experiments import curves_speed
from experiments.curves_plan import STUDIES, curves_runs, describe
from experiments.curves_section import SPEED
from experiments.curves_task import cached_layouts
from experiments.pool import is_done, run_all


def run(scale: str, results: Path, work: Path, workers: int) -> list[str]:
    """Do what is missing of a scale, one of `STUDIES`; the failed trainings.

    A training that is stopped begins anew: each takes minutes. What measures time runs alone, before them.
    """
    runs = curves_runs(scale, work.resolve())
    waiting = [run for run in runs if not is_done(run, results)]
    print(describe(runs, waiting, max(1, workers)), flush=True)
    for grid in STUDIES[scale].grids:
        if any(run.variant in map(grid.variant, grid.designs) for run in waiting):
            cached_layouts(grid.task, work)  # here once, where the others find them
    curves_speed.measure(scale, STUDIES[scale], results / SPEED)
    return run_all(runs, results, work, workers)
