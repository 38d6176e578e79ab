"""A run as one folder or hub repository: its EMA weights in the hub's usual form, and what sampling needs.

    python -m gspn_dit.hub RUN FOLDER [--push ORG/NAME] [--limit MB]     release a run's EMA weights

A released folder also has the run's config.yaml and a state.json: `load_model`, and with it sample.py, takes
it or its hub id in place of a run; `sha256sum --check SHA256SUMS` in it says whether every file is as released.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gspn_dit import errors
from gspn_dit.checkpoint import find_checkpoint, load_model, read_state, run_of
from gspn_dit.config import Config, load_config, save_config
from gspn_dit.errors import UserError
from gspn_dit.files import (
    check_output_folder,
    claimed,
    home_path,
    read_json,
    refuse_inputs,
    sha256,
    sync_folder,
)
from gspn_dit.models.networks import from_pretrained
from gspn_dit.models.weights import (
    FILES,
    HASHES,
    WEIGHTS,
    card,
    is_hub_id,
    upload,
    write_text,
    write_weights,
)

__all__ = ["from_pretrained", "release"]

TRAINING = """
The averaged (EMA) weights, in float32, after {step:,} steps, {images_seen:,} images. Objective `{objective}`. Samples:

    python sample.py FOLDER_OR_HUB_ID {vae}--out grid.png
"""


def release(run: str | Path, folder: str | Path, limit: float | None = None) -> Path:
    """Write the EMA weights of a run to a folder that `from_pretrained`, sample.py and the hub take.

    The folder is new, empty, or that of an earlier release; `UserError` for another, or one within the run, and for
    weights of more than `limit` megabytes (10^6 bytes), before anything is written.
    """
    folder = Path(folder)
    checkpoint = find_checkpoint(run)
    refuse_inputs("FOLDER", folder, [("RUN", run), ("the run", run_of(checkpoint))])
    check_folder(folder)
    check_output_folder("FOLDER", folder)
    model, config, _ = load_model(run)
    check_size(model, run, limit)
    config = without_local_autoencoder(config)
    state = read_state(checkpoint)
    write_release(folder, model, config, state)
    return folder


def check_folder(folder: Path) -> None:
    """Raise `UserError` for a folder that holds something else: a release would overwrite it, or --push publish it."""
    state = folder / "state.json"
    if state.exists():
        content = read_json(state)
        if not (isinstance(content, dict) and content.get("released")):
            raise UserError(
                f"FOLDER {folder} holds a checkpoint, which a release would overwrite: give a new folder"
            )
        return
    for name in FILES:
        if (folder / name).exists():
            raise UserError(
                f"FOLDER {folder} holds {name}, which a release would overwrite: give a new folder"
            )
    others = sorted(path.name for path in folder.glob("[!.]*"))
    if others:
        raise UserError(f"FOLDER {folder} holds {others[0]}, which is of no release: give a new folder")


def check_size(model: nn.Module, run: str | Path, limit: float | None) -> None:
    """Raise `UserError` for weights of more than `limit` megabytes; None is no limit."""
    megabytes = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    if limit is not None and megabytes > limit:
        raise UserError(
            f"the EMA weights of {run} take {megabytes:.1f} MB; expected at most {limit:g} (--limit): "
            "release a smaller network, or raise the limit"
        )


def write_release(folder: Path, model: nn.Module, config: Config, state: dict[str, Any]) -> None:
    """Write the files of a release, whole before they are there: a kill leaves an earlier release or this one.

    `state` is that of a checkpoint; of weights that were not trained here it has their `origin`, a text for the card.
    """
    with claimed(folder), tempfile.TemporaryDirectory(prefix=".tmp-release-", dir=folder) as name:
        write_files(Path(name), model, config, state)
        for file in FILES:
            os.replace(Path(name) / file, folder / file)
        sync_folder(folder)


def write_files(folder: Path, model: nn.Module, config: Config, state: dict[str, Any]) -> None:
    """The files of a release, one after the other, their hashes last."""
    write_weights(model, folder)
    save_config(config, folder / "config.yaml")
    files = {name: (folder / name) for name in (WEIGHTS, "config.yaml")}
    state |= {
        "released": True,
        "window": [],
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()
        },
    }
    license = "other" if "origin" in state else "apache-2.0"
    write_text(folder / "README.md", card(model, training_text(config, state), license))
    write_text(folder / "state.json", json.dumps(state, indent=1))
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(set(FILES) - {HASHES})]
    write_text(folder / HASHES, "".join(lines))


def training_text(config: Config, state: dict[str, Any]) -> str:
    """How a run was trained and is sampled, for its card; of other weights, where they are from."""
    if "origin" in state:
        return f"\n{state['origin']}\n"
    vae = "--vae HUB_ID_OR_FOLDER " if needs_vae(config) else ""
    return TRAINING.format(objective=config.diffusion.objective, vae=vae, **state)


def without_local_autoencoder(config: Config) -> Config:
    """The config for others: a decoder in a folder of this machine is not named, and sample.py asks for --vae."""
    name = config.data.autoencoder
    if name is None or (is_hub_id(name) and not Path(name).exists()):
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, autoencoder=None))


def needs_vae(config: Config) -> bool:
    """Whether to sample takes a decoder that the config does not name."""
    return config.data.kind == "latents" and config.data.autoencoder is None


def main(argv: Sequence[str] | None = None) -> int:
    """Release a run; the exit status."""
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.hub",
        description="Write a run's EMA weights in the hub's form, and upload them if asked.",
        epilog="example: python -m gspn_dit.hub runs/demo releases/digits --push ORG/digits",
    )
    parser.add_argument("run", metavar="RUN", type=home_path, help="run or checkpoint folder")
    parser.add_argument("folder", metavar="FOLDER", type=home_path, help="where to write")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload to this repository (default: do not)")
    parser.add_argument(
        "--private", action="store_true", help="make a new repository private (default: public)"
    )
    parser.add_argument(
        "--limit", metavar="MB", type=float, help="refuse weights of more megabytes (default: any size)"
    )
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and not arguments.limit > 0:
        raise UserError(f"--limit {arguments.limit:g}: expected megabytes, more than 0")
    if arguments.push and not is_hub_id(arguments.push):
        raise UserError(f"--push {arguments.push}: expected ORG/NAME, the id of a repository on the hub")
    if arguments.private and not arguments.push:
        raise UserError("--private is for an upload: give --push ORG/NAME too")
    folder = release(arguments.run, arguments.folder, arguments.limit)
    print(f"released to {folder}")
    if needs_vae(load_config(folder / "config.yaml")):
        print(
            "its decoder has no hub id, and a folder of this machine is not named: samples of it need --vae"
        )
    if arguments.push:
        print(f"uploaded to {upload(folder, arguments.push, private=arguments.private)}")
    return 0


if __name__ == "__main__":
    errors.run(main)
