"""The leaderboard as a picture: FID against parameters and against images seen."""

from pathlib import Path
from typing import Any

from gspn_dit.evaluation.leaderboard import HEADINGS, Row
from gspn_dit.files import replacing

TICKS = {
    "params_m": (30, 60, 130, 250, 450, 700),
    "images_seen_m": (100, 200, 400, 800, 1600),
    "fid": (2, 5, 10, 20, 40, 80),
}
GAP, LINE = 8, 10
"""Points of 1/72 inch from a mark to its name, and by how much a name is moved until it is free."""
PLACES = [(move, side) for move in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6) for side in (1, -1)]
"""Lines up and sides, in the order in which they are tried."""


def draw(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows without guidance; measured and published ones marked apart.

    Measured rows that may not stand beside published ones, and doubtful published ones, are hollow.
    """
    # Speed: matplotlib takes a second, and only the leaderboard draws.
    import matplotlib

    matplotlib.use("Agg")
    # Speed: as above, once the backend is chosen.
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 8))
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.07, top=0.93, wspace=0.1)
    figure.suptitle(
        "FID without guidance; stars: measured here; circles: as published; hollow: see the table's footnotes"
    )
    unguided = [row for row in rows if row.cells["guidance"] == "none" and row.number("fid")]
    for axis, column in zip(axes, ("params_m", "images_seen_m"), strict=True):
        shown = [row for row in unguided if row.number(column)]
        axis.set(xscale="log", yscale="log", autoscale_on=False)
        set_ticks(axis.xaxis, column, shown, 0.7, 1.6)
        set_ticks(axis.yaxis, "fid", unguided, 0.8, 1.25)
        axis.grid(alpha=0.3)
        for row in shown:
            plot(axis, row, column)
        name_marks(axis, shown, column)
    axes[1].set_ylabel("")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)
    pyplot.close(figure)


def set_ticks(axis: Any, column: str, rows: list[Row], below: float, above: float) -> None:
    """Plain numbers along an axis from `below` the least value to `above` the greatest, as factors."""
    values = [row.number(column) for row in rows] or TICKS[column]
    low, high = below * min(values), above * max(values)
    axis.set_ticks([tick for tick in TICKS[column] if low <= tick <= high])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter("{x:g}")
    axis.set_view_interval(low, high, ignore=True)
    axis.set_label_text(HEADINGS[column])


def plot(axis: Any, row: Row, column: str) -> None:
    """Mark a row's place."""
    colour, marker, size = ("tab:red", "*", 10) if row.measured else ("tab:blue", "o", 6)
    fill = "none" if row.note else colour
    axis.plot(row.number(column), row.number("fid"), marker, color=colour, ms=size, mfc=fill)


def name_marks(axis: Any, rows: list[Row], column: str) -> list[Any]:
    """Write each row's model beside its mark, on no other name and no mark where there is such a place.

    Returns the boxes of the names, in pixels.
    """
    marks = axis.transData.transform([(row.number(column), row.number("fid")) for row in rows])
    taken: list[Any] = []
    for row in sorted(rows, key=lambda row: row.number("fid")):
        for move, side in PLACES:
            name, box = write_name(axis, row, column, move, side)
            if is_free(box, taken, marks, axis.bbox):
                break
            name.remove()
        else:
            _, box = write_name(axis, row, column, *PLACES[0])
        taken.append(box)
    return taken


def write_name(axis: Any, row: Row, column: str, move: int, side: int) -> tuple[Any, Any]:
    """Write a row's model right (1) or left (-1) of its mark, `move` lines above it and then joined to it.

    Returns the annotation, and the box of its text in pixels with a little room around it.
    """
    # Speed: as above.
    from matplotlib.text import Text

    name = axis.annotate(
        row.cells["model"],
        (row.number(column), row.number("fid")),
        xytext=(side * GAP, move * LINE),
        textcoords="offset points",
        fontsize=8,
        ha="left" if side > 0 else "right",
        va="center",
        parse_math=False,  # a $ in a name is one
        arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.6} if move else None,
    )
    name.get_window_extent()  # puts the text where it will be drawn; its own box holds the line too
    return name, Text.get_window_extent(name).padded(2)


def is_free(box: Any, taken: list[Any], marks: Any, frame: Any) -> bool:
    """Whether a name's box lies within the frame, on no other box and on no mark."""
    inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
    return inside and not box.count_contains(marks) and not any(box.overlaps(other) for other in taken)
