"""The report's section on distillation: whether a taught GSPN-DiT is better than one trained from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import charts
from experiments.distil_plan import NAME, SCRATCH, TAUGHT, TEACHER, Plan, distil_plan
from experiments.mixers_plan import LONGER, STUDIES, Design, study_folder
from experiments.mixers_scores import scored_of
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
    """The teacher's, of `experiments.mixers_scores`."""

    @property
    def teacher(self) -> Setting | None:
        return self.settings.get(self.plan.teacher.variant)

    @property
    def scratch(self) -> Setting | None:
        return self.settings.get(self.plan.scratch[0].variant)

    def of(self, design: Design) -> Setting | None:
        return self.settings.get(f"{NAME}-{design.name}")

    def rows(self) -> list[tuple[str, Setting | None]]:
        """The networks, the taught last."""
        return [(TEACHER, self.teacher), (SCRATCH, self.scratch), *((d.label, self.of(d)) for d in TAUGHT)]


def load_distil(scale: str, results: Path) -> Distil | None:
    """The study of a scale, from the folder of that of the mixer; None where none that is taught was measured."""
    if scale not in STUDIES:
        return None
    plan, folder = distil_plan(scale), study_folder(results)
    settings = load_settings(folder, {run.name: run.key for run in plan.runs})
    (scored,) = scored_of(plan.study, [plan.teacher])
    scores = load_json(scored.path(folder))
    current = scores is not None and scores["settings"]["run"] == plan.teacher.key
    found = Distil(plan, settings, scores if current else None)
    return found if any(found.of(design) for design in TAUGHT) else None


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


def row(label: str, setting: Setting | None, base: Setting | None, compared: bool) -> list[str]:
    if setting is None:
        return [label, "0", *[MISSING] * (len(PARTS) + 5)]
    pairs = [f"{mean:+.1%} ± {error:.1%}" for mean, error in paired_by_seed(setting, base)]
    return [
        label,
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
    setting, base = distil.of(design), distil.scratch
    pairs = paired_by_seed(setting, base)
    if len(pairs) < len(distil.plan.study.seeds):
        return f"{design.label}: {MISSING}"
    gains = all(mean < -ERRORS * error for mean, error in pairs)
    return f"{design.label}: {'a gain' if gains else '**no gain**'}, {percent(share_by_seed(setting, base, 'loss'))}"


def teacher_in_words(distil: Distil) -> str:
    setting = distil.teacher
    loss = show(setting.get("validation.loss"), 4) if setting else MISSING
    share = percent(share_by_seed(setting, distil.scratch, "loss"))
    scores = distil.scores
    kid = f"{scores['kid']:.3f}, {scores['settings']['samples']:,} samples" if scores else MISSING
    return f"{TEACHER}: loss {loss}, {share} against from scratch; KID in EfficientNet's features {kid}"


def distil_section(distil: Distil, folder: Path) -> Section:
    """The section, and its picture in `folder`."""
    base, pictures = distil.scratch, []
    curves = {
        label: by_noise(setting, base)
        for label, setting in distil.rows()
        if setting and base and setting is not base
    }
    if curves:
        charts.draw_noise(
            [("taught by a DiT", curves)], "learning from the images alone", folder / f"{NAME}.png"
        )
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
        f"convolutions, and is that study's winner. The teacher has seen {LONGER} times as many images as a student. "
        "Weights 0.5 of the squared distance from its prediction, and 0.5 of that of the mixers' outputs over the "
        "square of its own. "
        f"{len(results)} of {len(distil.plan.runs)} trainings are in ({hours:.1f} hours of one core). The loss is the "
        f"plain squared error of {study.validation_images:,} held-out images by the averaged weights, the same images, "
        f"times and noise for all. A gain is one that every seed shows by over {ERRORS} standard errors over images.",
        [*(verdict(distil, design) for design in TAUGHT), teacher_in_words(distil)],
        [
            table(
                (*head, "against from scratch", "seed by seed, over the images"),
                [
                    row(label, setting, base, label not in (TEACHER, SCRATCH))
                    for label, setting in distil.rows()
                ],
            )
        ],
        pictures,
        headlines=len(TAUGHT),
    )
