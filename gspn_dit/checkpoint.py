"""Checkpoints: folders of safetensors and JSON that are whole or absent, and models out of them.

    run_dir/checkpoints/step_00000200/
        model.safetensors  ema.safetensors  optimizer.safetensors
        config.yaml     the resolved config
        state.json      step, images seen, the model's settings, and size and SHA-256 of every other file

There is no random state to keep: every draw is a function of the seed and the image's number (see
gspn_dit/random.py).
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from gspn_dit.config import Config, load_config
from gspn_dit.errors import UserError
from gspn_dit.files import describe_file, sha256, sync_file, sync_folder
from gspn_dit.models.networks import create_model
from gspn_dit.models.weights import download, load_weights

FORMAT = 1
NAME = re.compile(r"step_(\d{8}|[1-9]\d{8,})")
"""What `checkpoint_name` gives. Whatever else lies beside the checkpoints is the user's: not read, not removed."""
LEFTOVER = re.compile(rf"\.tmp-(old-)?{NAME.pattern}")
RECORDS = (
    *("config.yaml", "metrics.jsonl", "loss.png", "tensorboard", "wandb", "wandb_id"),
    *("samples/final.png", "samples/final.json", "scores.json"),
    *(f"{name}.{end}" for name in ("guided", "unguided") for end in ("npz", "json")),
)
"""What a training writes in its folder, beside checkpoints/ and samples/step_*.png."""


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, newest first, damaged ones included."""
    found = (path for path in (Path(run_dir) / "checkpoints").glob("step_*") if NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def run_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint is of; of a release, its own folder."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def parts_of_run(checkpoint: Path) -> list[tuple[str, Path]]:
    """What no output of another command may replace: the checkpoints and records of a run, by name and path."""
    run = run_of(checkpoint)
    if run == checkpoint:
        return [("the release", checkpoint)]
    records = [run / name for name in RECORDS] + sorted((run / "samples").glob("step_*.png"))
    return [
        ("the run's checkpoints", checkpoint.parent),
        *(("a record of the run", path) for path in records),
    ]


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run whose files are all there in full length; None when there is none."""
    return next((folder for folder in checkpoints(run_dir) if damage(folder, contents=False) is None), None)


def kept_steps(run_dir: str | Path) -> int:
    """How many steps of a run its newest whole checkpoint keeps."""
    folder = latest_checkpoint(run_dir)
    return read_state(folder)["step"] if folder else 0


def newest_undamaged(run_dir: str | Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose contents are as written; the damaged newer ones are renamed and reported.

    `UserError` when there are checkpoints but none is whole: to begin anew is for the user to decide.
    """
    damaged = []
    for folder in checkpoints(run_dir):
        problem = damage(folder)
        if problem is None:
            for other, problem in damaged:
                report(f"{other} is damaged ({problem}): renamed to {set_aside(other).name}")
            return folder
        damaged.append((folder, problem))
    if damaged:
        folder, problem = damaged[0]
        raise UserError(
            f"no checkpoint in {folder.parent} is whole ({folder.name}: {problem}): "
            "restore one, or remove that folder to begin anew"
        )
    return None


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint so that it is none any more."""
    names = itertools.chain(
        [f"damaged_{folder.name}"], (f"damaged_{folder.name}_{n}" for n in itertools.count(2))
    )
    aside = next(path for name in names if not os.path.lexists(path := folder.with_name(name)))
    os.rename(folder, aside)
    return aside


def damage(folder: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None; `contents=False` compares the files' lengths only."""
    try:
        files = read_state(folder)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "state.json is missing or cut short"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, expected {expected['bytes']}"
        if contents and sha256(path) != expected["sha256"]:
            return f"{name} does not have the hash it was written with"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The state.json of a checkpoint."""
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


class Writer:
    """Writes a folder aside, and renames it when it is on the disk; after a failure it writes no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aside = folder.with_name(f".tmp-{folder.name}")
        self.files: dict[str, dict[str, Any]] = {}
        self.problem: str | None = None
        with self.noting_problems():
            clear_leftovers(folder.parent)
            self.aside.mkdir(parents=True)

    @contextlib.contextmanager
    def noting_problems(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            self.problem = " ".join(str(error).split())

    def attempt(self, name: str, write: Callable[[Path], None]) -> None:
        """Write one file with `write(path)`, unless one before it failed."""
        if self.problem:
            return
        path = self.aside / name
        with self.noting_problems():
            write(path)
            sync_file(path)
            self.files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}

    def finish(self, state: dict[str, Any]) -> str | None:
        """Add state.json and rename the folder to its name; return what went wrong, if anything did."""
        state = {"format": FORMAT, **state, "files": dict(self.files)}
        self.attempt("state.json", lambda path: path.write_text(json.dumps(state, indent=1)))
        if self.problem is None:
            with self.noting_problems():
                sync_folder(self.aside)
                remove(self.folder)
                os.rename(self.aside, self.folder)
                sync_folder(self.folder.parent)
        if self.problem:
            shutil.rmtree(self.aside, ignore_errors=True)
        return self.problem


def remove(folder: Path) -> None:
    """Delete a checkpoint; a kill on the way leaves no half of one under its name."""
    if os.path.lexists(folder):
        doomed = folder.with_name(f".tmp-old-{folder.name}")
        os.rename(folder, doomed)
        delete(doomed)


def delete(folder: Path) -> None:
    """Delete a folder; of a link to one, only the link."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed save or removal left behind."""
    for leftover in folder.glob(".tmp-*"):
        if LEFTOVER.fullmatch(leftover.name):
            with contextlib.suppress(OSError):
                delete(leftover)


def rotate(run_dir: str | Path, keep_last: int, step: int) -> None:
    """Remove all but the newest `keep_last` checkpoints, of those in full length; never that of `step`."""
    complete = [folder for folder in checkpoints(run_dir) if damage(folder, contents=False) is None]
    for folder in complete[keep_last:]:
        if folder.name != checkpoint_name(step):
            remove(folder)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a run, checkpoint folder or hub id stands for; `UserError` when it is none."""
    if not Path(path).exists():
        path = download(str(path))
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path} is {describe_file(path)}; expected a run folder, or one of its checkpoints (a folder too)"
        )
    if (path / "state.json").is_file():
        problem = damage(path)
        if problem:
            raise UserError(f"checkpoint {path} is damaged ({problem}); use another of {path.parent}")
        return path
    found = latest_checkpoint(path)
    if found is None:
        raise UserError(f"{path} holds no complete checkpoint; give a run folder or one of its checkpoints")
    for folder in itertools.takewhile(lambda folder: folder != found, checkpoints(path)):
        problem = damage(folder, contents=False)
        print(f"{folder} is damaged ({problem}): using {found.name}", file=sys.stderr)
    return found


def weights_file(folder: Path, state: dict[str, Any], ema: bool) -> Path:
    """The file that `weights_name` says; `UserError` when its contents are not as written."""
    path = folder / weights_name(state, ema)
    if sha256(path) != state["files"][path.name]["sha256"]:
        raise UserError(
            f"{path} is damaged (it does not have the hash it was written with): give another checkpoint"
        )
    return path


def weights_name(state: dict[str, Any], ema: bool) -> str:
    """The file of the averaged or the last weights; a release has the averaged ones under the hub's name."""
    if state.get("released"):
        if not ema:
            raise UserError("a release has the EMA weights alone: take the run itself for the others")
        return "model.safetensors"
    return "ema.safetensors" if ema else "model.safetensors"


def load_model(
    path: str | Path, *, ema: bool = True, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Config, dict[str, Any]]:
    """The trained model of a run or checkpoint folder, or hub id, in eval mode, with its config.

    The third result holds step, images_seen, ema (whether these are the averaged weights), path (of the
    checkpoint) and hash (SHA-256 of the weights' file). Raises `UserError` if `path` is neither, or damaged.
    """
    return load_network(path, create_model, load_config, ema=ema, device=device)


def load_network(
    path: str | Path,
    create: Callable[..., nn.Module],
    load: Callable[[Path], Any],
    *,
    ema: bool = True,
    device: str | torch.device = "cpu",
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """`load_model` for a kind of run: `create` builds its networks, `load` reads its configs and refuses others'."""
    folder = find_checkpoint(path)
    state = read_state(folder)
    config = load(folder / "config.yaml")
    weights = weights_file(folder, state, ema)
    model = create(**state["model"])
    load_weights(model, weights)
    info = {
        "step": state["step"],
        "images_seen": state["images_seen"],
        "ema": ema,
        "path": str(folder),
        "hash": state["files"][weights.name]["sha256"],
    }
    return model.to(device).eval(), config, info
