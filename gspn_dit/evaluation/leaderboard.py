"""Our measured scores beside the published ones: rows in JSON and CSV, a Markdown table, a chart."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

from gspn_dit.errors import UserError
from gspn_dit.files import replacing

SCORES = ("fid", "sfid", "is", "precision", "recall")
COLUMNS = ("model", "params_m", "budget", "images_seen_m", "guidance", *SCORES, "source")
HEADINGS = {
    "model": "model",
    "params_m": "parameters, M",
    "budget": "budget",
    "images_seen_m": "images seen, M",
    "guidance": "guidance",
    "fid": "FID ↓",
    "sfid": "sFID ↓",
    "is": "IS ↑",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "source": "source",
}


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard: cells by column, empty where nothing is known."""

    cells: dict[str, str]
    measured: bool
    note: str
    """What is doubtful, or why a measured row may not stand beside the published ones."""

    def number(self, column: str) -> float | None:
        """A cell as a number; None where it is empty or no number."""
        try:
            return float(self.cells[column])
        except ValueError:
            return None


def published_rows(results: Path) -> list[Row]:
    """The rows of published.csv."""
    path = results / "published.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it comes with the repository") from error
    return [Row(published_cells(row), False, row["note"]) for row in rows]


def published_cells(row: dict[str, str]) -> dict[str, str]:
    scale = row["cfg_scale"]
    guidance = f"{row['guidance']} {scale}" if row["guidance"] != "none" else "none"
    source = f"{row['source']} ({row['verified']})"
    return {**{column: row.get(column, "") for column in COLUMNS}, "guidance": guidance, "source": source}


def measured_rows(results: Path) -> list[Row]:
    """The rows of leaderboard.json; none where there is no such file."""
    return [Row(measured_cells(entry), True, "; ".join(entry["reasons"])) for entry in read_entries(results)]


def measured_cells(entry: dict) -> dict[str, str]:
    settings = entry["settings"]
    images, parameters, scale = (settings[key] for key in ("training_images", "parameters", "cfg_scale"))
    digits = {"fid": 2, "sfid": 2, "is": 2, "precision": 3, "recall": 3}
    return {
        "model": settings["model"] or Path(settings["path"]).name,
        "params_m": "" if parameters is None else f"{parameters / 1e6:.3g}",
        "budget": "" if settings["training_step"] is None else f"{settings['training_step']:,} steps",
        "images_seen_m": "" if images is None else f"{images / 1e6:.3g}",
        "guidance": "" if scale is None else "none" if scale == 1 else f"cfg {scale:g}",
        **{key: "" if entry[key] is None else f"{entry[key]:.{digits[key]}f}" for key in SCORES},
        "source": f"measured {settings['date']}"
        + (f", {settings['checkpoint'][:8]}" if settings["checkpoint"] else ""),
    }


def read_entries(results: Path) -> list[dict]:
    path = results / "leaderboard.json"
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): mend it or take it from the repository's history"
        ) from error


def record(results: Path, scores: dict) -> None:
    """Add measured scores; those of the same checkpoint under the same settings are replaced."""
    entries = [entry for entry in read_entries(results) if identity(entry) != identity(scores)]
    results.mkdir(parents=True, exist_ok=True)
    with replacing(results / "leaderboard.json") as file:
        file.write((json.dumps([*entries, scores], indent=1) + "\n").encode())


def identity(entry: dict) -> str:
    """What makes two measurements one: all settings but place, time and versions."""
    passing = ("path", "date", "seconds", "versions")
    kept = {key: value for key, value in entry["settings"].items() if key not in passing}
    return json.dumps(kept, sort_keys=True)


def markdown(rows: list[Row]) -> str:
    """One table, the best FID first, measured rows in bold, notes as footnotes."""
    notes: list[str] = []
    lines = [
        "| " + " | ".join(HEADINGS[column] for column in COLUMNS) + " |",
        "|" + "|".join("---" for _ in COLUMNS) + "|",
    ]
    for row in sorted(
        rows, key=lambda row: row.number("fid") if row.number("fid") is not None else float("inf")
    ):
        cells = dict(row.cells)
        if row.measured:
            cells["model"] = f"**{cells['model']}**"
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            cells["model"] += f"[^{notes.index(row.note) + 1}]"
        lines.append("| " + " | ".join(cells[column].replace("|", r"\|") for column in COLUMNS) + " |")
    return "\n".join([*lines, "", *(f"[^{i}]: {note}" for i, note in enumerate(notes, start=1))])


def draw(rows: list[Row], path: Path) -> None:
    """FID against parameters and against images seen, without guidance; measured and published marked apart.

    Measured rows that may not stand beside published ones, and doubtful published ones, are hollow.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True)
    ticks = {"params_m": (30, 60, 130, 250, 450, 700), "images_seen_m": (100, 200, 400, 800, 1600)}
    for axis, (column, marks) in zip(axes, ticks.items(), strict=True):
        named: list[tuple[float, float]] = []
        for row in sorted(rows, key=lambda row: row.number("fid") or 0):
            x, y = row.number(column), row.number("fid")
            if x is None or y is None or row.cells["guidance"] != "none":
                continue
            colour = "tab:red" if row.measured else "tab:blue"
            axis.plot(x, y, "*" if row.measured else "o", color=colour, mfc="none" if row.note else colour)
            # Rising labels of one column, each at least a line of text above the one below it.
            below = [place for at, place in named if abs(math.log(at / x)) < 0.3]
            place = max([y, *(1.085 * place for place in below)])
            named.append((x, place))
            axis.annotate(
                row.cells["model"], (x, place), xytext=(6, -2), textcoords="offset points", fontsize=7
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(marks, [str(mark) for mark in marks])
        axis.set_xticks([], minor=True)
        axis.set_xlim(right=axis.get_xlim()[1] * 2.2)
        axis.set_yticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        axis.set_yticks([], minor=True)
        axis.set_xlabel(HEADINGS[column])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("FID, no guidance")
    figure.suptitle("stars: measured here; circles: as published; hollow: see the table's footnotes")
    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
