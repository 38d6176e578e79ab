"""What a run shows: sample grids while it trains; final.png, loss.png and the demo's scores at its end."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gspn_dit.checkpoint import load_model
from gspn_dit.config import Config
from gspn_dit.data import Dataset, describe_dataset
from gspn_dit.errors import UserError, require_packages
from gspn_dit.evaluation.demo import format_table, score_demo
from gspn_dit.files import cache_folder, check_output, check_output_folder, read_json, write_json
from gspn_dit.latents.autoencoder import Autoencoder, create_autoencoder, fit_decoder
from gspn_dit.sampling.grids import draw_grid, save_grid
from gspn_dit.training.log import import_wandb, plot_loss

Report = Callable[[str], None]


def open_decoder(
    config: Config, dataset: Dataset, device: torch.device, report: Report
) -> Autoencoder | None:
    """What decodes the run's samples; None, with a word about it, when the data set's own is not at hand.

    Raises `UserError` when it is the config that names one that cannot be had.
    """
    try:
        decoder = create_autoencoder(config.data.autoencoder or dataset.autoencoder, device)
        fit_decoder(decoder, describe_dataset(dataset), channels=dataset.channels, size=dataset.size)
        return decoder
    except UserError as error:
        if config.data.autoencoder:
            raise
        report(f"training without sample grids: {error}")
        return None


def check_tools(config: Config) -> None:
    """Raise `UserError` for what the end of a run needs and this machine lacks: known before the run, not after it."""
    check_output_folder("run_dir", config.run_dir)
    require_packages("matplotlib")
    if config.train.wandb:
        import_wandb()
    if config.sample.sampler == "dpm-solver++":
        require_packages("diffusers")
    if config.data.kind == "mnist" and config.eval.samples > 0:
        require_packages("torch_fidelity")
        check_output("the cache", cache_folder() / "digits.safetensors")


def finish_run(
    config: Config, decoder: Autoencoder | None, device: torch.device, redo: bool, report: Report
) -> None:
    """Make the results of a finished run from its last checkpoint; those made from it already only when `redo`.

    Each is kept with what it was made from: a run may go on to more steps, and be killed before its results.
    """
    run_dir = Path(config.run_dir)
    report(f"loss curve: {plot_loss(run_dir)}")
    if decoder is None:
        return
    model, _, info = load_model(run_dir, device=device)
    source = {"step": info["step"], "weights": info["hash"]}
    final = run_dir / "samples" / "final.png"
    record = final.with_suffix(".json")
    if redo or not final.exists() or read_json(record) != source:
        save_grid(*draw_grid(model, config, decoder, device), final)
        write_json(record, source)
    report(f"samples: {final}")
    if config.data.kind == "mnist" and config.eval.samples > 0:
        report(score(model, config, decoder, device, source, redo))


def score(
    model: nn.Module, config: Config, decoder: Autoencoder, device: torch.device, source: dict, redo: bool
) -> str:
    """The score table of a model of digits; scores.json keeps its numbers and `source`."""
    path = Path(config.run_dir) / "scores.json"
    scores = read_json(path)
    if redo or scores is None or not source.items() <= scores.items():
        scores = {**score_demo(model, config, decoder, device, path.parent), **source}
        write_json(path, scores)
    return format_table(scores)
