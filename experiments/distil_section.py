"""The report's section on distillation: whether a taught GSPN-DiT is better than one trained from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import charts
from experiments.distil_plan import LONGER, NAME, SCRATCH, TAUGHT, TEACHER, Plan, distil_folder, distil_plan
from experiments.distil_run import SCORES
from experiments.mixers_plan import STUDIES, Design
from experiments.mixers_section import COLUMNS, PARTS, by_noise, losses_of, percent, share_by_seed
from experiments.sections import MISSING, Section, show, table
from experiments.summary import Setting, load_json, load_settings
from gspn_dit.evaluation.validation import paired_difference

ERRORS = 2
"""Standard errors, over the images, by which every seed's loss must be lower to be called a gain."""


@dataclass(frozen=True)
class Distil:
    """The study's results."""

    plan: Plan
    settings: dict[str, Setting]
    scores: dict[str, Any] | None
    """The teacher's, of `distil_run.score_teacher`."""

    def of(self, design: Design) -> Setting | None:
        return self.settings.get(f"{NAME}-{design.name}")


def load_distil(scale: str, results: Path) -> Distil | None:
    """The study of a scale, from the folder beside its other results; None where nothing of it was measured."""
    if scale not in STUDIES:
        return None
    plan, folder = distil_plan(scale), distil_folder(results)
    settings = load_settings(folder, {run.name: run.key for run in plan.runs})
    scores = load_json(folder / SCORES)
    current = scores is not None and scores["settings"]["run"] == plan.teacher.key
    return Distil(plan, settings, scores if current else None) if settings else None


def paired_by_seed(setting: Setting | None, base: Setting | None) -> list[tuple[float, float]]:
    """For each seed that both have: the difference image by image, a share of the base's, and its standard error."""
    if setting is None or base is None:
        return []
    pairs = [
        (losses_of(mine), losses_of(theirs))
        for mine in setting.results
        for theirs in base.results
        if mine["seed"] == theirs["seed"]
    ]
    return [paired_difference(mine, theirs) for mine, theirs in pairs if mine and theirs]


def row(distil: Distil, design: Design) -> list[str]:
    setting, base = distil.of(design), distil.of(SCRATCH)
    if setting is None:
        return [design.label, "0", *[MISSING] * (len(PARTS) + 5)]
    compared = design in TAUGHT
    pairs = [f"{mean:+.1%} ± {error:.1%}" for mean, error in paired_by_seed(setting, base)]
    return [
        design.label,
        str(len(setting.results)),
        f"{setting.one('images'):,}",
        f"{setting.one('parameters') or 0:,}",
        *(show(setting.get(f"validation.{part}"), 4) for part in PARTS),
        show(setting.get("images_per_second"), 0),
        percent(share_by_seed(setting, base, "loss")) if compared else "",
        ("; ".join(pairs) or MISSING) if compared else "",
    ]


def verdict(distil: Distil, design: Design) -> str:
    """Whether a way of being taught gains, in words."""
    setting, base = distil.of(design), distil.of(SCRATCH)
    pairs = paired_by_seed(setting, base)
    if len(pairs) < len(distil.plan.study.seeds):
        return f"{design.label}: {MISSING}"
    gains = all(mean < -ERRORS * error for mean, error in pairs)
    return f"{design.label}: {'a gain' if gains else '**no gain**'}, {percent(share_by_seed(setting, base, 'loss'))}"


def teacher_in_words(distil: Distil) -> str:
    setting = distil.of(TEACHER)
    loss = show(setting.get("validation.loss"), 4) if setting else MISSING
    share = percent(share_by_seed(setting, distil.of(SCRATCH), "loss"))
    scores = distil.scores
    kid = f"{1000 * scores['kid']:.1f}, {scores['settings']['samples']:,} samples" if scores else MISSING
    return (
        f"the teacher: loss {loss}, {share} against from scratch; KID x 1000 in EfficientNet's features {kid}"
    )


def distil_section(distil: Distil, folder: Path) -> Section:
    """The section, and its picture in `folder`."""
    designs = (TEACHER, SCRATCH, *TAUGHT)
    base, pictures = distil.of(SCRATCH), []
    taught = {design.label: distil.of(design) for design in (TEACHER, *TAUGHT)}
    curves = {label: by_noise(setting, base) for label, setting in taught.items() if setting and base}
    if curves:
        charts.draw_noise([("against from scratch", curves)], folder / f"{NAME}.png")
        pictures.append(f"{NAME}.png")
    head = ("network", "seeds", "images", "parameters", *COLUMNS, "images/s, training")
    study = distil.plan.study
    results = [result for setting in distil.settings.values() for result in setting.results]
    hours = sum(result["seconds"] for result in results) / 3600
    return Section(
        NAME,
        "Distillation from attention",
        "Is a GSPN-DiT that a DiT of its width and depth teaches better than one that learns from the images alone?",
        f"CIFAR-10 and all settings as in the study of the mixer: {study.size}x{study.size} pixels, width "
        f"{study.width}, depth {study.depth}, equal parameters; the GSPN-DiT has a modulated local path and identity "
        f"convolutions. The teacher has seen {LONGER} times as many images as a student. Weights 0.5 of the squared "
        "distance from its prediction, and 0.5 of that of the mixers' outputs over the square of its own. "
        f"{len(results)} of {len(distil.plan.runs)} trainings are in ({hours:.1f} hours of one core). The loss is the "
        f"plain squared error of {study.validation_images:,} held-out images by the averaged weights, the same images, "
        f"times and noise for all. A gain is one that every seed shows by over {ERRORS} standard errors over images.",
        [*(verdict(distil, design) for design in TAUGHT), teacher_in_words(distil)],
        [
            table(
                (*head, "against from scratch", "seed by seed, over the images"),
                [row(distil, d) for d in designs],
            )
        ],
        pictures,
        headlines=len(TAUGHT),
    )
