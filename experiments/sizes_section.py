"""The report's section on sizes: what networks draw at sizes that they were not trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import charts
from experiments.mixers_plan import LONGER, STUDIES, Design
from experiments.sections import MISSING, Section, table
from experiments.sizes import NAME, NETWORKS, SHOWN, Plan, sizes_folder, sizes_plan
from experiments.summary import load_json

VIEWS = {"whole": "KID x 1000, whole pictures", "middle": "the same, their middle"}


@dataclass(frozen=True)
class Sizes:
    """The study's results."""

    plan: Plan
    records: dict[tuple[str, tuple[int, int]], dict[str, Any]]
    """By the network's name and the size."""
    pictures: dict[tuple[int, int], list[tuple[str, Path]]]
    """Of each size: the networks' labels and grids of samples."""

    def kid(self, design: Design, size: tuple[int, int], view: str) -> float | None:
        record = self.records.get((design.name, size))
        scores = (record or {}).get("scores") or {}
        return scores.get(view, scores.get("whole"))["kid"] if scores else None


def load_sizes(scale: str, results: Path) -> Sizes | None:
    """The study of a scale, from the folder beside its other results; None where nothing of it was measured."""
    if scale not in STUDIES:
        return None
    plan, folder = sizes_plan(scale), sizes_folder(results)
    records, pictures = {}, {}
    for case in plan.cases:
        record = load_json(case.path(folder))
        if record is None or record["settings"] != plan.settings(case):
            continue
        records[case.design.name, case.size] = record
        if case.picture(folder).exists():
            pictures.setdefault(case.size, []).append((case.design.label, case.picture(folder)))
    return Sizes(plan, records, pictures) if records else None


def shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def kid_rows(sizes: Sizes, view: str) -> list[list[str]]:
    """A row for each network: 1000 KID at every size."""
    rows = []
    for design in NETWORKS:
        found = [sizes.kid(design, size, view) for size in sizes.plan.sizes]
        rows.append([design.label, *(MISSING if kid is None else f"{1000 * kid:.1f}" for kid in found)])
    return rows


def answers(sizes: Sizes) -> list[str]:
    """By how much each network's KID of whole pictures rises from the first size to the last."""
    first, last = sizes.plan.sizes[0], sizes.plan.sizes[-1]
    parts = []
    for design in NETWORKS:
        before, after = (sizes.kid(design, size, "whole") for size in (first, last))
        measured = before is not None and after is not None
        parts.append(
            f"{design.label} {1000 * before:.0f} -> {1000 * after:.0f}"
            if measured
            else f"{design.label} {MISSING}"
        )
    return [f"KID x 1000 of whole pictures from {shown(first)} to {shown(last)} pixels: {', '.join(parts)}"]


def halves_in_words(sizes: Sizes) -> str:
    scores = next((record["scores"] for record in sizes.records.values() if record["scores"]), None)
    if scores is None:
        return ""
    return f" Two halves of the held-out images are {1000 * scores['whole']['kid_real_halves']:.1f} apart."


def sizes_section(sizes: Sizes, folder: Path) -> Section:
    """The section, and a picture for each size in `folder`."""
    plan, pictures = sizes.plan, []
    for size, grids in sizes.pictures.items():
        name = f"{NAME}-{shown(size)}.png"
        charts.draw_blocks(grids, folder / name)
        pictures.append(name)
    one = next(iter(sizes.records.values()))
    trained = shown(plan.sizes[0])
    return Section(
        NAME,
        "Other sizes than the one trained on",
        f"What do networks trained on pictures of {trained} pixels draw at other sizes: GSPN-DiT, which has no "
        "positions, and DiT with interpolated ones?",
        f"The longer trainings of the study of the mixer, {LONGER * next(iter(plan.study.grids.values())):,} images in "
        f"patches of {next(iter(plan.study.grids))}; neither has seen another size. DiT's sin-cos positions are "
        "taken to a size by the usual interpolation: place i of n "
        f"along an axis stands at i N / n, N the places trained on; `sample.py --size` refuses such networks. "
        f"{plan.samples} unguided samples of each network and size, {one['settings']['sampler']} with "
        f"{one['settings']['steps']} steps, the same labels and noise for all networks. KID in EfficientNet's features "
        f"against the held-out images of {trained}: of whole pictures, shrunk to {trained} by antialiased bicubic (a "
        "wide one is squeezed), and of the middle of each, cut out at that size: the first sees whether a picture is "
        "one scene, the second whether a part of it looks like a photograph of the size trained on. Of samples this "
        f"few KID is noisy; one seed.{halves_in_words(sizes)} ({one['device']}, torch {one['torch']}, {one['date']}) "
        f"In the pictures a column is a class, with the first {SHOWN} samples of it.",
        answers(sizes),
        [table((label, *map(shown, plan.sizes)), kid_rows(sizes, view)) for view, label in VIEWS.items()],
        pictures,
    )
