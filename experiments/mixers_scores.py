"""What the finals draw: scores of unguided samples, and a picture of the first of them.

Measured on the run folders of the mixer's study while they are there; each network's result is kept as JSON.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from experiments.mixers_plan import FINALS, Study, final_kind
from experiments.plan import Run
from experiments.train_run import environment, is_measured, read_config, write_json
from gspn_dit.checkpoint import load_model
from gspn_dit.errors import UserError
from gspn_dit.evaluation.demo import draw, sample_settings
from gspn_dit.evaluation.extractors import find_efficientnet
from gspn_dit.evaluation.scores import Options, score_files
from gspn_dit.latents.autoencoder import create_autoencoder
from gspn_dit.sampling.grids import save_grid

KEPT = ("kid", "kid_real_halves", "fid", "fid_real_halves")
"""Of what `score_files` finds, what the report may show."""
SHOWN = 8
"""Samples of a class in the picture."""


def score_path(results: Path, run: Run) -> Path:
    return results / "scores" / f"{run.name}.json"


def settings_of(study: Study, run: Run) -> dict[str, Any]:
    """What decides the scores, but for the seed's noise."""
    config = read_config(run, Path("unused"))
    return {"run": run.key, "samples": study.samples, **sample_settings(config, 1.0)}


def measure(study: Study, runs: list[Run], results: Path, work: Path) -> None:
    """Score every final of the first grid whose run folder is there and that is not scored yet."""
    prefix = final_kind(study, next(iter(study.grids)))
    finals = {f"{prefix}-{design.name}" for design in FINALS}
    waiting = [
        run
        for run in runs
        if run.variant in finals
        and run.result_path(results).exists()
        and (work / f"{run.name}-{run.key}").is_dir()
        and not is_measured(score_path(results, run), settings_of(study, run))
    ]
    if not waiting:
        return
    try:
        find_efficientnet()
    except UserError as error:
        print(f"left out, the scores of samples: {error}")
        return
    for run in waiting:
        print(f"samples of {run.name}", flush=True)
        record = score_run(study, run, work / f"{run.name}-{run.key}", results)
        write_json(score_path(results, run), record)


def score_run(study: Study, run: Run, run_dir: Path, results: Path) -> dict[str, Any]:
    """Scores of a network's samples against the held-out images; the first seed's picture goes to results/."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    config = read_config(run, run_dir)
    model, _, _ = load_model(run_dir, device=accelerator.device)
    decoder = create_autoencoder(None, accelerator.device)
    images, labels = draw(model, config, decoder, study.samples, 1.0, accelerator.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.npz"
        np.savez(
            file, arr_0=images
        )  # without labels: class accuracy needs the features of all images trained on
        held_out = str(Path(run.data) / "test")
        scores = score_files(file, held_out, Options(features="efficientnet"), accelerator)
    if run.seed == study.seeds[0]:
        save_grid(
            by_class(images, labels),
            rows=len(np.unique(labels)),
            path=results / "samples" / f"{run.name}.png",
        )
    kept = {key: scores[key] for key in KEPT}
    return {
        "settings": settings_of(study, run),
        "network": scores["settings"]["network"],
        **kept,
        **environment(),
    }


def by_class(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first samples of every class, class after class."""
    each = min(SHOWN, np.bincount(labels)[np.unique(labels)].min())
    return np.concatenate([images[labels == label][:each] for label in np.unique(labels)])
