"""The report's section on the mixer: what the scan is worth, by noise and by grid, and what each design changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments import charts
from experiments.mixers_cost import BANDWIDTH, RATE, cost_at_xl
from experiments.mixers_plan import (
    BOLD,
    DESIGNS,
    FINALS,
    LONGER,
    LONGER_NAMES,
    SCREENING,
    STUDIES,
    Design,
    Study,
    final_kind,
    mixer_runs,
    study_folder,
)
from experiments.mixers_scores import scored_of
from experiments.mixers_scores_section import ingredient_table, judge_kid, kid_shares, score_table
from experiments.sections import MISSING, Section, show, table
from experiments.summary import Setting, load_json, load_settings
from gspn_dit.evaluation.validation import BANDS, Losses, paired_difference, times

PARTS = ("loss", *BANDS)
COLUMNS = ("all", "t < 1/3", "1/3 to 2/3", "t > 2/3")
SPEEDS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "training_cpu.json"
SCORES = (("kid", 3), ("fid", 1))
"""Of samples, with the digits shown."""
BINS = 8
"""Of t, in the picture."""
GROUPS = {
    "path": "design, from the network as it is to the one that is varied",
    "variations": "variation of the design in bold",
    "recipe": "recipe",
}


@dataclass(frozen=True)
class Target:
    """What a final should show: the winner's loss against a control's."""

    kind: int
    """Number of the grid in `Study.grids`."""
    control: str
    share: float
    """The winner's loss over the control's, less one, at most."""
    part: str = "loss"


TARGETS = (
    Target(0, "no-scan", -0.04),
    Target(0, "attention", 0.0),
    Target(0, "dit", -0.05),
    *(Target(0, control, 0.0, part) for control in ("no-scan", "dit") for part in BANDS),
    Target(1, "no-scan", -0.05),
    Target(1, "attention", -0.01),
)


@dataclass(frozen=True)
class Mixers:
    """The study's results."""

    study: Study
    settings: dict[str, Setting]
    reach: dict[str, Any] | None = None
    """What one output token sees, of `experiments.reach`."""
    scores: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """`Scored.variant` -> scores of its samples for each seed, of `experiments.mixers_scores`."""
    samples: list[tuple[str, Path]] = field(default_factory=list)
    """Pictures of samples: of which network, and the file."""
    speeds: dict[tuple[int, str], float] = field(default_factory=dict)
    """(lines, final) -> speed of training over DiT's, measured side by side by benchmarks/bench_training.py."""

    def final(self, kind: int, name: str) -> Setting | None:
        return self.settings.get(f"{self.kinds()[kind]}-{name}")

    def kinds(self) -> list[str]:
        return [final_kind(self.study, patch) for patch in self.study.grids]

    def results(self) -> list[dict[str, Any]]:
        return [result for setting in self.settings.values() for result in setting.results]


def load_mixers(scale: str, results: Path) -> Mixers | None:
    """The study of a scale, from the folder beside its other results; None where there is none."""
    if scale not in STUDIES:
        return None
    runs = {run.name: run.key for run in mixer_runs(STUDIES[scale])}
    folder = study_folder(results)
    scores: dict[str, list[dict[str, Any]]] = {}
    for scored in scored_of(STUDIES[scale], mixer_runs(STUDIES[scale])):
        found = load_json(scored.path(folder))
        if found is not None and found["settings"]["run"] == scored.run.key:
            scores.setdefault(scored.variant, []).append(found)
    return Mixers(
        STUDIES[scale],
        load_settings(folder, runs),
        load_json(folder / "reach.json"),
        scores,
        pictures_of_samples(STUDIES[scale], folder),
        load_speeds() if scale == "cpu" else {},
    )


def load_speeds() -> dict[tuple[int, str], float]:
    """As `Mixers.speeds`; empty before they are measured."""
    found = load_json(SPEEDS) or {"rows": []}
    return {(row["lines"], row["network"]): row["over_dit"] for row in found["rows"]}


def pictures_of_samples(study: Study, results: Path) -> list[tuple[str, Path]]:
    """The grids of samples that are there, of the finals on the first grid."""
    prefix = final_kind(study, next(iter(study.grids)))
    grids = sorted((results / "samples").glob(f"{prefix}-*.png"))
    found = {
        design.label: [p for p in grids if p.stem.startswith(f"{prefix}-{design.name}-seed")]
        for design in FINALS
    }
    return [(label, paths[0]) for label, paths in found.items() if paths]


def losses_of(result: dict[str, Any]) -> Losses | None:
    """The held-out losses of a training; None where it diverged."""
    if "validation" not in result:
        return None
    values = np.array(result["validation"]["values"])
    return Losses(values, times(np.arange(len(values))))


def share_by_seed(setting: Setting | None, base: Setting | None, part: str) -> list[float]:
    """For each seed that both have: loss over the base's, less one."""
    if setting is None or base is None:
        return []
    pairs = [
        (mine["validation"][part], theirs["validation"][part])
        for mine in setting.results
        for theirs in base.results
        if mine["seed"] == theirs["seed"] and "validation" in mine and "validation" in theirs
    ]
    return [mine / theirs - 1 for mine, theirs in pairs]


def percent(shares: Sequence[float]) -> str:
    """Mean of shares, and their range where there are several."""
    if not shares:
        return MISSING
    mean = f"{sum(shares) / len(shares):+.1%}"
    return mean if len(shares) == 1 else f"{mean} ({min(shares):+.1%} to {max(shares):+.1%})"


def paired(setting: Setting, base: Setting | None) -> str:
    """One seed's loss against the base's, image by image, with the standard error over the images."""
    mine = losses_of(setting.results[0])
    theirs = losses_of(base.results[0]) if base else None
    if mine is None or theirs is None:
        return MISSING
    if setting is base:
        return ""
    mean, error = paired_difference(mine, theirs)
    return f"{mean:+.1%} ± {error:.1%}"


def screening_table(mixers: Mixers, group: str) -> str:
    """A row for each design: parameters, cost at XL/2, losses and the difference from the design in bold."""
    base = mixers.settings.get(f"screening-{BOLD}")
    designs = SCREENING[group] if group == "path" else (DESIGNS[BOLD], *SCREENING[group])
    rows = [screening_row(mixers, design, base) for design in designs]
    cost = ("kB / token and layer, XL/2", "MFLOP", "least time of a layer, DiT's = 1")
    return table((GROUPS[group], "parameters", *cost, *COLUMNS, "against the one in bold"), rows)


def screening_row(mixers: Mixers, design: Design, base: Setting | None) -> list[str]:
    found, dit = cost_at_xl(design.name), cost_at_xl("dit")
    cost = [f"{found.bytes / 1e3:.0f}", f"{found.operations / 1e6:.1f}"]
    cost.append(f"{found.nanoseconds / dit.nanoseconds:.2f}")
    setting = mixers.settings.get(f"screening-{design.name}")
    if setting is None:
        return [design.label, MISSING, *cost, *[MISSING] * (len(PARTS) + 1)]
    losses = [show_loss(setting, part) for part in PARTS]
    parameters = setting.one("parameters")
    return [
        design.label,
        f"{parameters:,}" if parameters else MISSING,
        *cost,
        *losses,
        paired(setting, base),
    ]


def show_loss(setting: Setting, part: str) -> str:
    values = setting.get(f"validation.{part}")
    return f"{values.mean:.4f}" if values else "diverged"


def final_table(mixers: Mixers, kind: int) -> str:
    """The winner and its controls on one grid: losses over the seeds, and the winner's against each."""
    rows = []
    winner = mixers.final(kind, "winner")
    lines = int(mixers.kinds()[kind].partition("-")[0])
    for design in FINALS:
        setting = mixers.final(kind, design.name)
        if setting is None:
            rows.append([design.label, "0", *[MISSING] * (len(PARTS) + 4)])
            continue
        speed = mixers.speeds.get((lines, design.name))
        rows.append(
            [
                design.label,
                str(len(setting.results)),
                f"{setting.one('images'):,}",
                f"{setting.one('parameters') or 0:,}",
                *(show(setting.get(f"validation.{part}"), 4) for part in PARTS),
                MISSING if speed is None else f"{speed:.2f}",
                "" if setting is winner else percent(share_by_seed(winner, setting, "loss")),
            ]
        )
    head = (f"{lines} x {lines} tokens", "seeds", "images", "parameters", *COLUMNS)
    return table((*head, "training speed, DiT's = 1", "the winner against it"), rows)


def longer_rows(mixers: Mixers) -> list[tuple[Design, Setting]]:
    """The trainings on more images that are there."""
    found = [(design, mixers.settings.get(f"longer-{design.name}")) for design in FINALS]
    return [(design, setting) for design, setting in found if setting is not None]


def longer_table(mixers: Mixers) -> str:
    """Losses and scores of the trainings on more images; "" where there is none."""
    rows = []
    for design, setting in longer_rows(mixers):
        scored = mixers.scores.get(f"longer-{design.name}", [])
        scores = [f"{scored[0][key]:.{digits}f}" if scored else MISSING for key, digits in SCORES]
        losses = [show_loss(setting, part) for part in PARTS]
        rows.append([design.label, f"{setting.one('images'):,}", *losses, *scores])
    head = (f"{LONGER} times the images, one seed", "images", *COLUMNS, "KID", "FID")
    return table(head, rows) if rows else ""


def longer_in_words(mixers: Mixers) -> list[str]:
    """The winner against DiT where both were trained on more images."""
    found = {design.name: setting for design, setting in longer_rows(mixers)}
    if not set(LONGER_NAMES) <= set(found):
        return []
    loss = percent(share_by_seed(found["winner"], found["dit"], "loss"))
    seed = mixers.study.seeds[0]
    before, after = (
        f"{shares[seed]:.2f}" if seed in shares else MISSING
        for shares in (kid_shares(kind, mixers.scores) for kind in (mixers.kinds()[0], "longer"))
    )
    kid = f"{after} of its KID (of the same seed with the fewer images: {before})"
    return [f"on {LONGER} times the images, one seed, the winner against DiT: {loss} of the loss, {kid}"]


def verdicts(mixers: Mixers) -> list[str]:
    """Each target, missed ones first, then those that are not measured, then those met."""
    judged = [
        *(judge(mixers, target) for target in TARGETS),
        judge_kid(mixers.kinds()[0], mixers.scores, len(mixers.study.seeds)),
    ]
    found = sorted(judged, key=lambda pair: pair[0])
    return [text for _, text in found]


def judge(mixers: Mixers, target: Target) -> tuple[int, str]:
    """A target's rank (0: missed, 1: not measured, 2: met) and the sentence."""
    labels = {design.name: design.label for design in FINALS}
    grid = mixers.kinds()[target.kind].replace("-lines", "")
    where = "" if target.part == "loss" else f" at {dict(zip(PARTS, COLUMNS, strict=True))[target.part]}"
    what = f"{grid} x {grid} tokens{where}, the winner against {labels[target.control]}"
    wanted = f"meant: at most {target.share:+.0%}"
    shares = share_by_seed(
        mixers.final(target.kind, "winner"), mixers.final(target.kind, target.control), target.part
    )
    if len(shares) < len(mixers.study.seeds):
        return 1, f"{what}: {MISSING} ({wanted})"
    met = sum(shares) / len(shares) <= target.share
    return (
        (2, f"met: {what}: {percent(shares)}")
        if met
        else (0, f"**missed**: {what}: {percent(shares)} ({wanted})")
    )


def by_noise(setting: Setting, base: Setting) -> list[float]:
    """Loss over the base's, less one, in `BINS` equal parts of t; all seeds together."""
    sums = np.zeros((2, BINS))
    for row, each in enumerate((setting, base)):
        for losses in filter(None, map(losses_of, each.results)):
            sums[row] += np.bincount((losses.times * BINS).astype(int), losses.values, BINS) / len(
                each.results
            )
    shares = np.divide(sums[0], sums[1], out=np.full(BINS, np.nan), where=sums[1] > 0)  # a part may be empty
    return (shares - 1).tolist()


def noise_curves(mixers: Mixers) -> list[tuple[str, dict[str, list[float]]]]:
    """For each grid, the curve of every final against the one whose scan is left out."""
    panels = []
    for number, kind in enumerate(mixers.kinds()):
        base = mixers.final(number, "no-scan")
        found = {design.label: mixers.final(number, design.name) for design in FINALS}
        curves = {label: by_noise(s, base) for label, s in found.items() if s and base and s is not base}
        if curves:
            panels.append((f"{kind.partition('-')[0]} lines", curves))
    return panels


def seen(mixers: Mixers) -> list[str]:
    """Within how many tokens half of what decides an output token lies, for each network."""
    if mixers.reach is None:
        return []
    found: dict[str, list[str]] = {}
    for row in mixers.reach["rows"]:
        found.setdefault(row["network"], []).append(f"{row['median_distance']:.1f}")
    levels = " and ".join(f"{t:g}" for t in mixers.reach["settings"]["times"])
    reached = "; ".join(f"{name} {' and '.join(values)}" for name, values in found.items())
    return [f"half of the gradient of an output token lies within so many tokens, at t = {levels}: {reached}"]


def setup(mixers: Mixers) -> str:
    study, results = mixers.study, mixers.results()
    data = [result["data"] for result in results if "data" in result]
    files = sorted({kind for found in data for kind in found["files"]})
    hashes = sorted({f"{found['images_hash'][:12]}, {found['held_out_hash'][:12]}" for found in data})
    hours = sum(result["seconds"] for result in results) / 3600
    return (
        f"CIFAR-10 as {' and '.join(files) or 'image'} files of {study.size}x{study.size} pixels (hashes of the "
        f"images of training and of those held out: {' and '.join(hashes) or MISSING}), flow, width {study.width}, "
        f"depth {study.depth}, batches of {study.batch_size}, AdamW at {study.train['learning_rate']:g} with a "
        "cosine. Every network has the parameters of GSPN-DiT as it is with an MLP ratio of 4, by the width of its "
        f"MLP. {len(results)} of {len(mixer_runs(study))} trainings are in ({hours:.1f} hours of one core). The loss "
        f"is the squared error of the velocity of {study.validation_images:,} held-out images by the averaged "
        "weights, the same images, times and noise for all: whole, and by thirds of t, from little noise to much. "
        "Screening: one seed, so that less than 1 % says little, whatever the standard error over the images. Cost: "
        "bytes (bfloat16) and operations of the forward pass by formula, each network as large as DiT-XL/2 at 256 "
        "tokens; the least time is the sum over a layer's stages of what bytes or operations take at "
        f"{BANDWIDTH / 1e12:.1f} TB/s and {RATE / 1e12:.0f} TFLOPS, of an H100"
    )


def mixers_section(mixers: Mixers, folder: Path) -> Section:
    """The section, and its picture in `folder`."""
    pictures = []
    panels = noise_curves(mixers)
    if panels:
        charts.draw_noise(panels, "the scan left out", folder / "mixers.png")
        pictures.append("mixers.png")
    if mixers.reach:
        charts.draw_reach(mixers.reach, folder / "mixers-reach.png")
        pictures.append("mixers-reach.png")
    if mixers.samples:
        charts.draw_samples(mixers.samples, folder / "mixers-samples.png")
        pictures.append("mixers-samples.png")
    found = percent(share_by_seed(mixers.final(0, "winner"), mixers.final(0, "no-scan"), "loss"))
    tables = [final_table(mixers, kind) for kind in range(len(mixers.study.grids))]
    tables += filter(None, [score_table(mixers.kinds()[0], mixers.scores, mixers.study.samples)])
    tables += filter(None, [longer_table(mixers)])
    tables += [screening_table(mixers, group) for group in SCREENING]
    tables += filter(None, [ingredient_table(mixers.scores, mixers.study.samples)])
    return Section(
        "mixers",
        "What the scan is worth",
        "On photographs, by how much does the loss fall with the scan: at which noise, on which grid, in which "
        "network?",
        setup(mixers) + ".",
        [
            f"the scan, against the same network without it: {found} of the loss",
            *verdicts(mixers),
            *longer_in_words(mixers),
            *seen(mixers),
        ],
        tables,
        pictures,
    )
