"""Distillation: beside its own loss a network learns what a trained one predicts, and what its mixers give.

The teacher is asked what the network is asked: the same x_t, t and y, under the same autocast, without dropout of its
own. It is whole on every process, without gradients, and no part of a checkpoint.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gspn_dit.checkpoint import find_checkpoint, load_model, read_state, weights_name
from gspn_dit.config import Config, load_config
from gspn_dit.data import Dataset, describe_dataset
from gspn_dit.diffusion import Diffusion
from gspn_dit.diffusion.auxiliary import Terms
from gspn_dit.diffusion.flow import squared_error
from gspn_dit.errors import UserError
from gspn_dit.latents.normalization import difference
from gspn_dit.models.settings import ModelSettings, resolve_settings
from gspn_dit.training.resume import show

WEIGHT = 0.5
"""Of either term, unless config says otherwise: that of both in the text-to-image training of arXiv 2501.12381."""
FITS = ("in_channels", "input_size", "num_classes")
"""Settings of a network that its teacher's must equal."""
BLOCKS_FIT = ("width", "block_count", "patch_size")
"""Settings of a network that its teacher's must equal for their mixers' outputs to be compared."""
LEAST = 1e-8
"""Mean square of a teacher's output below which it counts as this: that of an untrained one may be zero."""


@dataclass(frozen=True)
class Teacher:
    """Weights that are found to fit, not yet loaded."""

    folder: Path
    hash: str
    weight: float
    blocks_weight: float

    def __str__(self) -> str:
        blocks = f"mixers' outputs {self.blocks_weight:g}" if self.blocks_weight else "no mixers' outputs"
        return f"teacher {self.folder}: prediction {self.weight:g}, {blocks}"


def find_teacher(config: Config, settings: ModelSettings, dataset: Dataset) -> Teacher | None:
    """The teacher that a config names for a network of these settings, with its weights in the loss; None for none.

    Raises `UserError` for one that is missing, or is of another objective, other classes or latents made otherwise.
    """
    train = config.train
    if train.teacher is None:
        return None
    try:
        folder = find_checkpoint(train.teacher)
    except UserError as error:
        raise UserError(f"train.teacher: {error}") from error
    # First, as it says what is no diffusion model.
    objective = load_config(folder / "config.yaml").diffusion.objective
    state = read_state(folder)
    theirs = resolve_settings(**state["model"])
    check_fits(folder, objective, theirs, settings, config)
    check_data(folder, state.get("dataset", {}), describe_dataset(dataset))
    differing = [key for key in BLOCKS_FIT if getattr(theirs, key) != getattr(settings, key)]
    if differing and train.teacher_blocks_weight:
        key = differing[0]
        raise UserError(
            f"train.teacher_blocks_weight: expected 0 or null: train.teacher {folder} has {key} "
            f"{getattr(theirs, key)}, the network {getattr(settings, key)}"
        )
    default = {"weight": WEIGHT, "blocks_weight": 0.0 if differing else WEIGHT}
    given = {"weight": train.teacher_weight, "blocks_weight": train.teacher_blocks_weight}
    weights = {key: default[key] if value is None else value for key, value in given.items()}
    return Teacher(folder, state["files"][weights_name(state, ema=True)]["sha256"], **weights)


def check_fits(
    folder: Path, objective: str, theirs: ModelSettings, settings: ModelSettings, config: Config
) -> None:
    """Raise `UserError` for a teacher that predicts something else, or cannot be asked the same."""
    expected = {"objective": config.diffusion.objective, **{key: getattr(settings, key) for key in FITS}}
    found = {"objective": objective, **{key: getattr(theirs, key) for key in FITS}}
    for key, value in expected.items():
        if found[key] != value:
            raise UserError(
                f"train.teacher {folder} has {key} {found[key]}; expected {value}, as the network to be trained"
            )


def check_data(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise `UserError` for a teacher of other classes, other latents or digits that are held out now."""
    names = theirs.get("class_names", ours["class_names"])
    for name, expected in zip(names, ours["class_names"], strict=True):
        if name != expected:
            raise UserError(
                f"train.teacher {folder} was trained on other classes: {show(name)} where the data has "
                f"{show(expected)}"
            )
    if theirs and (how := difference(theirs, ours)):
        raise UserError(
            f"train.teacher {folder} was trained {how} than those of data.path: give one trained on the same latents"
        )
    if theirs and "digits" in ours and "digits" not in theirs:
        raise UserError(
            f"train.teacher {folder} was trained without data.tuning, on digits that are held out now"
        )


class Distillation:
    """The losses of an objective with those of a teacher."""

    def __init__(self, diffusion: Diffusion, teacher: Teacher, student: nn.Module, *, compile: bool) -> None:
        """`student` is on its device, and unwrapped: its mixers are listened to."""
        self.diffusion, self.teacher = diffusion, teacher
        device = next(student.parameters()).device
        self.network, _, _ = load_model(teacher.folder, device=device)
        self.network.requires_grad_(False)
        if compile:
            self.network.compile()
        networks = (student, self.network) if teacher.blocks_weight else ()
        self.heard = [MixerOutputs(network) for network in networks]

    def losses(self, model: nn.Module, x0: torch.Tensor, *inputs: torch.Tensor, **more: Any) -> Terms:
        """The objective's losses, "loss" with the teacher's terms, and these by themselves, each (B,) float32.

            teacher         squared error of the prediction, of all its channels (ddpm: the variance's too)
            teacher_blocks  for each block |s - r|^2 / |r|^2, s and r the outputs of the mixers of student and teacher,
                            sums over tokens and channels of an image; the mean over the blocks. So blocks count alike
                            whatever their scale, and outputs of zero have a loss of 1.

        Args are those of the objective's own `losses`.
        """
        asked = {}

        def student(
            *inputs: torch.Tensor, **options: Any
        ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            with self.listening(0) as asked["outputs"]:
                predicted = model(*inputs, **options)
            asked["inputs"] = inputs
            asked["prediction"] = predicted[0] if isinstance(predicted, tuple) else predicted
            return predicted

        terms = self.diffusion.losses(student, x0, *inputs, **more)
        with torch.no_grad(), self.listening(1) as outputs:
            prediction = self.network(*asked["inputs"])
        added = {}
        if self.teacher.weight:
            added["teacher"] = squared_error(asked["prediction"].float(), prediction.float())
            terms["loss"] = terms["loss"] + self.teacher.weight * added["teacher"]
        if self.teacher.blocks_weight:
            pairs = zip(asked["outputs"], outputs, strict=True)
            errors = [relative_error(mine.float(), theirs.float()) for mine, theirs in pairs]
            added["teacher_blocks"] = torch.stack(errors).mean(0)
            terms["loss"] = terms["loss"] + self.teacher.blocks_weight * added["teacher_blocks"]
        return terms | added

    @contextlib.contextmanager
    def listening(self, number: int) -> Iterator[list[torch.Tensor]]:
        """The outputs of the mixers of student (0) or teacher (1), there after the context; none without weight."""
        outputs: list[torch.Tensor] = []
        if not self.heard:
            yield outputs
            return
        heard = self.heard[number]
        heard.active = True
        try:
            yield outputs
        finally:
            heard.active = False
        outputs += [heard.outputs.pop(place) for place in range(heard.count)]


class MixerOutputs:
    """What the mixers of a network give, (B, H, W, C) each, in a forward pass while `active`.

    Not in the recomputation of a block in the backward, nor in validation and sampling.
    """

    def __init__(self, network: nn.Module) -> None:
        self.active = False
        self.outputs: dict[int, torch.Tensor] = {}
        mixers = [module.mixer for module in network.modules() if hasattr(module, "mixer")]
        self.count = len(mixers)
        for place, mixer in enumerate(mixers):
            mixer.register_forward_hook(partial(self.keep, place))

    def keep(self, place: int, mixer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self.active:
            self.outputs[place] = output


def relative_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a - b|^2 / |b|^2 of each image (B,), for (B, H, W, C)."""
    return squared_error(a, b) / b.square().mean(dim=(1, 2, 3)).clamp(min=LEAST)
