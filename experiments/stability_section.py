"""The section of the report on the Stability-Context Condition: see `propagation`."""

import math
import statistics
from pathlib import Path
from typing import Any

from experiments import charts
from experiments.plan import BASE
from experiments.sections import LABELS, MISSING, Data, Section, score_table, table
from experiments.summary import Values
from experiments.training_sections import runs_setup

TITLE = "Stability-Context Condition"
QUESTION = (
    "Do weights whose rows sum to one keep states and gradients bounded over many lines, does leaving the "
    "division out break "
    "training, and how far does a pixel reach?"
)
BOUND = 1 + 1e-9
"""A norm of 1 in float64, rounding included."""


def stability_section(data: Data, folder: Path) -> Section:
    charts.draw_scores(data.labelled("stability"), folder / "stability-training.png")
    record = data.propagation
    tables, pictures, answers = [], [], []
    setup = f"Without training: {MISSING}"
    if record:
        charts.draw_propagation(record, folder / "stability.png")
        tables, pictures, answers = [norm_table(record)], ["stability.png"], norm_answers(record)
        s = record["settings"]
        setup = (
            f"Without training: {max(s['lines'])} lines of {s['positions']} positions, {record['dtype']}, random "
            f"logits of the standard deviation given, {len(s['seeds'])} seeds: means over them ± half the range "
            "where they differ in the three digits shown (weights of logits 0 are the same for every seed); h is "
            "the largest |h| for inputs in [-1, 1] and lam = 1, the gradient's 1-norm starts at 1. The transposed "
            "product has the 1-norm of the product as its max-norm, and its max-norm as its 1-norm"
        )
    training = training_answer(data)
    return Section(
        "stability",
        TITLE,
        QUESTION,
        f"{setup}. With training: {runs_setup(data, 'stability')}; those of 16 lines have patches of 2 and see "
        "half the images; a training diverges when its loss is not finite or ends above its start.",
        [answers[0] + "; " + training, *answers[1:]] if answers else [training],
        [*tables, score_table(data, "stability", base=None)],
        [*pictures, "stability-training.png"],
    )


def rows_at(record: dict[str, Any], lines: int, **case: Any) -> list[dict[str, Any]]:
    return [
        row for row in record["rows"] if row["lines"] == lines and all(row[k] == v for k, v in case.items())
    ]


def cases_of(record: dict[str, Any]) -> list[tuple[str, float, float]]:
    """The cases in the order in which they were computed."""
    return list(dict.fromkeys((r["normalization"], r["logit_std"], r["row_sum"]) for r in record["rows"]))


def norm_table(record: dict[str, Any]) -> str:
    lines = record["settings"]["lines"]
    shown = [lines[0], lines[len(lines) // 2], lines[-1]]
    head = [
        "weights",
        "logits",
        "lines",
        "max-norm",
        "1-norm",
        "spectral norm",
        "largest h",
        "gradient",
        "impulse: std",
        "impulse: width at 1 %",
        "sqrt(2t/3)",
    ]
    body = []
    for normalization, std, row_sum in cases_of(record):
        label = f"row sums {row_sum:g}" if normalization == "none" else normalization
        for count in shown:
            rows = rows_at(record, count, normalization=normalization, logit_std=std, row_sum=row_sum)
            keys = ("max_norm", "one_norm", "spectral_norm", "h", "gradient", "impulse_std", "impulse_width")
            cells = [mean_and_spread([row[key] for row in rows]) for key in keys]
            body.append([label, f"{std:g}", str(count), *cells, f"{(2 * count / 3) ** 0.5:.3g}"])
    return table(head, body)


def mean_and_spread(values: list[float]) -> str:
    """The mean to three digits, and half the range over the seeds where these differ in them."""
    found = Values(tuple(values))
    differs = len({f"{value:.3g}" for value in values}) > 1
    return f"{found.mean:.3g} ± {found.half_range:.1g}" if differs else f"{found.mean:.3g}"


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def norm_answers(record: dict[str, Any]) -> list[str]:
    last = record["settings"]["lines"][-1]
    stochastic = [row for row in record["rows"] if row["normalization"] == "row_stochastic"]
    max_norm, spectral = (max(row[key] for row in stochastic) for key in ("max_norm", "spectral_norm"))
    gradient = max(row["gradient"] for row in stochastic)
    sigmoid = rows_at(record, last, normalization="sigmoid")
    held = "holds" if max(max_norm, gradient) <= BOUND else "does not hold"
    low, high = (rows_at(record, last, normalization="none", row_sum=s) for s in (0.95, 1.05))
    even = rows_at(record, last, normalization="row_stochastic", logit_std=0.0)
    wild = rows_at(record, last, normalization="row_stochastic", logit_std=4.0)
    expected = (2 * last / 3) ** 0.5
    spectral_words = (
        f"the spectral norm does exceed 1, up to {spectral:.2f}: the notes' bound on it does not hold, and need not"
        if spectral > BOUND
        else f"the spectral norm stays at or below 1 (up to {spectral:.3f})"
    )
    return [
        f"The bound {held}: over {last} lines row-stochastic products have a max-norm of at most "
        f"{max_norm:.6f} and gradients a "
        f"1-norm of at most {gradient:.6f}, where the sigmoid alone grows to "
        f"{min(r['max_norm'] for r in sigmoid):.1e} or more",
        spectral_words,
        f"Row sums of 0.95 leave {mean(low, 'max_norm'):.1e} of a signal after {last} lines, and 1.05 "
        f"makes {mean(high, 'max_norm'):.1e} of it",
        f"Reach grows as lines to the power {reach_power(record):.2f} (even weights, up to {spread_free(record)} "
        f"lines, before the borders are met): after {last} lines an impulse has a standard deviation "
        f"of {mean(even, 'impulse_std'):.1f} positions with even weights ({expected:.1f} expected) and "
        f"{mean(wild, 'impulse_std'):.1f} with logits of standard deviation 4, and is above 1 % of its peak on "
        f"{mean(even, 'impulse_width'):.0f} positions",
    ]


def spread_free(record: dict[str, Any]) -> int:
    """The most lines after which an even impulse, three standard deviations wide, is still inside a line."""
    positions = record["settings"]["positions"]
    return max(t for t in record["settings"]["lines"] if 3 * (2 * t / 3) ** 0.5 < positions / 2)


def reach_power(record: dict[str, Any]) -> float:
    """Slope of log(standard deviation of an impulse) over log(lines), even weights, by least squares."""
    points = [
        (
            math.log(t),
            math.log(mean(rows_at(record, t, normalization="row_stochastic", logit_std=0.0), "impulse_std")),
        )
        for t in record["settings"]["lines"]
        if t <= spread_free(record)
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def training_answer(data: Data) -> str:
    """Diverged runs and FID, with the division and without it, at both line lengths."""
    parts = []
    for first, second in ((BASE, "gspn-sigmoid"), ("gspn-16-lines", "gspn-16-lines-sigmoid")):
        if second not in data.settings:
            parts.append(f"{LABELS[second]}: {MISSING}")
            continue
        counts = " and ".join(
            f"{setting.diverged} of {len(setting.results)} runs of {LABELS[name]}"
            for name in (first, second)
            if (setting := data.settings.get(name))
        )
        parts.append(f"{counts} diverge, {data.against(first, second)}")
    return "in training, " + "; ".join(parts)
