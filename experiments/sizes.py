"""Networks trained on one size of picture and sampled at others: the scan against DiT with interpolated positions.

The networks are the longer trainings of the mixer's study, from its run folders; one whose folder is gone is trained
again with the same settings. All draw the same labels from the same noise, which a size and a seed decide.
"""

import copy
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from experiments.mixers_plan import (
    DATA,
    FINALS,
    LONGER_NAMES,
    STUDIES,
    Design,
    Study,
    longer_runs,
    study_folder,
)
from experiments.mixers_run import check_same_images, no_images
from experiments.plan import Run
from experiments.pool import is_done, run_all
from experiments.summary import load_json
from experiments.train_run import environment, read_config, write_json
from gspn_dit.checkpoint import latest_checkpoint, load_model
from gspn_dit.errors import UserError
from gspn_dit.evaluation.demo import sample_settings
from gspn_dit.evaluation.extractors import find_efficientnet
from gspn_dit.evaluation.scores import Options, score_files
from gspn_dit.latents.autoencoder import create_autoencoder
from gspn_dit.models.layers import sinusoids
from gspn_dit.sampling.generation import generate, keyed_labels
from gspn_dit.sampling.grids import save_grid

NAME = "sizes"
NETWORKS = tuple(design for design in FINALS if design.name in LONGER_NAMES)
FACTORS = ((1, 1), (1, 1.5), (1.5, 1.5), (2, 2))
"""Height and width over those trained on: 16x16, 16x24, 24x24 and 32x32 tokens."""
SAMPLES = {"cpu": 500, "mini": 20}
SHOWN = 3
"""Samples of a class in the pictures."""
MILLISECONDS = 100.0
"""Of a sample of 256 tokens, 24 forwards, on one core (estimated)."""
SCORE_SECONDS = 45
"""Of the features of one network's samples at one size, and the scores against 10,000 images (estimated)."""


@dataclass(frozen=True)
class Case:
    """Samples of one network at one size."""

    design: Design
    run: Run
    size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def name(self) -> str:
        return f"{self.design.name}-{self.size[0]}x{self.size[1]}"

    def path(self, results: Path) -> Path:
        return results / f"{self.name}.json"

    def picture(self, results: Path) -> Path:
        return results / "samples" / f"{self.name}.png"


@dataclass(frozen=True)
class Plan:
    study: Study
    cases: tuple[Case, ...]
    samples: int

    @property
    def runs(self) -> list[Run]:
        return list({case.run.name: case.run for case in self.cases}.values())

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return list(dict.fromkeys(case.size for case in self.cases))

    def settings(self, case: Case) -> dict[str, Any]:
        """What decides a case's samples."""
        config = read_config(case.run, Path("unused"))
        sampling = sample_settings(config, 1.0)
        return {"run": case.run.key, "size": list(case.size), "samples": self.samples, **sampling}


def sizes_plan(scale: str, data: Path | None = None) -> Plan:
    """The study of a scale, one of `STUDIES`, with the folder that its images are read from."""
    study = STUDIES[scale]
    runs = {run.variant: run for run in longer_runs(study)}
    cases = [
        Case(
            design,
            replace(runs[f"longer-{design.name}"], data=str(data or DATA)),
            (round(study.size * height), round(study.size * width)),
        )
        for height, width in FACTORS
        for design in NETWORKS
    ]
    return Plan(study, tuple(cases), SAMPLES[scale])


def sizes_folder(folder: Path) -> Path:
    """Where the study of a scale is kept, beside the folder of the other experiments of that scale."""
    return study_folder(folder, NAME)


def describe(plan: Plan, missing: list[Run], waiting: list[Case], workers: int) -> str:
    """The study and its cost, printed before anything runs."""
    tokens = [height * width / plan.study.size**2 for height, width in (case.size for case in waiting)]
    sampling = sum(plan.samples * MILLISECONDS / 1000 * share**1.35 + SCORE_SECONDS for share in tokens)
    training = sum(run.seconds for run in missing) / workers
    return (
        f"{NAME}: {len(NETWORKS)} networks at {len(plan.sizes)} sizes, {plan.samples} samples each; "
        f"{len(plan.cases) - len(waiting)} of {len(plan.cases)} measured\n"
        f"cost: {training / 60:.0f} minutes for {len(missing)} trainings whose run folders are gone, {workers} at a "
        f"time, and {sampling / 60:.0f} minutes of sampling and scores (estimated)"
    )


def run_sizes(plan: Plan, data: Path, results: Path, work: Path, mixers: Path, workers: int) -> list[str]:
    """Measure what is missing, in networks from `mixers`, the mixer study's run folders, or trained in `work`.

    Returns the failed trainings. `UserError` where the images are missing that trainings and scores need.
    """
    problem = why_no_scores()
    scorable = problem is None
    waiting = [case for case in plan.cases if not is_measured(plan, case, results, scorable)]
    missing = [
        run
        for run in {case.run.name: case.run for case in waiting}.values()
        if folder_of(run, mixers, work) is None
    ]
    print(describe(plan, missing, waiting, max(1, workers)), flush=True)
    if (missing or (waiting and scorable)) and not data.is_dir():
        raise UserError(no_images(NAME, data))
    check_same_images(missing, results)
    for run in missing:
        if is_done(run, results):
            print(f"the run folder of {run.name} is gone: it is trained again")
            run.result_path(results).unlink()
    failed = run_all(missing, results, work, workers)
    if waiting and not scorable:
        print(f"left out, the scores of samples: {problem}")
    for case in waiting:
        if (folder := folder_of(case.run, mixers, work)) is not None:
            print(f"samples of {case.name}", flush=True)
            write_json(case.path(results), measure(plan, case, folder, results, scorable))
    return failed


def why_no_scores() -> str | None:
    """Why samples cannot be scored; None where they can."""
    try:
        find_efficientnet()
    except UserError as error:
        return str(error)
    return None


def is_measured(plan: Plan, case: Case, results: Path, scorable: bool) -> bool:
    """Whether a case is done, with its scores where these can be had, and its picture."""
    record = load_json(case.path(results))
    current = record is not None and record["settings"] == plan.settings(case)
    return current and case.picture(results).exists() and not (scorable and record["scores"] is None)


def folder_of(run: Run, *works: Path) -> Path | None:
    """The first run folder with a checkpoint of the training's last step; None where there is none."""
    last = run.settings["config"]["train"]["steps"]
    for work in works:
        found = latest_checkpoint(work / run.folder)
        if found is not None and int(found.name.removeprefix("step_")) == last:
            return work / run.folder
    return None


def measure(plan: Plan, case: Case, run_dir: Path, results: Path, scorable: bool) -> dict[str, Any]:
    """Draw a case's samples, leave its picture, and score them where that can be done."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    start = time.monotonic()
    images, labels = draw(case, run_dir, plan.samples, accelerator.device)
    seconds = time.monotonic() - start
    classes = len(np.unique(labels))
    rows = min(SHOWN, len(images) // classes)  # labels go round the classes: a column for each
    save_grid(images[: rows * classes], rows, case.picture(results))
    scores = None
    if scorable:
        held_out = str(Path(case.run.data) / "test")
        scores = {
            view: score(seen, held_out, accelerator) for view, seen in views(images, plan.study.size).items()
        }
    return {
        "settings": plan.settings(case),
        "scores": scores,
        "seconds": round(seconds, 1),
        **environment(),
    }


def draw(case: Case, run_dir: Path, count: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Unguided samples (n, H, W, 3) uint8 of a case by the averaged weights, and their labels (n,)."""
    config = read_config(case.run, run_dir)
    model, _, _ = load_model(run_dir, device=device)
    indices = torch.arange(count)
    labels = keyed_labels(indices, model.num_classes, seed=config.train.seed, balanced=True)
    settings = sample_settings(config, 1.0)
    del settings["labels"]
    batches = generate(
        at_size(model, case.size).eval(),
        config,
        create_autoencoder(None, device),
        labels,
        indices,
        **settings,
        size=case.size,
        batch_size=config.sample.batch_size,
        device=device,
    )
    return torch.cat([images for _, images in batches]).numpy(), labels.numpy()


class Positions(nn.Module):
    """Adds a table of positions to tokens (B, h, w, C)."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table  # (B, h, w, C)


def at_size(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A model for pictures of height and width `size`: itself, or a copy with interpolated positions.

    A model with positions takes the size that it was trained on alone. In the copy the positions of this size are added
    right after the patches are embedded, and the model's own are gone.
    """
    own = model.embed_position
    if own is None:
        return model
    if own.kind != "sincos":
        raise ValueError(f"position is {own.kind!r}; expected 'sincos', which has values between the places")
    patch = model.settings.patch_size
    table = rescaled_positions(own.table.shape[0], (size[0] // patch, size[1] // patch), own.table.shape[2])
    copied = copy.deepcopy(model)
    copied.embed_patches = nn.Sequential(copied.embed_patches, Positions(table.to(own.table)))
    copied.embed_position = None
    return copied


def rescaled_positions(trained: int, grid: tuple[int, int], width: int) -> torch.Tensor:
    """Sin-cos positions (h, w, C) float64 of a grid whose sides run over the coordinates of `trained` places.

    Place i of n stands at i * trained / n, for each axis alone: how diffusion transformers with such positions are
    taken to other sizes (PixArt, and diffusers' `get_2d_sincos_pos_embed` by its `base_size`).
    """
    rows, columns = (
        sinusoids(torch.arange(count, dtype=torch.float64) * trained / count, width // 2) for count in grid
    )  # (h, C / 2), (w, C / 2)
    height, across = grid
    return torch.cat(
        [rows[:, None].expand(height, across, -1), columns[None].expand(height, across, -1)], dim=2
    )


def views(images: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """What is scored of pictures (n, H, W, 3), as (n, size, size, 3) uint8: each whole, shrunk; and its middle.

    The first asks whether the picture is one scene, the second whether a window of the size trained on looks real.
    Of pictures of that very size both are the pictures, and one is given.
    """
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return {"whole": images}
    top, left = (height - size) // 2, (width - size) // 2
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # (n, 3, H, W)
    x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
    whole = x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return {"whole": whole, "middle": images[:, top : top + size, left : left + size]}


def score(images: np.ndarray, held_out: str, accelerator: Accelerator) -> dict[str, float]:
    """KID of images (n, H, W, 3) uint8 to the held-out ones, and what real images have among themselves."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.npz"
        # without labels: class accuracy needs the features of all images trained on
        np.savez(file, arr_0=images)
        scores = score_files(file, held_out, Options(features="efficientnet"), accelerator)
    return {key: scores[key] for key in ("kid", "kid_real_halves")}
