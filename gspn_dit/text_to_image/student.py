"""The student of a distillation: a teacher's UNet with the scan, what of it trains, and its checkpoints.

A checkpoint holds what trains alone; the rest is the teacher's, whose hash it keeps.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gspn_dit.checkpoint import Writer, checkpoint_name, find_checkpoint, read_state
from gspn_dit.checks import not_finite
from gspn_dit.config import save_config
from gspn_dit.errors import UserError
from gspn_dit.latents.autoencoder import hash_weights
from gspn_dit.models.weights import read_tensors, save_tensors
from gspn_dit.random import WEIGHTS, seed_of
from gspn_dit.text_to_image.distil_config import DistilConfig, load_distil_config
from gspn_dit.text_to_image.replacement import (
    GSPNUNet2DConditionModel,
    replace_self_attention,
    scan_modules,
)
from gspn_dit.text_to_image.system import System, load_system
from gspn_dit.training.state import MOMENTS_FILE, load_moments, moments_of

WEIGHTS_FILE = "student.safetensors"


def make_student(teacher: nn.Module, config: DistilConfig) -> GSPNUNet2DConditionModel:
    """The student, its new weights keyed by train.seed; it shares with the teacher what does not train.

    `UserError` for a teacher that cannot have one.
    """
    shared = {id(tensor): tensor for tensor in (*teacher.parameters(), *teacher.buffers())}
    unet = copy.deepcopy(teacher, shared)
    torch.manual_seed(seed_of(WEIGHTS, config.train.seed))
    settings = {name: getattr(config.student, name) for name in ("rank", "segment", "keep_qkv")}
    try:
        replace_self_attention(unet, **settings)
    except ValueError as error:
        raise UserError(f"teacher {config.teacher}: {error}") from error
    for module in scan_modules(unet).values():
        for layer in (
            module.to_out if not module.keeps_qkv else (*module.to_out, module.to_q, module.to_k, module.to_v)
        ):
            for name, parameter in list(layer.named_parameters()):
                setattr(layer, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        trained = [module] if config.student.trained == "modules" else module.new_modules()
        for part in trained:
            part.requires_grad_(True)
        module.merge.requires_grad_(True)
    return unet


def trained_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """What of a student trains, by name."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def save_student(
    config: DistilConfig, unet: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> str | None:
    """Write the checkpoint of `state["step"]`; what went wrong, None when all went well."""
    writer = Writer(Path(config.run_dir) / "checkpoints" / checkpoint_name(state["step"]))
    parameters = trained_parameters(unet)
    weights = {name: parameter.detach().cpu() for name, parameter in parameters.items()}
    moments = moments_of(optimizer, parameters.items())
    for name, tensors in ((WEIGHTS_FILE, weights), (MOMENTS_FILE, moments)):
        broken = not_finite(tensors)
        if broken and writer.problem is None:
            writer.problem = f"{broken} is not finite"
        writer.attempt(name, lambda path, tensors=tensors: save_tensors(tensors, path))
    writer.attempt("config.yaml", lambda path: save_config(config, path))
    return writer.finish(state)


@torch.no_grad()
def load_student(
    folder: Path, unet: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Fill a student, and its optimiser where one is given, from a checkpoint; the checkpoint's state."""
    state = read_state(folder)
    parameters = trained_parameters(unet)
    weights = read_tensors(folder / WEIGHTS_FILE)
    for name in sorted(parameters.keys() | weights.keys()):
        shapes = [list(side[name].shape) if name in side else "none" for side in (parameters, weights)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{folder} is of another student: for {name} it has {shapes[1]}, expected {shapes[0]}"
            )
        parameters[name].copy_(weights[name])
    if optimizer is not None:
        names = {parameter: name for name, parameter in parameters.items()}
        load_moments(folder, optimizer, names, state["step"])
    return state


def load_distilled(run: str | Path, device: torch.device | str = "cpu") -> System:
    """The system of a run or checkpoint of a distillation: the teacher's with the student as its UNet.

    Raises `UserError` where it is none, or its teacher is not the one it was distilled from.
    """
    folder = find_checkpoint(run)
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{folder} is no checkpoint of a distillation: it has no {WEIGHTS_FILE}")
    config = load_distil_config(folder / "config.yaml")
    system = load_system(config.teacher, device)
    check_teacher(folder, read_state(folder), hash_weights(system.unet), config.teacher)
    system.unet = make_student(system.unet, config)
    load_student(folder, system.unet)
    system.unet.eval().requires_grad_(False)
    return system


def check_teacher(folder: Path, state: dict[str, Any], weights: str, name: str) -> None:
    """Raise `UserError` unless the teacher's UNet has the weights that a checkpoint was distilled from."""
    if state["teacher_hash"] != weights:
        raise UserError(
            f"teacher {name} has other weights (hash {weights[:12]}) than {folder} was distilled from "
            f"({state['teacher_hash'][:12]}): give that one"
        )
