"""Weights in the hub's usual form: config.json, model.safetensors and a card (README.md) in one folder.

Not huggingface_hub's PyTorchModelHubMixin. Its `from_pretrained` gives the class that it is called on, whatever
network config.json describes; fills what it can of a model that the weights do not fit (`strict=False`), in
silence; takes a pickle where safetensors are missing; and leaves the card of an earlier model in the folder.
"""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gspn_dit.checks import not_finite
from gspn_dit.errors import NonFiniteError, UserError
from gspn_dit.files import describe_file, replacing, require_home
from gspn_dit.names import utf8_path

WEIGHTS = "model.safetensors"
HASHES = "SHA256SUMS"
"""The hashes of a release's other files, as `sha256sum --check` reads them."""
FILES = (WEIGHTS, "config.json", "config.yaml", "state.json", "README.md", HASHES)
"""What a released folder may hold: config.yaml and state.json are those of a run (see gspn_dit/hub.py)."""

HUB_CACHES = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
"""Variables that name the folder of what is downloaded from the hub."""

CARD = """\
---
license: {license}
library_name: gspn-dit
pipeline_tag: unconditional-image-generation
tags: [diffusion, class-conditional, gspn]
---

# {name}

Class-conditional diffusion model of {channels}x{size}x{size} {space}: {classes} classes, {millions:.1f}M
parameters.
{training}
```python
from gspn_dit.hub import from_pretrained

model = from_pretrained("FOLDER_OR_HUB_ID")
prediction = model(x, t, y)  # x (B, {channels}, {size}, {size}); t (B,); y (B,), {classes} for no class
```
"""


def find_folder(name: str | Path) -> Path:
    """The folder of this name, or that of a model on the hub, downloaded; `UserError` when there is neither."""
    return Path(name) if Path(name).is_dir() else download(str(name))


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in config.json; OSError or ValueError when there are none."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def refuse_checkpoint(folder: Path) -> None:
    """Raise `UserError` for a folder whose weights a state.json vouches for: others would make it a damaged one."""
    if (folder / "state.json").exists():
        raise UserError(f"{folder} holds a checkpoint or a release (state.json): give another folder")


def save_tensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the permissions of any new file; safetensors gives them to its writer alone.

    Raises OSError, as other writers do, where there is no space for it.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # The library tells the system's error as text alone.
        for number in (errno.ENOSPC, errno.EDQUOT):
            if f"os error {number})" in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise
    with contextlib.suppress(PermissionError):  # a disk without permissions
        path.chmod(mode)


def write_weights(model: nn.Module, folder: Path) -> None:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_text(folder / "config.json", json.dumps(model.config, indent=1))


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def card(model: nn.Module, training: str = "", license: str = "apache-2.0") -> str:
    """The model card; `training` says how the model came to be, `license` is in the hub's terms."""
    return CARD.format(
        license=license,
        name=model.config["name"],
        classes=model.num_classes,
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        channels=model.in_channels,
        size=model.input_size,
        space="pixels" if model.in_channels in (1, 3) else "latents",
        training=training,
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """What a safetensors file holds, whatever its name; SafetensorError or OSError where it cannot be read."""
    with utf8_path(path) as name:
        return load_file(name)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, all finite; `UserError` when it cannot be read, or one is not."""
    try:
        source = read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read weights {path}: {told(path, error)}") from error
    if broken := not_finite(source):
        raise NonFiniteError(f"{path}: {broken} is not finite; take another checkpoint, or download it again")
    return source


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model, sharded or not, from a safetensors file; `UserError` when they do not belong together."""
    fill(model, read_weights(path), path)


@torch.no_grad()
def fill(model: nn.Module, source: dict[str, torch.Tensor], path: Path) -> None:
    """Fill a model with the tensors of the file `path`; `UserError` unless they are just its own."""
    target = model.state_dict()
    for name in sorted(target.keys() | source.keys()):
        expected, found = (list(side[name].shape) if name in side else "none" for side in (target, source))
        if expected != found:
            raise UserError(f"{path} is of another model: for {name} it has {found}, expected {expected}")
        target[name].copy_(shard_like(source[name], target[name]))


def told(path: Path, error: Exception) -> str:
    """What stands in the way of reading a safetensors file."""
    kind = describe_file(path)
    if not path.is_file() or kind == "a safetensors file":
        return first_line(error)
    return f"it is {kind}; expected a safetensors file"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor gathered from its shards, on the CPU; every process must call this."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()


def shard_like(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A whole tensor with the device and the sharding of `target`."""
    source = source.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(source, target.device_mesh, target.placements)
    return source


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a repository on the hub: ORG/NAME."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def download(
    name: str,
    files: Sequence[str] = FILES,
    unknown: str = "no such run or checkpoint: {}; give a folder that train.py made, or a hub id",
) -> Path:
    """The named files of a model on the hub; `UserError`, which begins with `unknown`, when it cannot be had."""
    # Speed: a second to import, and weights in a folder need none of it.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    unknown = unknown.format(name)
    if not is_hub_id(name) or Path(name).parent.is_dir():  # a slip in the name of a folder here is no hub id
        raise UserError(unknown)
    require_home(*HUB_CACHES)
    try:
        HfApi().model_info(
            name, timeout=10
        )  # one question first: without a network a download retries for long
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"{unknown} ({first_line(error)})") from error
    except (OSError, HTTPError) as error:
        return cached(name, f"{unknown} (no such folder, and the hub cannot be reached: {first_line(error)})")


def cached(name: str, otherwise: str) -> Path:
    """The files of a model downloaded earlier; `UserError(otherwise)` when there are none."""
    # Speed: as above.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except OSError as error:
        raise UserError(otherwise) from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def upload(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Create the repository unless it exists, and upload the folder; the address on the hub.

    Raises `UserError` when the hub cannot be reached or does not allow it.
    """
    # Speed: as above.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload model")
    except (OSError, HTTPError, HFValidationError) as error:
        raise UserError(
            f"cannot upload to {repository} ({first_line(error)}): log in by `hf auth login`, and try again"
        ) from error
    return str(address)
