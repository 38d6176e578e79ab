"""Our measured scores beside the published ones: rows in JSON and CSV, and a Markdown table of both."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from gspn_dit.errors import UserError
from gspn_dit.files import claimed_file, write_json
from gspn_dit.names import printable

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
    doubtful: tuple[str, ...] = ()
    """Columns whose cells the note calls doubtful."""

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
            return [published_row(row) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it comes with the repository") from error
    except (KeyError, AttributeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not as it comes with the repository ({error!r})") from error


def published_row(row: dict[str, str]) -> Row:
    scale = row["cfg_scale"]
    guidance = f"{row['guidance']} {scale}" if row["guidance"] != "none" else "none"
    source = f"{row['source']} ({row['verified']})"
    cells = {**{column: row[column] for column in COLUMNS}, "guidance": guidance, "source": source}
    return Row(cells, False, row["note"], tuple(row["doubtful"].split()))


def measured_rows(results: Path) -> list[Row]:
    """The rows of leaderboard.json; none where there is no such file."""
    return [Row(measured_cells(entry), True, "; ".join(entry["reasons"])) for entry in read_entries(results)]


def measured_cells(entry: dict) -> dict[str, str]:
    settings = entry["settings"]
    images, parameters = settings["training_images"], settings["parameters"]
    digits = {"fid": 2, "sfid": 2, "is": 2, "precision": 3, "recall": 3}
    return {
        "model": printable(settings["model"] or Path(settings["path"]).name),
        "params_m": "" if parameters is None else f"{parameters / 1e6:.3g}",
        "budget": "" if settings["training_step"] is None else f"{settings['training_step']:,} steps",
        "images_seen_m": "" if images is None else f"{images / 1e6:.3g}",
        "guidance": guidance(settings),
        **{key: "" if entry[key] is None else f"{entry[key]:.{digits[key]}f}" for key in SCORES},
        "source": f"measured {settings['date']}"
        + (f", {settings['checkpoint'][:8]}" if settings["checkpoint"] else ""),
    }


def guidance(settings: dict) -> str:
    """What guided the samples, empty where nobody says."""
    scale, internal = settings["cfg_scale"], settings.get("internal_guidance")
    interval = f" for t in {settings['cfg_interval']}" if settings.get("cfg_interval") else ""
    parts = [] if scale in (None, 1) else [f"cfg {scale:g}{interval}"]
    parts += [] if internal in (None, 1) else [f"internal {internal:g}"]
    if settings.get("guide"):
        parts.append("guide" if settings["guide_scale"] is None else f"guide {settings['guide_scale']:g}")
    return ", ".join(parts) or ("" if scale is None else "none")


def read_entries(results: Path) -> list[dict]:
    path = results / "leaderboard.json"
    if not path.exists():
        return []
    mend = "mend it or take it from the repository's history"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {mend}") from error
    try:
        for entry in entries:
            measured_cells(entry), identity(entry), "; ".join(entry["reasons"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a list of scores as --record writes them ({error!r}): {mend}"
        ) from error
    return entries


def record(results: Path, scores: dict) -> None:
    """Add measured scores; those of the same checkpoint under the same settings are replaced."""
    path = results / "leaderboard.json"
    with claimed_file(path, wait=True):  # another's entry between reading and writing would be lost
        entries = [entry for entry in read_entries(results) if identity(entry) != identity(scores)]
        write_json(path, [*entries, scores])


def identity(entry: dict) -> str:
    """What makes two measurements one: all settings but time, versions, and places whose contents have a hash."""
    settings = entry["settings"]
    passing = {"date", "seconds", "versions", "processes", "preset"}
    passing |= {"path"} if settings["checkpoint"] else set()
    passing |= {"reference"} if settings["reference_hash"] else set()
    known = {key for key, value in settings.items() if value is not None}  # older entries lack newer keys
    return json.dumps({key: settings[key] for key in known - passing}, sort_keys=True)


def fid_or_infinity(row: Row) -> float:
    fid = row.number("fid")
    return float("inf") if fid is None else fid


def markdown(rows: list[Row]) -> str:
    """One table, the best FID first, measured rows in bold, notes as footnotes of rows and of doubtful cells."""
    notes: list[str] = []
    lines = [
        "| " + " | ".join(HEADINGS[column] for column in COLUMNS) + " |",
        "|" + "|".join("---" for _ in COLUMNS) + "|",
    ]
    for row in sorted(rows, key=fid_or_infinity):
        cells = dict(row.cells)
        if row.measured:
            cells["model"] = f"**{cells['model']}**"
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            for column in ("model", *row.doubtful):
                cells[column] += f"[^{notes.index(row.note) + 1}]"
        lines.append("| " + " | ".join(cells[column].replace("|", r"\|") for column in COLUMNS) + " |")
    return "\n".join([*lines, "", *(f"[^{i}]: {note}" for i, note in enumerate(notes, start=1))])
