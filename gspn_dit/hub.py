"""Models in the hub's usual form: config.json, model.safetensors and a card (README.md) in one folder.

    python -m gspn_dit.hub RUN FOLDER [--push ORG/NAME]     release a run's EMA weights

A released folder also has the run's config.yaml and a state.json: `load_model`, and with it sample.py, takes
it or its hub id in place of a run.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import nn

from gspn_dit import errors
from gspn_dit.config import Config, load_config, save_config
from gspn_dit.errors import UserError
from gspn_dit.files import replacing, sha256

WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "config.yaml", "state.json", "README.md")

CARD = """\
---
license: apache-2.0
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
TRAINING = """
The averaged (EMA) weights after {step:,} steps, {images_seen:,} images, of objective `{objective}`. Samples:

    python sample.py FOLDER_OR_HUB_ID {vae}--out grid.png
"""


class HubMixin:
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for the models."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and a card."""
        write_weights(self, Path(folder))
        write_text(Path(folder) / "README.md", card(self))

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings: Any) -> Self:
        """See the function `from_pretrained`; ValueError when `name` is a model of another class."""
        model = from_pretrained(name, **settings)
        if not isinstance(model, cls):
            raise ValueError(f"{name} is a {type(model).__name__}; expected a {cls.__name__}")
        return model

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload as `save_pretrained` writes; the address of the repository on the hub."""
        from huggingface_hub.utils import SoftTemporaryDirectory

        with SoftTemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repository, private=private)


def from_pretrained(name: str | Path, *, device: str = "cpu") -> nn.Module:
    """The model in a folder or on the hub, in eval mode, whatever its family.

    Raises `UserError` when there is none, or its weights do not fit its settings.
    """
    from gspn_dit.checkpoint import load_weights
    from gspn_dit.models import create_model

    folder = Path(name) if Path(name).is_dir() else download(str(name))
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = create_model(**settings)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder} has no usable config.json ({error}): expected what save_pretrained writes"
        ) from error
    load_weights(model, folder / WEIGHTS)
    return model.to(device).eval()


def release(run: str | Path, folder: str | Path) -> Path:
    """Write the EMA weights of a run to a folder that `from_pretrained`, sample.py and the hub take."""
    from gspn_dit.checkpoint import find_checkpoint, load_model, read_state

    folder = Path(folder)
    model, config, _ = load_model(run)
    config = without_local_autoencoder(config)
    state = read_state(find_checkpoint(run))
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
    write_text(folder / "README.md", card(model, config, state))
    write_text(folder / "state.json", json.dumps(state, indent=1))
    return folder


def without_local_autoencoder(config: Config) -> Config:
    """The config for others: a decoder in a folder of this machine is not named, and sample.py asks for --vae."""
    name = config.data.autoencoder
    if name is None or (is_hub_id(name) and not Path(name).exists()):
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, autoencoder=None))


def needs_vae(config: Config) -> bool:
    """Whether to sample takes a decoder that the config does not name."""
    return config.data.kind == "latents" and config.data.autoencoder is None


def write_weights(model: nn.Module, folder: Path) -> None:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_text(folder / "config.json", json.dumps(model.config, indent=1))


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def card(model: nn.Module, config: Config | None = None, state: dict[str, Any] | None = None) -> str:
    """The model card; of a run it says how the model was trained."""
    training = ""
    if config and state:
        vae = "--vae HUB_ID_OR_FOLDER " if needs_vae(config) else ""
        training = TRAINING.format(objective=config.diffusion.objective, vae=vae, **state)
    return CARD.format(
        name=model.config["name"],
        classes=model.num_classes,
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        channels=model.in_channels,
        size=model.input_size,
        space="pixels" if model.in_channels in (1, 3) else "latents",
        training=training,
    )


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a repository on the hub: ORG/NAME."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def download(name: str) -> Path:
    """The files of a model on the hub; `UserError` when it is not there or cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    unknown = f"no such run or checkpoint: {name}; give a folder that train.py made, or a hub id"
    if not is_hub_id(name) or Path(name).parent.is_dir():  # a slip in the name of a folder here is no hub id
        raise UserError(unknown)
    try:
        HfApi().model_info(
            name, timeout=10
        )  # one question first: without a network a download retries for long
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"{unknown} ({first_line(error)})") from error
    except (OSError, HTTPError) as error:
        return cached(name, f"{unknown} (no such folder, and the hub cannot be reached: {first_line(error)})")


def cached(name: str, otherwise: str) -> Path:
    """The files of a model downloaded earlier; `UserError(otherwise)` when there are none."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Release a run; the exit status."""
    parser = errors.ArgumentParser(
        prog="python -m gspn_dit.hub",
        description="Write a run's EMA weights in the hub's form, and upload them if asked.",
        epilog="example: python -m gspn_dit.hub runs/demo releases/digits --push ORG/digits",
    )
    parser.add_argument("run", metavar="RUN", help="run or checkpoint folder")
    parser.add_argument("folder", metavar="FOLDER", help="where to write")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload to this repository (default: do not)")
    parser.add_argument(
        "--private", action="store_true", help="make a new repository private (default: public)"
    )
    arguments = parser.parse_args(argv)
    folder = release(arguments.run, arguments.folder)
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
