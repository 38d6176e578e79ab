"""What a run shows: sample grids while it trains; final.png, loss.png and the demo's scores at its end."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gspn_dit.checkpoint import load_model
from gspn_dit.config import Config
from gspn_dit.files import replacing
from gspn_dit.metrics import plot_loss


def grid_classes(config: Config, num_classes: int) -> list[int]:
    """The classes of a grid: those of the config, or ten evenly spaced."""
    if config.sample.classes is not None:
        return list(config.sample.classes)
    rows = min(10, num_classes)
    return [row * num_classes // rows for row in range(rows)]


def save_samples(model: nn.Module, config: Config, path: Path | None, device: torch.device) -> None:
    """Draw a grid with a row per class as `config.sample` says; write it unless `path` is None."""
    from gspn_dit.autoencoder import create_autoencoder
    from gspn_dit.diffusion import default_sampler
    from gspn_dit.sampling import generate, save_grid

    settings = config.sample
    classes = grid_classes(config, model.num_classes)
    labels = torch.tensor(classes).repeat_interleave(settings.per_class)
    batches = generate(
        model,
        config,
        create_autoencoder(config.data.autoencoder, device),
        labels,
        torch.arange(len(labels)),
        seed=config.train.seed,
        sampler=settings.sampler or default_sampler(config.diffusion.objective),
        steps=settings.steps,
        cfg_scale=settings.cfg_scale,
        cfg_interval=settings.cfg_interval,
        batch_size=settings.batch_size,
        device=device,
        progress=False,
    )
    images = torch.cat([torch.as_tensor(images) for _, images in batches])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_grid(images, len(classes), path)


def finish_run(config: Config, device: torch.device, redo: bool, report: Callable[[str], None]) -> None:
    """Make the results of a finished run from its last checkpoint; those already there only when `redo`."""
    run_dir = Path(config.run_dir)
    report(f"loss curve: {plot_loss(run_dir)}")
    final = run_dir / "samples" / "final.png"
    scores = run_dir / "scores.json"
    wants_scores = config.data.kind == "mnist" and config.eval.samples > 0
    model, _, _ = load_model(run_dir, device=device)
    if redo or not final.exists():
        save_samples(model, config, final, device)
    report(f"samples: {final}")
    if wants_scores and (redo or not scores.exists()):
        score(model, config, scores, device)
    if wants_scores:
        from gspn_dit.evaluation import format_table

        report(format_table(json.loads(scores.read_text())))


def score(model: nn.Module, config: Config, path: Path, device: torch.device) -> None:
    """Score a model of digits and write the numbers as JSON."""
    from gspn_dit.autoencoder import create_autoencoder
    from gspn_dit.evaluation import score_demo

    autoencoder = create_autoencoder(config.data.autoencoder, device)
    scores = score_demo(model, config, autoencoder, device, path.parent)
    with replacing(path) as file:
        file.write(json.dumps(scores, indent=1).encode())
