"""Charts of the report, from results alone."""

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from experiments import kernel
from experiments.summary import Setting
from gspn_dit.files import replacing

COLORS = {"gspn": "C0", "attention": "C1", "scan": "C2"}
STYLES = {"row_stochastic": ("-", "Blues"), "sigmoid": ("--", "Reds"), "none": (":", "viridis")}
"""Line style and colours by the normalisation."""
PARTS = {"gspn": "GSPN module", "attention": "attention", "scan": "scan alone"}


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})


def draw_kernel(record: dict[str, Any], path: Path) -> None:
    """Time forward, time with backward, and memory over tokens; hollow: extrapolated; line: the crossover."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ("forward", "forward and backward", "memory, forward and backward")
    for axes, title, (mode, key) in zip(
        panels, titles, (("forward", "seconds"), ("both", "seconds"), ("both", "bytes")), strict=True
    ):
        for part, color in COLORS.items():
            rows = [row for row in record["rows"] if row["part"] == part and row["mode"] == mode]
            known = [row for row in rows if row[key]]
            axes.plot(
                [r["tokens"] for r in known], [r[key] for r in known], "o-", color=color, label=PARTS[part]
            )
            missing = [row for row in rows if not row[key]]
            if missing and len(known) > 1:
                beyond = [(r["tokens"], kernel.extrapolated(known, r["tokens"])) for r in missing]
                tokens, values = zip((known[-1]["tokens"], known[-1][key]), *beyond, strict=True)
                style = {"color": color, "mfc": "white", "markevery": slice(1, None)}  # the first is measured
                axes.plot(tokens, values, "o--", label=f"{PARTS[part]}, extrapolated", **style)
        if key == "seconds" and (cross := kernel.crossover_of(record, mode)):
            axes.axvline(cross, color="0.5", linewidth=1)
            axes.text(cross, axes.get_ylim()[1], f" {cross:,.0f}", va="top", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=key, title=title)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    save(figure, path)


def draw_propagation(record: dict[str, Any], path: Path) -> None:
    """Max-norm and spectral norm of the products, and reach, over lines crossed; means over seeds."""
    figure = Figure(figsize=(11, 4.3), layout="constrained")
    norm, spectral, reach = figure.subplots(1, 3)
    cases = sorted({(r["normalization"], r["logit_std"], r["row_sum"]) for r in record["rows"]})
    lines = sorted({row["lines"] for row in record["rows"]})
    for case in cases:
        normalization, std, row_sum = case
        label = f"row sums {row_sum:g}" if normalization == "none" else f"{normalization}, logits {std:g}"
        style, shades = STYLES[normalization]
        alike = [other for other in cases if other[0] == normalization]
        color = colormaps[shades](0.4 + 0.5 * alike.index(case) / max(1, len(alike) - 1))
        means = {
            key: mean_over_seeds(record, case, lines, key)
            for key in ("max_norm", "spectral_norm", "impulse_std")
        }
        norm.plot(lines, means["max_norm"], style, color=color, label=label)
        spectral.plot(lines, means["spectral_norm"], style, color=color)
        if normalization != "none":
            reach.plot(lines, means["impulse_std"], style, color=color)
    reach.plot(lines, [(2 * t / 3) ** 0.5 for t in lines], "k+", label="sqrt(2 t / 3)")
    norm.set(xscale="log", yscale="log", xlabel="lines", title="max-norm of the product")
    spectral.set(
        xscale="log", yscale="log", xlabel="lines", title="spectral norm of the product", ylim=(0.5, 2)
    )
    reach.set(
        xscale="log", yscale="log", xlabel="lines crossed", title="spread of an impulse (std, positions)"
    )
    reach.legend(fontsize=8)
    figure.legend(*norm.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    save(figure, path)


def mean_over_seeds(record: dict[str, Any], case: tuple, lines: list[int], key: str) -> list[float]:
    """Mean of a column of one case at each number of lines."""
    means = []
    for count in lines:
        values = [
            row[key]
            for row in record["rows"]
            if (row["normalization"], row["logit_std"], row["row_sum"]) == case and row["lines"] == count
        ]
        means.append(sum(values) / len(values))
    return means


def draw_scores(settings: list[tuple[str, Setting]], path: Path) -> None:
    """FID and class accuracy of each seed, a row for each setting; the bar is the mean."""
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(settings)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(
        panels, ("fid", "accuracy"), ("FID (lower is better)", "class accuracy"), strict=True
    ):
        for place, (_, setting) in enumerate(settings):
            values = setting.get(key)
            if values is None:
                continue
            axes.plot(values.values, [place] * len(values.values), "o", color="C0", alpha=0.6)
            axes.plot([values.mean], [place], "|", color="black", markersize=16)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3, which="both")
        if key == "fid" and axes.lines and axes.dataLim.x1 > 3 * axes.dataLim.x0 > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_yticks(range(len(settings)), [label for label, _ in settings])
    panels[0].invert_yaxis()
    save(figure, path)


def draw_losses(settings: list[tuple[str, Setting]], path: Path) -> None:
    """Training loss over images, mean of the seeds, flow and ddpm apart."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = dict(zip(("flow", "ddpm"), figure.subplots(1, 2), strict=True))
    for label, setting in settings:
        curves = [result["loss_curve"] for result in setting.results if result["loss_curve"]]
        if not curves:
            continue
        objective = setting.one("settings.config.diffusion.objective")
        length = min(map(len, curves))
        images = [point[0] for point in curves[0][:length]]
        losses = [sum(curve[i][1] for curve in curves) / len(curves) for i in range(length)]
        panels[objective].plot(images, losses, label=label)
    for objective, axes in panels.items():
        axes.set(xlabel="images", ylabel="training loss", yscale="log", title=objective)
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend(fontsize=8)
    save(figure, path)


def draw_noise(panels: list[tuple[str, dict[str, list[float]]]], base: str, path: Path) -> None:
    """Loss against that of `base` by noise: for each panel, a curve for each network over equal parts of t."""
    figure = Figure(figsize=(5 * len(panels), 3.8), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, shares in curves.items():
            middles = [(i + 0.5) / len(shares) for i in range(len(shares))]
            axes.plot(middles, [100 * share for share in shares], "o-", label=label)
        axes.axhline(0, color="0.5", linewidth=1)
        axes.set(xlabel="t (0: data, 1: noise)", title=title, ylabel=f"loss against {base}, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path)


def draw_reach(record: dict[str, Any], path: Path) -> None:
    """Gradient of the middle output token by every input token: a column for each network, a row for each t."""
    networks = list(dict.fromkeys(row["network"] for row in record["rows"]))
    levels = record["settings"]["times"]
    figure = Figure(figsize=(2.6 * len(networks) + 1, 2.6 * len(levels)), layout="constrained")
    panels = figure.subplots(len(levels), len(networks), squeeze=False)
    smallest = min(min(map(min, row["gradients"])) for row in record["rows"])
    norm = LogNorm(max(smallest, 1e-6), 1)
    for row in record["rows"]:
        axes = panels[levels.index(row["t"]), networks.index(row["network"])]
        image = axes.imshow(row["gradients"], cmap="magma", norm=norm)
        axes.set(xticks=[], yticks=[])
        axes.set_title(
            f"{row['network']}, t = {row['t']:g}: half within {row['median_distance']:.1f}", fontsize=8
        )
    figure.colorbar(image, ax=panels, label="share of the gradient", shrink=0.8)
    save(figure, path)


def draw_samples(pictures: list[tuple[str, Path]], path: Path) -> None:
    """Grids of samples side by side."""
    figure = Figure(figsize=(4 * len(pictures), 5.2), layout="constrained")
    for axes, (label, file) in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True
    ):
        axes.imshow(imread(file), interpolation="none")
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=9)
    save(figure, path)


def draw_blocks(pictures: list[tuple[str, Path]], path: Path) -> None:
    """Grids of samples one above the other, their pixels as they are but doubled."""
    grids = [imread(file) for _, file in pictures]
    height, width = grids[0].shape[:2]
    figure = Figure(
        figsize=(2 * width / 120 + 0.4, len(grids) * (2 * height / 120 + 0.35)), layout="constrained"
    )
    for axes, grid, (label, _) in zip(
        figure.subplots(len(grids), 1, squeeze=False)[:, 0], grids, pictures, strict=True
    ):
        axes.imshow(grid, interpolation="none")
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=9)
    save(figure, path)
