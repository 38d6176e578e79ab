"""One training run in one process: train as train.py does, score, probe, and write one JSON."""

import copy
import datetime
import json
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from experiments.mixers_run import measure_images
from experiments.plan import Run
from experiments.probe import probe_model
from gspn_dit import errors, files
from gspn_dit.checkpoint import load_model
from gspn_dit.config import Config, parse_config
from gspn_dit.errors import UserError
from gspn_dit.evaluation.demo import distances, draw
from gspn_dit.evaluation.digits import load_classifier, to_digits
from gspn_dit.latents.autoencoder import create_autoencoder
from gspn_dit.signals import Stopped
from gspn_dit.training.log import read_metrics
from gspn_dit.training.trainer import train

NOT_FINITE = re.compile(r"step \d+: (loss|grad_norm) is (nan|-?inf)|.*\bnot finite\b")
"""What training and sampling say of a loss, weights or images that are not finite."""


def run_one(run: Run, results: Path, work: Path) -> dict[str, Any]:
    """Train, score and probe `run`; write and return its result. Raises `Stopped` when a signal stopped the training.

    `work` holds the run folders, in which a stopped training continues. A training that ends in a loss, or
    in samples, that are not finite is a result too: `diverged`, without scores.
    """
    start = time.monotonic()
    run_dir = work / run.folder
    config = read_config(run, run_dir)
    result = {
        "name": run.name,
        "variant": run.variant,
        "seed": run.seed,
        "key": run.key,
        "settings": run.settings,
        "images": config.train.steps * config.train.batch_size,
        "diverged": None,
    }
    try:
        if status := train(config):
            raise Stopped(status - 128)
        result |= (measure if run.data is None else measure_images)(run, config, run_dir)
    except UserError as error:
        if not NOT_FINITE.match(str(error)):
            raise
        result["diverged"] = str(error).partition(";")[0]
    result["loss_curve"] = curve = [
        [row["images"], row["loss"]] for row in read_metrics(run_dir / "metrics.jsonl")
    ]
    result["final_loss"] = sum(loss for _, loss in curve[-8:]) / len(curve[-8:]) if curve else None
    if result["diverged"] is None and curve and curve[-1][1] > curve[0][1]:
        result["diverged"] = f"the loss rose from {curve[0][1]:.4g} to {curve[-1][1]:.4g}"
    result |= {"seconds": round(time.monotonic() - start, 1), **environment()}
    write_json(run.result_path(results), result)
    return result


def read_config(run: Run, run_dir: Path) -> Config:
    """The config of a run in its folder, with the images where they lie, and its teacher beside it."""
    mapping = copy.deepcopy(run.settings["config"])
    if run.data is not None:
        mapping["data"]["path"] = run.data
    if "teacher" in run.settings:
        mapping["train"]["teacher"] = str(run_dir.with_name(run.settings["teacher"]))
    return parse_config({"run_dir": str(run_dir), **mapping})


def measure(run: Run, config: Config, run_dir: Path) -> dict[str, Any]:
    """Scores of unguided samples from the averaged weights, and the probe of positions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _, _ = load_model(run_dir, device=device)
    decoder = create_autoencoder(None, device)
    images, labels = draw(model, config, decoder, run.settings["samples"], 1.0, device)
    classifier = load_classifier()
    digits = to_digits(images)
    _, assigned = classifier.describe(digits)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **distances(classifier, digits),
        "accuracy": float((assigned == labels).mean()),
        "probe": probe_model(model, config.diffusion.objective, run.settings["probe_images"]),
    }


def environment() -> dict[str, str]:
    """Device, versions and date of a measurement."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return {
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def cpu_name() -> str:
    """The processor as Linux names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def is_measured(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a measurement with these settings is there."""
    return path.exists() and json.loads(path.read_text())["settings"] == settings


def write_json(path: Path, value: Any) -> None:
    """Write a result whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, value)


def run_command(run_one: Callable[[Run, Path, Path], Any]) -> NoReturn:
    """The command line of a training. Arguments: the run as JSON, the folder of results, the folder of run folders."""

    def main() -> None:
        fields, results, work = sys.argv[1:]
        run_one(Run(**json.loads(fields)), Path(results), Path(work))

    errors.run(main)


if __name__ == "__main__":
    run_command(run_one)
