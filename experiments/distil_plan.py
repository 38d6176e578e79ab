"""The study of distillation: a GSPN-DiT taught by a DiT, against one that learns from the images alone.

Networks, sizes and images are those of the study of the mixer, and so are its longer DiT, which teaches, its winner,
which learns alone, and the folders of results and runs.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from experiments.mixers_plan import (
    DATA,
    LONGER,
    STUDIES,
    WINNER,
    Design,
    Study,
    final_kind,
    final_runs,
    longer_runs,
    make_run,
)
from experiments.plan import Run

NAME = "distil"
TEACHER, SCRATCH = "DiT, the teacher", "GSPN-DiT from scratch"
TAUGHT = (
    Design(
        "prediction",
        "taught its prediction",
        WINNER,
        train={"teacher_weight": 0.5, "teacher_blocks_weight": 0.0},
    ),
    Design(
        "blocks",
        "taught its prediction and its mixers' outputs",
        WINNER,
        train={"teacher_weight": 0.5, "teacher_blocks_weight": 0.5},
    ),
)
"""The ways to be taught, with the weights that arXiv 2501.12381 has where it replaces attention."""
SLOWER = 1.35
"""Time of a taught step over that of another: the teacher's forward (estimated)."""
KID_SECONDS = 800
"""What the teacher's KID takes: 24 forwards a sample, and features of 12,000 images (estimated)."""


@dataclass(frozen=True)
class Plan:
    """The trainings, the teacher's and those from scratch before those that it teaches."""

    study: Study
    teacher: Run
    scratch: tuple[Run, ...]
    taught: tuple[Run, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.teacher, *self.scratch, *self.taught


def distil_plan(scale: str, data: Path | None = None) -> Plan:
    """The study of a scale, one of `STUDIES`, with the folder that its images are read from."""
    study = STUDIES[scale]
    patch, images = next(iter(study.grids.items()))
    (teacher,) = (run for run in longer_runs(study) if run.variant == "longer-dit")
    scratch = [run for run in final_runs(study) if run.variant == f"{final_kind(study, patch)}-winner"]
    taught = [
        replace(made, settings={**made.settings, "teacher": teacher.folder}, seconds=made.seconds * SLOWER)
        for seed in study.seeds
        for made in (make_run(design, study, seed, NAME, patch, images) for design in TAUGHT)
    ]

    def placed(runs: list[Run]) -> tuple[Run, ...]:
        return tuple(replace(run, data=str(data or DATA)) for run in runs)

    return Plan(study, *placed([teacher]), placed(scratch), placed(taught))


def describe(plan: Plan, waiting: list[Run], workers: int) -> str:
    """The study and its cost, printed before anything runs."""
    hours = [sum(run.seconds for run in part) / 3600 for part in (plan.runs, waiting)]
    images = next(iter(plan.study.grids.values()))
    return (
        f"{NAME}: a teacher of {LONGER * images:,} images; {1 + len(TAUGHT)} ways with {len(plan.study.seeds)} seeds "
        f"and {images:,} images each, the teacher and those from scratch of the study of the mixer; "
        f"{len(plan.runs) - len(waiting)} of {len(plan.runs)} trainings done\n"
        f"cost: {hours[0]:.1f} hours of one core in all, {hours[1]:.1f} of them to come: "
        f"{hours[1] / workers:.1f} hours with {workers} at a time, and {KID_SECONDS / 3600:.1f} hours for the "
        "teacher's KID (estimated)"
    )
