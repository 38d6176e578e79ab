"""The study of distillation: a GSPN-DiT taught by a DiT, against one that learns from the images alone.

Networks, sizes and images are those of the study of the mixer; the teacher is trained longer.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from experiments.mixers_plan import DATA, MODULATED, STUDIES, Design, Study, make_run, study_folder
from experiments.plan import Run

NAME = "distil"
TEACHER = Design("teacher", "DiT, the teacher", family="DiT")
SCRATCH = Design("scratch", "GSPN-DiT from scratch", MODULATED)
LONGER = 4
"""Images of the teacher over those of a student."""
TAUGHT = (
    Design(
        "prediction",
        "taught its prediction",
        MODULATED,
        train={"teacher_weight": 0.5, "teacher_blocks_weight": 0.0},
    ),
    Design(
        "blocks",
        "taught its prediction and its mixers' outputs",
        MODULATED,
        train={"teacher_weight": 0.5, "teacher_blocks_weight": 0.5},
    ),
)
"""The ways to be taught, with the weights that arXiv 2501.12381 has where it replaces attention."""
SLOWER = 1.35
"""Time of a taught step over that of another: the teacher's forward (estimated)."""
SAMPLES = {"cpu": 2000, "mini": 8}
"""Of the teacher, for its KID."""
KID_SECONDS = 800
"""What that takes: 24 forwards a sample, and features of 12,000 images (estimated)."""


@dataclass(frozen=True)
class Plan:
    """The trainings, the teacher's and those from scratch before those that it teaches."""

    study: Study
    teacher: Run
    scratch: tuple[Run, ...]
    taught: tuple[Run, ...]
    samples: int

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.teacher, *self.scratch, *self.taught


def distil_plan(scale: str, data: Path | None = None) -> Plan:
    """The study of a scale, one of `STUDIES`, with the folder that its images are read from."""
    study = STUDIES[scale]
    patch, images = next(iter(study.grids.items()))

    def run(design: Design, seed: int, images: int) -> Run:
        made = make_run(design, study, seed, NAME, patch, images)
        return replace(made, data=str(data or DATA))

    teacher = run(TEACHER, study.seeds[0], LONGER * images)
    taught = [
        replace(made, settings={**made.settings, "teacher": teacher.folder}, seconds=made.seconds * SLOWER)
        for seed in study.seeds
        for made in (run(design, seed, images) for design in TAUGHT)
    ]
    scratch = tuple(run(SCRATCH, seed, images) for seed in study.seeds)
    return Plan(study, teacher, scratch, tuple(taught), SAMPLES[scale])


def distil_folder(folder: Path) -> Path:
    """Where the study of a scale is kept, beside the folder of the other experiments of that scale."""
    return study_folder(folder, NAME)


def describe(plan: Plan, waiting: list[Run], workers: int) -> str:
    """The study and its cost, printed before anything runs."""
    hours = [sum(run.seconds for run in part) / 3600 for part in (plan.runs, waiting)]
    images = next(iter(plan.study.grids.values()))
    return (
        f"{NAME}: a teacher of {LONGER * images:,} images; {1 + len(TAUGHT)} ways with {len(plan.study.seeds)} seeds "
        f"and {images:,} images each; {len(plan.runs) - len(waiting)} of {len(plan.runs)} trainings done\n"
        f"cost: {hours[0]:.1f} hours of one core in all, {hours[1]:.1f} of them to come: "
        f"{hours[1] / workers:.1f} hours with {workers} at a time, and {KID_SECONDS / 3600:.1f} hours for the "
        "teacher's KID (estimated)"
    )
