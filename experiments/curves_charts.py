"""Charts of the study of curves: what the task looks like, accuracy over length, accuracy against throughput."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.charts import save
from experiments.curves_task import HELD_OUT, Task, draw_layouts, draw_pictures

EXAMPLES = 4
COLORS = np.array([[0.97, 0.97, 0.97], [0.25, 0.3, 0.4], [0.85, 0.1, 0.1]])
"""Empty, curve, mark."""


def draw_examples(tasks: Sequence[Task], path: Path) -> None:
    """The first held-out layouts of each task with rising length, marked as one curve, and below as two."""
    figure = Figure(figsize=(2.2 * EXAMPLES * len(tasks), 4.8), layout="constrained")
    panels = figure.subplots(2, EXAMPLES * len(tasks), squeeze=False)
    for number, task in enumerate(tasks):
        layouts = draw_layouts(task, HELD_OUT, min(40, task.held_out))
        order = np.argsort(layouts.lengths, kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, EXAMPLES).astype(int)]
        for row, label in enumerate((1, 0)):
            pictures, _ = draw_pictures(layouts, chosen, np.full(EXAMPLES, label))
            for column, (picture, layout) in enumerate(zip(pictures, chosen, strict=True)):
                axes = panels[row, EXAMPLES * number + column]
                axes.imshow(COLORS[(picture[0] + picture[1]).astype(int)], interpolation="none")
                axes.set(xticks=[], yticks=[])
                words = "one curve" if label else "two curves"
                axes.set_title(f"{words}, L = {layouts.lengths[layout]}", fontsize=9)
    save(figure, path)


Curves = dict[str, list[tuple[float, float]]]
"""Network -> points."""


def draw_accuracy(panels: list[tuple[str, Curves]], label: str, path: Path) -> None:
    """Accuracy over the length, or the corners, of the marked curve: a panel for each grid."""
    figure = Figure(figsize=(6 * len(panels), 4.8), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
        axes.axhline(50, color="0.5", linewidth=1)
        axes.set(xlabel=label, ylabel="accuracy, %", title=title, ylim=(45, 101))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    save(figure, path)


def draw_trade(points: list[tuple[str, float, Sequence[float]]], path: Path) -> None:
    """Accuracy of each seed, and their mean, against images per second in training."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, speed, values in points:
        (line,) = axes.plot([speed], [sum(values) / len(values)], "o", label=name)
        axes.plot([speed] * len(values), values, "_", color=line.get_color(), markersize=9)
    axes.set(xlabel="images per second, training, one thread", ylabel="accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)
