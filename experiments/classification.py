"""CIFAR-10's classes by the paper's backbone, narrowed, and by the same network without its scan.

A training is `python -m gspn_dit.classification.train` with configs/classification/cifar10_cpu.yaml, and what it is
worth is measured by `gspn_dit.classification.evaluate`, on all test images.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from experiments.charts import save
from experiments.mixers_plan import DATA, study_folder
from experiments.mixers_run import no_images
from experiments.plan import Run
from experiments.pool import is_done, run_all
from experiments.sections import Section, show, table
from experiments.summary import Setting, compare, load_settings, sentence
from experiments.train_run import environment, run_command, write_json
from gspn_dit.classification import evaluate
from gspn_dit.classification.classifier import train_classifier
from gspn_dit.classification.recipe import parse_recipe
from gspn_dit.errors import UserError
from gspn_dit.signals import Stopped
from gspn_dit.training.log import read_metrics

NAME = "classification"
RECIPE = Path(__file__).resolve().parents[1] / "configs" / "classification" / "cifar10_cpu.yaml"
NETWORKS = {"lines": "with the scan", "identity": "the scan left out"}
SECONDS = {"lines": 1800, "identity": 1300}
"""Of a training on one core, another one beside it (estimated)."""
SEEDS = (0, 1, 2)
SCALES: dict[str, dict[str, Any]] = {
    "cpu": {},
    "mini": {
        "model": {"width": 8, "depths": [1, 1, 1, 1]},
        "data": {"workers": 0},
        "train": {"steps": 4, "batch_size": 8, "micro_batch": 8, "warmup_steps": 1, "validate_every": 2},
    },
}
"""What each scale changes in the recipe."""


def classification_runs(scale: str, data: Path | None = None) -> list[Run]:
    """All trainings of a scale, one of `SCALES`, seed by seed, on the images of a folder."""
    runs = []
    for seed in SEEDS:
        for scan in NETWORKS:
            config = yaml.safe_load(RECIPE.read_text())
            del config["run_dir"], config["data"]["path"]
            for section, settings in SCALES[scale].items():
                config[section] |= settings
            config["model"]["scan"] = scan
            config["train"]["seed"] = seed
            name, settings = f"{scan}-seed{seed}", {"config": config}
            runs.append(Run(name, scan, seed, settings, SECONDS[scan], str(data or DATA), __name__))
    return runs


def classification_folder(folder: Path) -> Path:
    """Where a scale's results, or its run folders, are kept."""
    return study_folder(folder, NAME)


def run(scale: str, data: Path, results: Path, work: Path, workers: int) -> list[str]:
    """Do the trainings of a scale, one of `SCALES`, that are missing; the names of those that failed."""
    runs = classification_runs(scale, data.resolve())
    waiting = [run for run in runs if not is_done(run, results)]
    hours = sum(run.seconds for run in waiting) / 3600
    print(
        f"{NAME}: {len(runs) - len(waiting)} of {len(runs)} trainings done; to come: {hours:.1f} hours of one core, "
        f"{hours / max(1, workers):.1f} hours with {max(1, workers)} at a time (estimated)",
        flush=True,
    )
    if waiting and not data.is_dir():
        raise UserError(no_images(NAME, data))
    return run_all(runs, results, work, workers)


def run_one(run: Run, results: Path, work: Path) -> dict[str, Any]:
    """Train and evaluate `run`; write and return its result. Raises `Stopped` when a signal stopped the training."""
    start = time.monotonic()
    run_dir = work / run.folder
    config = run.settings["config"]
    mapping = config | {"run_dir": str(run_dir), "data": config["data"] | {"path": run.data}}
    if status := train_classifier(parse_recipe(mapping)):
        raise Stopped(status - 128)
    evaluate.main([str(run_dir), run.data])
    scores = json.loads((run_dir / "evaluation.json").read_text())
    rows = list(read_metrics(run_dir / "metrics.jsonl"))
    result = {
        "name": run.name,
        "variant": run.variant,
        "seed": run.seed,
        "key": run.key,
        "settings": run.settings,
        "images": rows[-1]["images"],
        "images_per_second": statistics.median(row["images_per_second"] for row in rows),
        "diverged": None,
        **{key: scores[key] for key in ("weights", "loss", "top1", "top5", "confusion") if key in scores},
        "classes": list(scores["classes"]),
        "test_images": scores["images"],
        "validation": [[row["images"], row["validation_top1"]] for row in rows if "validation_top1" in row],
        "seconds": round(time.monotonic() - start, 1),
        **environment(),
    }
    write_json(run.result_path(results), result)
    return result


def load_classification(scale: str, results: Path) -> dict[str, Setting]:
    """The study's results by network, of the folder of a scale's other experiments; none where none is there."""
    if scale not in SCALES:
        return {}
    keys = {run.name: run.key for run in classification_runs(scale)}
    return load_settings(classification_folder(results), keys)


def draw(found: dict[str, Setting], path: Path) -> None:
    """Top-1 on the test images over the images trained on, each seed a line."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (variant, label) in enumerate(NETWORKS.items()):
        results = found[variant].results if variant in found else ()
        for place, result in enumerate(results):
            images, top1 = zip(*result["validation"], strict=True)
            axes.plot(
                [count / 1000 for count in images],
                [100 * share for share in top1],
                color=f"C{number}",
                linewidth=1.2,
                label=None if place else label,
            )
    axes.set(xlabel="images, thousands", ylabel="top-1 on the test images, %")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def classification_section(found: dict[str, Setting], folder: Path) -> Section:
    """The section, and its pictures in `folder`."""
    draw(found, folder / f"{NAME}.png")
    pictures = [f"{NAME}.png"]
    if "lines" in found:
        first = found["lines"].results[0]
        scores = {**first, "classes": dict.fromkeys(first["classes"])}
        evaluate.draw_confusion(scores, folder / f"{NAME}_confusion.png")
        pictures.append(f"{NAME}_confusion.png")
    settings = {variant: found.get(variant, Setting(variant, ())) for variant in NETWORKS}
    rows = [
        [
            label,
            str(len(settings[variant].results)),
            f"{settings[variant].one('images') or 0:,}",
            show(settings[variant].get("top1"), 2, 100),
            show(settings[variant].get("top5"), 2, 100),
            show(settings[variant].get("loss"), 4),
        ]
        for variant, label in NETWORKS.items()
    ]
    comparison = compare(settings["identity"], settings["lines"], "top1")
    head = ("network", "seeds", "images", "top-1, %", "top-5, %", "loss")
    return Section(
        NAME,
        "Classes of photographs",
        "How often is the paper's backbone, narrowed, right about CIFAR-10's classes, and what does its scan add?",
        "GSPN-T at a third of its width: one block on 16x16 places, one on 8x8, three on 4x4 and one on 2x2, the last "
        "four with global scans (configs/classification/cifar10_cpu.yaml). Optimiser, rate and shift were chosen on a "
        "held-out tenth of the training images, without the scan. Measured on all test images by the averaged weights. "
        "The confusion is that of the first seed with the scan.",
        [
            f"top-1 in %, with the scan: {show(settings['lines'].get('top1'), 2, 100)}",
            sentence(NETWORKS["identity"], NETWORKS["lines"], comparison, "top-1, a share", digits=4),
        ],
        [table(head, rows)],
        pictures,
        headlines=2,
    )


if __name__ == "__main__":
    run_command(run_one)
