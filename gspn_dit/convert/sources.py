"""Where published weights are, and reading them: a file, a folder in diffusers' layout, or either on the hub."""

import argparse
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gspn_dit.errors import UserError
from gspn_dit.files import describe_file, read_json
from gspn_dit.models.weights import download, first_line, is_hub_id, read_tensors

DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
EXPECTED = "a .pt of DiT's or SiT's, a folder in diffusers' DiT layout, or a hub id"
UNKNOWN = "no such SOURCE: {}; expected " + EXPECTED


@dataclass(frozen=True)
class Source:
    """Weights as they are published, and what stands beside them."""

    name: str
    """For people: a hub id, or the name of a file or folder without its place on this machine."""
    path: Path
    """The file of the weights."""
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any] | None = None
    """config.json of diffusers' layout; None for a single file."""
    options: dict[str, Any] = field(default_factory=dict)
    """What a training in DiT's or SiT's code was started with, where its checkpoint says."""
    vae: str | None = None
    """The hub id of the decoder, where the source says."""


def open_source(name: str) -> Source:
    """Read weights; `UserError` for what is not there, cannot be read, or holds more than tensors."""
    path = Path(name)
    if path.is_dir():
        return open_folder(path, path.resolve().name)
    if path.exists():
        return open_file(path, path.name)
    organisation, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not file or not is_hub_id(f"{organisation}/{repository}"):
        return open_folder(download_folder(name), name)
    path = download(f"{organisation}/{repository}", [file], UNKNOWN) / file
    if not path.is_file():
        raise UserError(f"{organisation}/{repository} holds no {file}: see its list of files on the hub")
    return open_file(path, name)


def download_folder(name: str) -> Path:
    """A model of the hub in diffusers' layout; its pickle only where there are no safetensors."""
    for weights in DIFFUSERS:
        names = [f"{place}{file}" for place in ("transformer/", "") for file in ("config.json", weights)]
        folder = download(name, [*names, "vae/config.json"], UNKNOWN)
        if any((place / weights).is_file() for place in (folder, folder / "transformer")):
            break
    return folder


def open_folder(folder: Path, name: str) -> Source:
    """Weights in diffusers' layout: a pipeline's folder, or its transformer/."""
    inside = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if (folder / "state.json").exists() or (folder / "checkpoints").is_dir():
        raise UserError(f"SOURCE {name} is a run or a release of this project: it needs no converting")
    config = read_json(inside / "config.json")
    path = next((inside / file for file in DIFFUSERS if (inside / file).is_file()), None)
    if not isinstance(config, dict) or path is None:
        missing = "config.json" if not isinstance(config, dict) else " or ".join(DIFFUSERS)
        raise UserError(
            f"SOURCE {name} has no readable {missing}, there or in transformer/: expected {EXPECTED}"
        )
    vae = (read_json(inside.parent / "vae" / "config.json") or {}).get("_name_or_path", "")
    tensors = read_content(path, f"{name}/{path.name}")
    return Source(name, path, tensors, config, vae=vae if is_published_vae(vae) else None)


def is_published_vae(name: object) -> bool:
    return isinstance(name, str) and name.startswith("stabilityai/sd-vae-ft-") and is_hub_id(name)


def open_file(path: Path, name: str) -> Source:
    """Weights in one file: a state dict, or a checkpoint with the averaged ones under "ema"."""
    content, options = read_content(path, name), {}
    if isinstance(content.get("ema"), dict):
        options = content.get("args") or {}
        options = vars(options) if isinstance(options, argparse.Namespace) else options
        content = content["ema"]
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"SOURCE {name} holds no state dict, or one without its EMA: expected {EXPECTED}")
    vae = options.get("vae")
    vae = f"stabilityai/sd-vae-ft-{vae}" if vae in ("ema", "mse") else None
    return Source(name, path, content, None, options, vae)


def read_content(path: Path, name: str) -> dict[str, Any]:
    """What a file of torch.save's or safetensors holds; nothing in it is run."""
    kind = describe_file(path)
    if kind not in ("what torch.save wrote", "a pickle", "a safetensors file"):
        raise UserError(f"SOURCE {name} is {kind}: expected {EXPECTED}")
    try:
        if kind == "a safetensors file":
            return read_tensors(path)
        # The options of DiT's train.py: an argparse.Namespace, which holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise UserError(f"SOURCE {name} cannot be read ({first_line(error)}): download it again") from error
    except Exception as error:  # of a pickle that is cut short, anything: its bytes mean something else
        reason = first_line(error).split(". ")[0]
        raise UserError(
            f"SOURCE {name} is {kind} that is cut short, or holds more than tensors, which is not read "
            f"({reason}): download it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"SOURCE {name} holds a {type(content).__name__}: expected {EXPECTED}")
    return content
