"""Whether a run may continue with a config: what decides its numbers must not have changed."""

from pathlib import Path
from typing import Any

from gspn_dit import schema
from gspn_dit.checkpoint import read_state
from gspn_dit.data import Dataset, describe_dataset
from gspn_dit.errors import UserError

HARMLESS = {
    "run_dir",
    "memory_presets",
    "model.checkpoint_activations",
    "data.path",
    "data.autoencoder",
    "data.validation",
    "data.workers",
    "train.steps",
    "train.micro_batch",
    "train.memory",
    "train.checkpoint_activations",
    "train.checkpoint_every",
    "train.keep_last",
    "train.log_every",
    "train.sample_every",
    "train.validate_every",
    "train.validation_images",
    "train.compile",
    "train.teacher",
    "train.tensorboard",
    "train.wandb",
}
"""Keys that may change within a run, beside those of `sample` and `eval`; of a teacher the weights must not."""


def check_same_run(folder: Path, before: Any, now: Any) -> None:
    """Raise `UserError` naming the first key that checkpoint `folder` was trained with otherwise.

    The two are configs of one kind.
    """
    old = dict(schema.flatten(before))
    for key, value in schema.flatten(now):
        harmless = key in HARMLESS or key.startswith(("sample.", "eval."))
        if not harmless and value != old[key]:
            raise UserError(
                f"{key} is {show(value)}, but {folder} was trained with {show(old[key])}: "
                "set it back, or choose another run_dir"
            )


def check_same_data(folder: Path, before: dict[str, Any], dataset: Dataset) -> None:
    """Raise `UserError` when the data set is not the one that checkpoint `folder` was trained on.

    What an older checkpoint does not hold is not compared, nor is the hash of the files' contents where too
    many images to keep in memory are not all read.
    """
    now = describe_dataset(dataset)
    for key, value in before.items():
        if key in now and now[key] != value:
            raise UserError(
                f"the data has {key} {show(now[key])}, but {folder} was trained with {show(value)}"
            )


def check_same_teacher(folder: Path, weights: str | None) -> None:
    """Raise `UserError` unless checkpoint `folder` was trained with a teacher of these weights, a hash; None for none.

    Where the teacher lies may change, and a run that teaches must not train on meanwhile.
    """
    before = read_state(folder).get("teacher")
    if before != weights:
        old, now = (f"weights {hash[:12]}" if hash else "no teacher" for hash in (before, weights))
        raise UserError(
            f"train.teacher gives {now}, but {folder} was trained with {old}: set it back (a checkpoint of the "
            "teacher may be given), or choose another run_dir"
        )


def show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
