"""Autoencoders from a folder, the hub's cache or the hub: diffusers' AutoencoderKL, AutoencoderTiny and
AutoencoderDC, as config.json says, and TAEF2 from its two files."""

import json
from pathlib import Path
from typing import Any

import torch

from gspn_dit.checks import not_finite
from gspn_dit.errors import UserError
from gspn_dit.files import describe_file, require_home
from gspn_dit.latents.taef2 import DECODER, ENCODER, is_taef2, load_taef2
from gspn_dit.models.weights import HUB_CACHES
from gspn_dit.names import utf8_path

CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
"""Of diffusers, that are known here."""
EXPECTED = f"an {', '.join(CLASSES[:-1])} or {CLASSES[-1]}"


def load_vae(name: str) -> Any:
    """The autoencoder in a folder, the hub's cache, or the hub, in that order; in float32, every weight finite."""
    # Speed: a second to import, and a decoder in a folder needs none of it.
    from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError

    if Path(name).is_dir():
        return load_files(name, name)
    if Path(name).exists():
        raise UserError(
            f"autoencoder '{name}' is {describe_file(name)}; expected the folder that AutoencoderKL.save_pretrained "
            f"(or another autoencoder's) writes, that of {ENCODER}, or a hub id"
        )
    try:
        return load_files(find_on_hub(name), name)
    except GatedRepoError as error:
        raise UserError(
            f"autoencoder '{name}' needs access: accept its terms on the hub and log in by `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"autoencoder '{name}' is neither a folder nor a model on the hub: give a folder saved by "
            "save_pretrained or a hub id such as stabilityai/sd-vae-ft-ema"
        ) from error
    except (OSError, HTTPError) as error:
        raise UserError(
            f"autoencoder '{name}' is no folder here, not in the hub's cache, and cannot be downloaded "
            f"({first_line(error)}): give a local folder, or run `hf download {name}` with a network"
        ) from error


def find_on_hub(name: str) -> str:
    """The folder of a hub model's files, downloaded unless cached.

    One question is asked of the hub before any download: without a network it fails at once, a download only
    after half a minute of retries.
    """
    # Speed: as above.
    from huggingface_hub import HfApi, snapshot_download

    require_home(*HUB_CACHES)
    files = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    try:
        folder = snapshot_download(name, allow_patterns=files, local_files_only=True)
        if any((Path(folder) / weights).exists() for weights in files[1:]):
            return folder
    except FileNotFoundError:
        pass
    present = {sibling.rfilename for sibling in HfApi().model_info(name, timeout=10).siblings or ()}
    wanted = [file for file in files if file in present]
    return snapshot_download(name, allow_patterns=wanted[:2])


def load_files(folder: str, name: str) -> Any:
    """An autoencoder from a folder, in diffusers' format unless it is TAEF2; every weight must be there."""
    if is_taef2(Path(folder)) and not (Path(folder) / "config.json").exists():
        vae = load_taef2(Path(folder))
    else:
        vae = load_diffusers(folder, name)
    broken = not_finite(vae.state_dict())
    if broken:
        raise UserError(f"autoencoder '{name}': {broken} is not finite; save or download it again")
    return vae


def load_diffusers(folder: str, name: str) -> Any:
    """An autoencoder of the class that the folder's config.json names."""
    kind = read_class(Path(folder), name)
    # Speed: diffusers takes seconds, and runs on pixels never ask for it.
    import diffusers
    from safetensors import SafetensorError

    try:
        with utf8_path(folder) as path:
            vae, report = getattr(diffusers, kind).from_pretrained(
                path, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"autoencoder '{name}' cannot be read: {first_line(error)}; save or download it again"
        ) from error
    if report["missing_keys"]:
        raise UserError(
            f"autoencoder '{name}' lacks the weight {report['missing_keys'][0]}; save or download it again"
        )
    return vae


def read_class(folder: Path, name: str) -> str:
    """The class of diffusers that config.json names; `UserError` unless it is one of `CLASSES`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"autoencoder '{name}' has no readable config.json: expected a folder saved by save_pretrained of "
            f"{EXPECTED} (in a pipeline's folder it is the subfolder vae), or that of {ENCODER} and {DECODER}"
        ) from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in CLASSES:
        raise UserError(f"autoencoder '{name}' is a {kind}: expected {EXPECTED}")
    return kind


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
