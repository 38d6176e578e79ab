"""What the study of the mixer measures of a training: the loss on held-out images, image by image."""

import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from experiments.plan import Run
from gspn_dit.checkpoint import latest_checkpoint, load_model, read_state
from gspn_dit.config import Config
from gspn_dit.data.pixels import PixelDataset, split_folder
from gspn_dit.errors import UserError
from gspn_dit.evaluation.validation import Validator
from gspn_dit.training.log import read_metrics

DIGITS = 5
"""Significant digits of an image's loss that are kept."""


def measure_images(run: Run, config: Config, run_dir: Path) -> dict[str, Any]:
    """Losses of the averaged weights on held-out images, what the images were, and the speed of the training."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _, _ = load_model(run_dir, device=device)
    held_out = read_held_out(run.data, config.data.size)
    validator = Validator(
        held_out, config.diffusion.objective, images=run.settings["validation_images"], batch_size=64
    )
    losses = validator(model, Accelerator(cpu=device.type == "cpu"))
    trained_on = read_state(latest_checkpoint(run_dir))["dataset"]
    speeds = [row["images_per_second"] for row in read_metrics(run_dir / "metrics.jsonl")]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images_per_second": statistics.median(speeds),
        "data": {
            "files": sorted({Path(path).suffix[1:] for path in held_out.images.paths}),
            "images": trained_on["images"],
            "images_hash": trained_on["images_hash"],
            "held_out_images": len(held_out),
            "held_out_hash": held_out.hashes["images_hash"],
        },
        "validation": {
            **losses.means(),
            "values": [float(f"{value:.{DIGITS}g}") for value in losses.values],
        },
    }


def no_images(study: str, folder: Path) -> str:
    """What is said where a study's folder of images is not there."""
    return (
        f"{study}: no images in {folder}: `python -m gspn_dit.data.cifar10 {folder}` writes them, or name their "
        "folder with --data"
    )


def check_same_images(waiting: list[Run], results: Path) -> None:
    """Raise `UserError` when the trainings to come would have other held-out images than those that are there."""
    known = {
        json.loads(path.read_text())["data"]["held_out_hash"]
        for path in (results / "runs").glob("*.json")
        if "data" in json.loads(path.read_text())
    }
    if not waiting or not known:
        return
    data = waiting[0].settings["config"]["data"]
    found = read_held_out(waiting[0].data, data["size"]).hashes["images_hash"]
    if known != {found}:
        raise UserError(
            f"{waiting[0].data} holds other images than the results in {results} are of (hash {found}, expected "
            f"{', '.join(sorted(known))}): give --out another folder, and all is trained anew there"
        )


@cache
def read_held_out(folder: str, size: int) -> PixelDataset:
    """The held-out images of a folder; `UserError` when it has none."""
    _, images = split_folder(Path(folder), share=0.0)
    if images is None:
        raise UserError(f"image folder {folder} has no folder test/: the study measures on its images")
    return PixelDataset(images, size, flip=False, keep=True)
