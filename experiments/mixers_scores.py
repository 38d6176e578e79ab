"""What finals and recipes draw: scores of samples, and a picture of the first of the finals'.

Measured on the run folders of the mixer's study while they are there; each network's result is kept as JSON.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from experiments.mixers_plan import FINALS, INGREDIENTS, LONGER_NAMES, Study, final_kind
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


@dataclass(frozen=True)
class Scored:
    """Samples of a run that are scored."""

    run: Run
    internal_guidance: float = 1.0

    @property
    def variant(self) -> str:
        return self.run.variant + ("" if self.internal_guidance == 1 else "-guided")

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.run.seed}"

    def path(self, results: Path) -> Path:
        return results / "scores" / f"{self.name}.json"


def scored_of(study: Study, runs: list[Run]) -> list[Scored]:
    """Of the study's runs the finals on the first grid, the longer ones, and the recipes: guided by their head too."""
    prefix = final_kind(study, next(iter(study.grids)))
    guidance = {f"{prefix}-{design.name}": 1.0 for design in FINALS}
    guidance |= {f"longer-{name}": 1.0 for name in LONGER_NAMES}
    guidance |= {f"recipe-{design.name}": design.internal_guidance for design in INGREDIENTS}
    return [
        Scored(run, scale)
        for run in runs
        if run.variant in guidance
        for scale in sorted({1.0, guidance[run.variant]})
    ]


def settings_of(study: Study, scored: Scored) -> dict[str, Any]:
    """What decides the scores, but for the seed's noise."""
    config = read_config(scored.run, Path("unused"))
    settings = sample_settings(config, 1.0, scored.internal_guidance)
    return {"run": scored.run.key, "samples": study.samples, **settings}


def measure(study: Study, runs: list[Run], results: Path, work: Path) -> None:
    """Score what is to be scored, whose run folder is there and that is not scored yet."""
    waiting = [
        scored
        for scored in scored_of(study, runs)
        if scored.run.result_path(results).exists()
        and (work / scored.run.folder).is_dir()
        and not is_measured(scored.path(results), settings_of(study, scored))
    ]
    if not waiting:
        return
    try:
        find_efficientnet()
    except UserError as error:
        print(f"left out, the scores of samples: {error}")
        return
    for scored in waiting:
        print(f"samples of {scored.name}", flush=True)
        record = score_run(study, scored, work / scored.run.folder, results)
        write_json(scored.path(results), record)


def score_run(study: Study, scored: Scored, run_dir: Path, results: Path) -> dict[str, Any]:
    """Scores of samples against the held-out images; a final of the first seed leaves its picture in results/."""
    run = scored.run
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    config = read_config(run, run_dir)
    model, _, _ = load_model(run_dir, device=accelerator.device)
    decoder = create_autoencoder(None, accelerator.device)
    images, labels = draw(
        model, config, decoder, study.samples, 1.0, accelerator.device, scored.internal_guidance
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.npz"
        # without labels: class accuracy needs the features of all images trained on
        np.savez(file, arr_0=images)
        held_out = str(Path(run.data) / "test")
        scores = score_files(file, held_out, Options(features="efficientnet"), accelerator)
    if run.seed == study.seeds[0] and not run.variant.startswith("recipe-"):
        save_grid(
            by_class(images, labels),
            rows=len(np.unique(labels)),
            path=results / "samples" / f"{run.name}.png",
        )
    kept = {key: scores[key] for key in KEPT}
    return {
        "settings": settings_of(study, scored),
        "network": scores["settings"]["network"],
        **kept,
        **environment(),
    }


def by_class(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first samples of every class, class after class."""
    each = min(SHOWN, np.bincount(labels)[np.unique(labels)].min())
    return np.concatenate([images[labels == label][:each] for label in np.unique(labels)])
