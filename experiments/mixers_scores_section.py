"""The report on what the study's networks draw: scores of the finals, and of what the recipe adds."""

from collections.abc import Sequence
from typing import Any

from experiments.mixers_plan import FINALS, INGREDIENTS
from experiments.sections import MISSING, table

KID_SHARE = 0.7
"""The winner's KID over DiT's, at most."""

Scores = dict[str, list[dict[str, Any]]]
"""`Scored.variant` -> what `experiments.mixers_scores` has of each seed."""


def score_table(kind: str, scores: Scores, samples: int) -> str:
    """KID and FID of the finals' samples on one grid, over the seeds; "" before any is measured."""
    rows = [(design.label, scores.get(f"{kind}-{design.name}", [])) for design in FINALS]
    return scored_rows(f"{samples:,} unguided samples against the held-out images", rows)


def ingredient_table(scores: Scores, samples: int) -> str:
    """The same of what the recipe adds, each alone."""
    rows = []
    for design in INGREDIENTS:
        rows.append((design.label, scores.get(f"recipe-{design.name}", [])))
        if design.internal_guidance != 1:
            label = f"the same, internal guidance {design.internal_guidance:g}"
            rows.append((label, scores.get(f"recipe-{design.name}-guided", [])))
    return scored_rows(f"the recipe: {samples:,} samples against the held-out images", rows)


def scored_rows(head: str, rows: Sequence[tuple[str, list[dict[str, Any]]]]) -> str:
    """A table of rows with their scores by seed, and what real images have; "" where there is none."""
    found = [(label, scores) for label, scores in rows if scores]
    if not found:
        return ""
    shown = [
        [label, str(len(scores)), *(spread([each[key] for each in scores]) for key in ("kid", "fid"))]
        for label, scores in found
    ]
    real = found[0][1][0]
    halves = [f"{real['kid_real_halves']:.4f}", f"{real['fid_real_halves']:.1f}"]
    return table((head, "seeds", "KID", "FID"), [*shown, ["half of the held-out images", "", *halves]])


def kid_shares(kind: str, scores: Scores) -> dict[int, float]:
    """The winner's KID over DiT's, by seed."""
    winner, dit = (
        {each["settings"]["seed"]: each["kid"] for each in scores.get(f"{kind}-{name}", [])}
        for name in ("winner", "dit")
    )
    return {seed: winner[seed] / dit[seed] for seed in winner if seed in dit}


def judge_kid(kind: str, scores: Scores, seeds: int) -> tuple[int, str]:
    """A verdict's rank (0: missed, 1: not measured, 2: met) and the sentence: the winner's KID over DiT's by seed."""
    ratios = list(kid_shares(kind, scores).values())
    what = f"KID of samples, the winner's over DiT's: {spread(ratios) if ratios else MISSING}"
    wanted = f"meant: at most {KID_SHARE}"
    if len(ratios) < seeds:
        return 1, f"{what}, {len(ratios)} of {seeds} seeds ({wanted})"
    met = sum(ratios) / len(ratios) <= KID_SHARE
    return (2, f"met: {what}") if met else (0, f"**missed**: {what} ({wanted})")


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    mean = f"{sum(values) / len(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4g} to {max(values):.4g})"
