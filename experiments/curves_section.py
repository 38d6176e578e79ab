"""The report's section on curves: where a network has to carry something across the picture, and which ones do."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import curves_charts
from experiments.curves_nets import count_parameters, reach
from experiments.curves_plan import (
    ATTENTION,
    CONVOLUTION,
    DESIGNS,
    GSPN,
    LOCAL,
    MIXERS,
    NAME,
    NO_SCAN,
    SIGMOID,
    STUDIES,
    Design,
    Grid,
    Study,
    curves_folder,
    curves_runs,
    network_of,
)
from experiments.sections import MISSING, Section, show, table
from experiments.summary import Setting, compare, load_json, load_settings, sentence

AIM, CONTROL_AIM = 0.95, 0.75
"""Accuracy that the task is to show: GSPN at least the one, the same without its scan at most the other."""
SPEED = "throughput.json"
BINS = 7
"""Ranges of lengths in the charts and in the columns of the shortest and the longest."""


@dataclass(frozen=True)
class Curves:
    """The study's results."""

    study: Study
    settings: dict[str, Setting]
    speed: dict[str, Any] | None

    def of(self, design: Design, grid: Grid) -> Setting | None:
        return self.settings.get(grid.variant(design))

    def speed_of(self, design: Design, grid: Grid) -> dict[str, Any] | None:
        rows = self.speed["rows"] if self.speed else []
        return next((row for row in rows if row["variant"] == grid.variant(design)), None)


def load_curves(scale: str, results: Path) -> Curves | None:
    """The study of a scale, from the folder beside its other results; None where nothing of it was measured."""
    if scale not in STUDIES:
        return None
    folder = curves_folder(results)
    settings = load_settings(folder, {run.name: run.key for run in curves_runs(scale)})
    return Curves(STUDIES[scale], settings, load_json(folder / SPEED)) if settings else None


def ranges(grid: Grid) -> list[range]:
    """The task's lengths in parts that are as equal as can be."""
    low, high = grid.task.lengths
    edges = [low + round(part * (high + 1 - low) / BINS) for part in range(BINS + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges) if b > a]


def by_value(setting: Setting, key: str, parts: list[range]) -> list[tuple[float, float]]:
    """Accuracy in percent over the lengths or the corners, of all seeds' pictures; a point for each part."""
    points = []
    for part in parts:
        counts = [
            count
            for result in setting.results
            for value, count in result.get(key, {}).items()
            if int(value) in part
        ]
        right, pictures = (sum(count[i] for count in counts) for i in (0, 1))
        if pictures:
            points.append(((part[0] + part[-1]) / 2, 100 * right / pictures))
    return points


def sees(design: Design, study: Study, grid: Grid) -> str:
    """What a token of the last block sees."""
    pixels = reach(network_of(design, study), grid.task.size)
    return "all" if pixels is None else f"± {pixels} pixels"


def grid_table(curves: Curves, grid: Grid) -> str:
    ends = [f"L {part[0]} to {part[-1]}" for part in (ranges(grid)[0], ranges(grid)[-1])]
    head = (
        *(f"{grid.task.size}x{grid.task.size}", "seeds", "images", "blocks", "parameters", "a token sees"),
        *("accuracy, %", *ends, "training speed", "inference speed", "gradient's norm, largest / median"),
        "diverged",
    )
    return table(head, [row(curves, grid, design) for design in grid.designs])


def row(curves: Curves, grid: Grid, design: Design) -> list[str]:
    setting, network = curves.of(design, grid), network_of(design, curves.study)
    described = [
        *(f"{grid.recipe.images:,}", str(network.depth), f"{count_parameters(network, grid.task.size):,}"),
        sees(design, curves.study, grid),
    ]
    speed = curves.speed_of(design, grid)
    speeds = [
        "{images_per_second:.0f}/s, {ratio:.2f}".format(**speed[kind]) if speed else MISSING
        for kind in ("training", "inference")
    ]
    if setting is None:
        return [design.label, "0", *described, *[MISSING] * 3, *speeds, MISSING, MISSING]
    parts = ranges(grid)
    ends = [by_value(setting, "lengths", [part]) for part in (parts[0], parts[-1])]
    norms = [setting.get(f"gradient.{key}") for key in ("largest", "median")]
    return [
        design.label,
        str(len(setting.results)),
        *described,
        show(setting.get("accuracy"), 1, 100),
        *(f"{points[0][1]:.1f}" if points else MISSING for points in ends),
        *speeds,
        f"{max(norms[0].values):.1f} / {norms[1].mean:.2f}" if all(norms) else MISSING,
        f"{setting.diverged} of {len(setting.results)}",
    ]


def aim_in_words(curves: Curves, grid: Grid) -> str:
    """Whether GSPN learns the task and its control does not."""
    settings = [curves.of(design, grid) for design in (GSPN, NO_SCAN)]
    values = [setting.get("accuracy") if setting else None for setting in settings]
    size = f"{grid.task.size}x{grid.task.size}"
    if None in values:
        there = [
            f"{design.label} {show(value, 1, 100)} %"
            for design, value in zip((GSPN, NO_SCAN), values, strict=True)
            if value
        ]
        return f"{size}: {', '.join(there) or MISSING}" + (f", the other {MISSING}" if there else "")
    reached = values[0].mean >= AIM, values[1].mean <= CONTROL_AIM
    words = [
        "reached" if found else f"**not reached: {mean:.1%}**"
        for found, mean in zip(reached, (v.mean for v in values), strict=True)
    ]
    return (
        f"{size}: GSPN {show(values[0], 1, 100)} %, its scan left out {show(values[1], 1, 100)} %: the aim of at least "
        f"{AIM:.0%} is {words[0]}, that of at most {CONTROL_AIM:.0%} {words[1]}"
    )


def against(curves: Curves, grid: Grid, design: Design) -> str:
    """A network against GSPN, in words, with the range of lengths in which it is worst."""
    base, setting = curves.of(GSPN, grid), curves.of(design, grid)
    text = sentence(GSPN.label, design.label, compare(base, setting, "accuracy"), score="accuracy", digits=3)
    points = by_value(setting, "lengths", ranges(grid)) if setting else []
    if not points:
        return text
    middle, least = min(points, key=lambda point: point[1])
    return f"{text} (at its lowest, {least:.1f} %, around L = {middle:.0f})"


def stability_in_words(curves: Curves, grid: Grid) -> str:
    setting = curves.of(SIGMOID, grid)
    text = f"{grid.task.size // 2} lines: {against(curves, grid, SIGMOID)}"
    return f"{text}; {setting.diverged} of {len(setting.results)} diverged" if setting else text


def draw(curves: Curves, folder: Path) -> list[str]:
    """The charts; their names."""
    grids = [grid for grid in curves.study.grids if any(curves.of(design, grid) for design in grid.designs)]
    curves_charts.draw_examples([grid.task for grid in curves.study.grids], folder / f"{NAME}-task.png")
    pictures = [f"{NAME}-task.png"]
    corners = [range(count, count + 1) for count in range(9)] + [range(9, 100)]
    for key, label, parts in (
        ("lengths", "L, pixels", ranges),
        ("turns", "corners of the marked curve (the last point: 9 and more)", lambda grid: corners),
    ):
        panels = []
        for grid in grids:
            found = {d.label: curves.of(d, grid) for d in grid.designs if d in (*MIXERS, SIGMOID)}
            lines = {name: by_value(setting, key, parts(grid)) for name, setting in found.items() if setting}
            panels.append(
                (f"{grid.task.size}x{grid.task.size}", {name: line for name, line in lines.items() if line})
            )
        curves_charts.draw_accuracy(panels, label, folder / f"{NAME}-{key}.png")
        pictures.append(f"{NAME}-{key}.png")
    first = curves.study.grids[0]
    points = [
        (design.label, speed["training"]["images_per_second"], [100 * v for v in accuracy.values])
        for design in (GSPN, *LOCAL)
        if (setting := curves.of(design, first))
        and (accuracy := setting.get("accuracy"))
        and (speed := curves.speed_of(design, first))
    ]
    if points:
        curves_charts.draw_trade(points, folder / f"{NAME}-speed.png")
        pictures.append(f"{NAME}-speed.png")
    return pictures


def task_in_words(study: Study) -> str:
    parts = [
        f"{grid.task.size}x{grid.task.size} pixels, L from {grid.task.lengths[0]} to {grid.task.lengths[1]}, up to "
        f"{grid.task.distractors} distractors, a chance of {grid.task.turn:g} to turn at a pixel, "
        f"{grid.task.layouts:,} layouts to train on and {grid.task.held_out:,} others to score with both labels"
        for grid in study.grids
    ]
    return (
        f"Pictures made by code ({'; '.join(parts)}): thin curves that keep a pixel from one another, "
        "two of them of the same length L, the others shorter. Two pixels are "
        "marked: the ends of one of the two, or an end of each that is as far away along both axes (exchanged or not) "
        "and as far from the border within a pixel; either label is made of every layout. So the label follows from "
        "neither the curves nor the marks' distance. Layouts are trained on under the symmetries of the square"
    )


def curves_section(curves: Curves, folder: Path) -> Section:
    """The section, and its charts in `folder`."""
    study = curves.study
    first, recipe = study.grids[0], study.grids[0].recipe
    results = [result for setting in curves.settings.values() for result in setting.results]
    planned = sum(len(grid.designs) * len(grid.seeds) for grid in study.grids)
    hours = sum(result["seconds"] for result in results) / 3600
    return Section(
        NAME,
        "Where propagation is needed",
        "Are two marked pixels the ends of one curve? Which networks learn to answer it, at equal parameters, and over "
        "how long a curve?",
        f"{task_in_words(study)}. Networks: 4x4 convolution to patches of 2, {study.depth} blocks of width "
        f"{study.width} (norm, mixer, norm, MLP; the mixer is the ImageNet backbone's, with a depthwise 3x3 and "
        "without its response norm), read out as the mean of all tokens and that of the two at the marks; the MLPs' "
        f"width makes parameters equal. AdamW at {recipe.learning_rate:g} with a cosine, batches of "
        f"{recipe.batch_size}, the same for all; beside the picture's label every token of a curve is to tell how many "
        "marks are on its curve: without that nothing was learned in short trials. "
        f"{len(results)} of {planned} trainings are in ({hours:.1f} hours of one core). Speeds "
        "are medians of rounds in which all take turns, on one thread, with the ratio to GSPN's; "
        f"accuracy over L and over corners is that of all seeds' pictures. "
        f"{len(DESIGNS)} networks; two differ in accuracy by the rule at the head of this report.",
        [
            *(aim_in_words(curves, grid) for grid in study.grids),
            *(against(curves, first, design) for design in (ATTENTION, CONVOLUTION)),
            *(against(curves, first, design) for design in LOCAL),
            *(stability_in_words(curves, grid) for grid in study.grids),
        ],
        [grid_table(curves, grid) for grid in study.grids],
        draw(curves, folder),
        headlines=len(study.grids),
    )
