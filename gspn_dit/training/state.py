"""The state of a training in its checkpoints: written from all processes, and read back."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gspn_dit.checkpoint import Writer, checkpoint_name, read_state
from gspn_dit.checks import not_finite
from gspn_dit.config import save_config
from gspn_dit.models.weights import load_weights, read_tensors, save_tensors, shard_like, whole
from gspn_dit.training.ema import EMA

MOMENTS_FILE = "optimizer.safetensors"


def save_checkpoint(
    run_dir: str | Path,
    *,
    config: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    state: dict[str, Any],
    main: bool = True,
) -> str | None:
    """Write a checkpoint for `state["step"]`; return what went wrong, None when all went well.

    Every process must call this, as it gathers shards; the `main` one writes. A failure to write (full disk), or
    weights that are not finite, leaves no trace and raises nothing, so that the processes stay together.
    """
    folder = Path(run_dir) / "checkpoints" / checkpoint_name(state["step"])
    writer = Writer(folder) if main else None
    for name, gather in (
        ("model.safetensors", lambda: model_tensors(model)),
        (MOMENTS_FILE, lambda: moments_of(optimizer, model.named_parameters())),
        ("ema.safetensors", lambda: model_tensors(model)),
    ):
        with ema.swapped() if name.startswith("ema") else contextlib.nullcontext():
            tensors = gather()
            if writer:
                broken = not_finite(tensors)
                if broken and writer.problem is None:
                    writer.problem = f"{name.split('.')[0]}: {broken} is not finite"
                writer.attempt(name, lambda path, tensors=tensors: save_tensors(tensors, path))
    if not writer:
        return None
    writer.attempt("config.yaml", lambda path: save_config(config, path))
    return writer.finish(state)


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def moments_of(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, torch.Tensor]:
    """The optimiser's moments under the parameters' names: exp_avg.NAME and so on."""
    return {
        f"{moment}.{name}": whole(tensor)
        for name, parameter in parameters
        for moment, tensor in optimizer.state[parameter].items()
        if moment != "step"
    }


def load_moments(
    folder: Path, optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], step: int
) -> None:
    """Fill an optimiser, whose parameters have these names, from a checkpoint of `step`."""
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in read_tensors(folder / MOMENTS_FILE).items():
        moment, name = key.split(".", 1)
        moments.setdefault(name, {})[moment] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = optimizer.state_dict()  # which numbers parameters by their place in the groups
    groups["state"] = {
        index: {moment: shard_like(tensor, parameter) for moment, tensor in moments[names[parameter]].items()}
        | {"step": torch.tensor(float(step))}
        for index, parameter in enumerate(parameters)
    }
    optimizer.load_state_dict(groups)


@torch.no_grad()
def load_training_state(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA
) -> dict[str, Any]:
    """Fill model, optimiser and EMA from a checkpoint; return its state.json."""
    state = read_state(folder)
    load_weights(model, folder / "ema.safetensors")
    ema.copy_from_model()
    load_weights(model, folder / "model.safetensors")
    names = {parameter: name for name, parameter in model.named_parameters()}
    load_moments(folder, optimizer, names, state["step"])
    return state
