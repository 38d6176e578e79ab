"""Loss on held-out images: python -m gspn_dit.evaluation.validation RUN [RUN ...]

The plain squared error of the predicted velocity (flow) or noise (ddpm), without dropped classes, in float32. Image
number i has its picture, its time and its noise by i alone: whatever a run's seed, every network of a data set and an
objective meets the same ones, and two are compared image by image. Times are even in (0, 1) whatever the times of
training: that of image i is the fractional part of (i + 1/2) / 1.618..., so that any first n of them are spread evenly.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from gspn_dit import errors
from gspn_dit.checkpoint import find_checkpoint, load_model, parts_of_run, read_state
from gspn_dit.config import DataConfig
from gspn_dit.data import Dataset, describe_dataset
from gspn_dit.data.batches import Batch, chunks, normal
from gspn_dit.data.mnist import Digits
from gspn_dit.data.order import EpochOrder
from gspn_dit.data.pixels import held_out_pixels
from gspn_dit.diffusion import create_diffusion
from gspn_dit.errors import UserError
from gspn_dit.files import check_output, home_path, refuse_inputs, write_json
from gspn_dit.latents.dataset import LatentDataset
from gspn_dit.processes import connect, progress_bar
from gspn_dit.random import VALIDATION

BANDS = ("low", "middle", "high")
"""Of t as a share of the way to noise: little of it, some, and much."""
EDGES = (1 / 3, 2 / 3)
"""Where the bands meet: thirds of t."""
IMAGES = 512
"""Held-out images of a validation by default: `train.validation_images`."""
KEY = 512
"""Fixed, so that validation draws the same for every run, whatever its seed."""
GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
FITTING = ("size", "channels", "num_classes", "class_names", "weights_hash", "scale", "shift", "image_size")
"""What held-out images must have in common with those of training, as `describe_dataset` names it."""


@dataclass(frozen=True)
class Losses:
    """The squared error of each held-out image, (n,) float64, and its t / largest t, (n,) float64 in [0, 1)."""

    values: np.ndarray
    times: np.ndarray

    def means(self, edges: tuple[float, float] = EDGES) -> dict[str, float]:
        """Mean over all images ("loss") and within the bands of t, left out where one is empty."""
        band = np.digitize(self.times, edges)
        parts = {"loss": self.values, **{name: self.values[band == i] for i, name in enumerate(BANDS)}}
        return {name: float(values.mean()) for name, values in parts.items() if len(values)}


def paired_difference(losses: Losses, base: Losses) -> tuple[float, float]:
    """Mean of losses - base, image by image, as a share of the base's mean; and its standard error."""
    differences = (losses.values - base.values) / base.values.mean()
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def held_out_dataset(config: DataConfig, trained_on: dict[str, Any]) -> Dataset | None:
    """The images of a run's data that are never trained on; None when there are none.

    Held-out latents are normalised as those of training, which `trained_on` describes.
    """
    if config.kind == "mnist":
        return Digits("heldout", config.tuning)
    if config.kind == "images":
        return held_out_pixels(config.path, config.size, config.held_out)
    return LatentDataset(config.validation, trained_on=trained_on) if config.validation else None


def check_held_out(held_out: Dataset, trained_on: dict[str, Any]) -> None:
    """Raise `UserError` unless held-out images are of the kind that a network was trained on."""
    found = describe_dataset(held_out)
    for key in FITTING:
        if key in found and key in trained_on and found[key] != trained_on[key]:
            raise UserError(
                f"the held-out images have {key} {found[key]}, those of training {trained_on[key]}: "
                "expected images, or latents, made in the same way"
            )


class Validator:
    """Measures networks on held-out images that are drawn once; each process holds its share of them."""

    def __init__(
        self,
        held_out: Dataset,
        objective: str,
        *,
        images: int = IMAGES,
        batch_size: int = 32,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Takes `images` of the held-out ones, or all where they are fewer.

        `batch_size` is the most at once and process: beyond rounding, it does not change a number.
        """
        self.count = min(images, len(held_out))
        self.diffusion = create_diffusion(objective)  # of this one the times are even
        # All processes make as many forwards, of one size: a sharded network needs them all at every forward.
        forwards = math.ceil(self.count / (batch_size * processes))
        size = math.ceil(self.count / (forwards * processes))
        numbers = np.arange(size * forwards) + size * forwards * rank
        numbers = numbers.clip(max=self.count - 1)  # the last one again, for nobody
        order = EpochOrder(len(held_out), KEY)
        self.batches = [self.draw(held_out, order, part) for part in chunks(numbers, size)]

    def draw(self, held_out: Dataset, order: EpochOrder, numbers: np.ndarray) -> Batch:
        """The images with these numbers (n,) int64, their times and noise."""
        x, y = held_out.draw(order.indices(numbers), numbers, KEY)
        t = self.diffusion.times(torch.from_numpy(times(numbers)))
        return Batch(x, y, t, normal(VALIDATION, KEY, numbers, x.shape[1:]))

    @torch.no_grad()
    def __call__(self, model: nn.Module, accelerator: Accelerator, label: str | None = None) -> Losses:
        """The losses of a network on the accelerator's device; every process must call this and gets all.

        A `label` is that of a progress bar.
        """
        values = []
        hidden = label is None or not accelerator.is_main_process
        for batch in progress_bar(iterable=self.batches, desc=label, unit=" batches", disable=hidden):
            batch = batch.to(accelerator.device)
            losses = self.diffusion.losses(model, batch.x, batch.t, batch.y, batch.noise)
            values.append(losses["mse"].float())
        values = accelerator.gather(torch.cat(values))[: self.count]  # process after process, as the numbers
        return Losses(values.double().cpu().numpy(), times(np.arange(self.count)))


def times(numbers: np.ndarray) -> np.ndarray:
    """The share of the way to noise of image numbers (n,): (n,) float64 in (0, 1)."""
    return (numbers + 0.5) / GOLDEN_RATIO % 1.0


@dataclass(frozen=True)
class Measured:
    """A run and its losses."""

    run: str
    step: int | None
    """None, as `images_seen`, of weights that gspn_dit/convert made: nothing says it of them."""
    images_seen: int | None
    weights: str
    """SHA-256 of their file."""
    objective: str
    held_out: dict[str, Any]
    losses: Losses


def measure(run: str, arguments: argparse.Namespace, accelerator: Accelerator) -> Measured:
    """The losses of a run's checkpoint."""
    model, config, info = load_model(run, ema=arguments.weights == "ema", device=accelerator.device)
    data = config.data
    if arguments.data:
        if data.kind == "mnist":
            raise UserError(
                f"--data {arguments.data}: {run} is of digits, whose own are held out: leave it out"
            )
        data = dataclasses.replace(
            data, **{"validation" if data.kind == "latents" else "path": arguments.data}
        )
    trained_on = read_state(Path(info["path"]))["dataset"]
    held_out = held_out_dataset(data, trained_on)
    if held_out is None:
        raise UserError(
            f"{run} has no held-out images: give --data FOLDER, for latents a second folder of them"
        )
    check_held_out(held_out, trained_on)
    validator = Validator(
        held_out,
        config.diffusion.objective,
        images=arguments.images or len(held_out),
        batch_size=arguments.batch_size,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    return Measured(
        run=run,
        step=info["step"],
        images_seen=info["images_seen"],
        weights=info["hash"],
        objective=config.diffusion.objective,
        held_out=describe_dataset(held_out),
        losses=validator(model, accelerator, label=run),
    )


def check_comparable(runs: Sequence[Measured]) -> None:
    """Raise `UserError` for runs that were not measured on the same images with the same objective."""
    first = runs[0]
    for other in runs[1:]:
        for key in ("objective", "held_out"):
            if getattr(other, key) != getattr(first, key):
                raise UserError(
                    f"{other.run} and {first.run} differ in their {key.replace('_', '-')}: nothing to compare"
                )


def format_table(runs: Sequence[Measured], edges: tuple[float, float]) -> str:
    """A row for each run, with its difference from the first."""
    low, high = (f"{edge:.3g}" for edge in edges)
    width = max(len(measured.run) for measured in runs)
    header = ["all", f"t < {low}", f"{low} to {high}", f"t > {high}"]
    lines = [f"{'':{width}}{'step':>10}" + "".join(f"{name:>16}" for name in header)]
    for measured in runs:
        means = measured.losses.means(edges)
        numbers = "".join(f"{means.get(name, math.nan):16.5f}" for name in ("loss", *BANDS))
        step = "-" if measured.step is None else f"{measured.step:,}"
        line = f"{measured.run:{width}}{step:>10}{numbers}"
        if measured is not runs[0]:
            difference, error = paired_difference(measured.losses, runs[0].losses)
            line += f"  {difference:+.2%} ± {error:.2%}"
        lines.append(line)
    target = {"flow": "velocity", "ddpm": "noise"}[runs[0].objective]
    lines.append(f"squared error of the {target} of {len(runs[0].losses.values):,} held-out images")
    if len(runs) > 1:
        lines.append("last column: from the first run, image by image, with the standard error")
    return "\n".join(lines)


def to_json(runs: Sequence[Measured], edges: tuple[float, float]) -> dict[str, Any]:
    """Plain JSON types: what is common, and every run with its means and the value of each image."""
    return {
        "objective": runs[0].objective,
        "held_out": runs[0].held_out,
        "images": len(runs[0].losses.values),
        "edges": list(edges),
        "times": runs[0].losses.times.tolist(),
        "runs": [
            {
                "run": measured.run,
                "step": measured.step,
                "images_seen": measured.images_seen,
                "weights": measured.weights,
                **measured.losses.means(edges),
                "values": measured.losses.values.tolist(),
            }
            for measured in runs
        ],
    }


EPILOG = """\
example:
  python -m gspn_dit.evaluation.validation runs/cifar10_cpu --images 2000 --json validation.json

All images, times and noise are fixed: runs on the same data are compared image by image. t runs from 0 (data) to 1
(noise); a ddpm step counts as step / 1000.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.evaluation.validation",
        description="Measure the loss of trained runs on held-out images, whole and by bands of the noise.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=home_path, help="run or checkpoint folders, or hub ids"
    )
    parser.add_argument("--images", metavar="N", type=int, help="the first N of the images (default: all)")
    parser.add_argument(
        "--edges", metavar="LOW,HIGH", default=EDGES, help="where the bands of t meet (default: 1/3 and 2/3)"
    )
    parser.add_argument(
        "--data", metavar="FOLDER", type=home_path, help="held-out data (default: where the run says)"
    )
    parser.add_argument(
        "--weights", choices=("ema", "last"), default="ema", help="averaged or last (default: ema)"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=64, help="at once (default: 64)")
    parser.add_argument("--json", metavar="FILE", type=home_path, help="also write every number here")
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for what is wrong whatever the runs are; read the edges."""
    for option, value in (("--images", arguments.images), ("--batch-size", arguments.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: expected at least 1")
    if isinstance(arguments.edges, str):
        try:
            low, high = map(float, arguments.edges.split(","))
        except ValueError:
            low, high = math.nan, math.nan
        if not 0 < low < high < 1:
            raise UserError(
                f"--edges {arguments.edges}: expected two numbers between 0 and 1, such as 0.3,0.6"
            )
        arguments.edges = (low, high)
    if arguments.json:
        check_output("--json", arguments.json, in_place=True)
        for run in filter(os.path.exists, arguments.runs):
            refuse_inputs("--json", arguments.json, parts_of_run(find_checkpoint(run)))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, measure, print; the exit status."""
    arguments = parse_arguments(argv)
    check(arguments)
    accelerator = connect()
    runs = [measure(run, arguments, accelerator) for run in arguments.runs]
    check_comparable(runs)
    accelerator.print(format_table(runs, arguments.edges))
    if arguments.json and accelerator.is_main_process:
        write_json(Path(arguments.json), to_json(runs, arguments.edges))
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    errors.run(main)
