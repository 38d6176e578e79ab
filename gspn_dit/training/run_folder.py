"""Whether a folder may become, or go on as, that of a run: nothing of the user's is overwritten there."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from gspn_dit.checkpoint import RECORDS, checkpoints
from gspn_dit.config import Config, TrainingConfig, load_config, to_yaml
from gspn_dit.errors import UserError
from gspn_dit.files import existing, refuse_inputs


def check_run_dir(config: Config) -> None:
    """Raise `UserError` for a run_dir that is an input, lies in one, or holds what is not of a training."""
    run_dir = Path(config.run_dir)
    inputs = [("data.path", config.data.path), ("data.autoencoder", config.data.autoencoder)]
    for name, source in (("init_from", config.train.init_from), ("teacher", config.train.teacher)):
        if not source:
            continue
        held = Path(source) / "checkpoints"
        inputs.append((f"train.{name}", held if held.is_dir() else source))
        if held.is_dir() and run_dir.exists() and run_dir.samefile(source):
            raise UserError(f"run_dir {run_dir} is train.{name} itself: give a new run another folder")
    check_folder(run_dir, inputs, load_config)


def check_folder(
    run_dir: Path, inputs: Iterable[tuple[str, str | Path | None]], load: Callable[[Path], Any]
) -> None:
    """Raise `UserError` for a run_dir that is one of the inputs, or holds what is not of a training.

    `load` reads a config of the run's kind.
    """
    refuse_inputs("run_dir", run_dir, [(name, path) for name, path in inputs if path])
    for name, what in (("state.json", "a released model or a checkpoint"), ("manifest.json", "latents")):
        if (run_dir / name).exists():
            raise UserError(f"run_dir {run_dir} holds {what} ({name}): choose another folder")
    if begun(run_dir, load):
        return
    for name in RECORDS:
        if (run_dir / name).exists():
            raise UserError(
                f"run_dir {run_dir} holds {name} and no run: training would overwrite it; choose another folder"
            )


def begun(run_dir: Path, load: Callable[[Path], Any]) -> bool:
    """Whether a folder is that of a run: one with checkpoints or metrics, or killed before it had any."""
    if checkpoints(run_dir) or (run_dir / "metrics.jsonl").exists():
        return True
    written = run_dir / "config.yaml"
    try:
        return written.read_text(encoding="utf-8") == to_yaml(load(written))
    except (OSError, UserError, UnicodeDecodeError, yaml.YAMLError):
        return False


def check_room(run_dir: Path, parameters: int, train: TrainingConfig, step: int) -> str | None:
    """A warning where the disk will fill up before the end of a run; `UserError` where no checkpoint fits at all.

    A checkpoint has the weights, their average and AdamW's two moments, in float32.
    """
    size, there = 16 * parameters, len(checkpoints(run_dir))
    to_come = (train.steps - step) // (train.checkpoint_every or train.steps) + 1
    needed = max(
        1, min(train.keep_last + 1, there + to_come) - there
    )  # the oldest goes after the newest is there
    free = shutil.disk_usage(existing(run_dir)).free
    if step >= train.steps or free >= needed * size:
        return None
    room = f"{needed} more checkpoints of {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
    if free < size:
        raise UserError(
            f"run_dir {run_dir}: the run needs room for {room}: free some, or choose another disk"
        )
    return f"the run will need room for {room}: free some, or lower train.keep_last"
