"""A release out of published weights: config, state and card with what sampling them takes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gspn_dit.checkpoint import FORMAT
from gspn_dit.config import Config, parse_config
from gspn_dit.convert.examine import Found, examine
from gspn_dit.convert.layouts import Reader, find_layout, read_network
from gspn_dit.convert.sources import Source, open_source
from gspn_dit.convert.stream import renumber, to_flow
from gspn_dit.errors import UserError
from gspn_dit.files import check_output_folder, refuse_inputs, sha256
from gspn_dit.hub import write_release
from gspn_dit.models.layers import TimestepEmbedding
from gspn_dit.models.networks import create_model
from gspn_dit.models.weights import is_hub_id
from gspn_dit.processes import progress_bar

VAE = "stabilityai/sd-vae-ft-ema"
"""The decoder of DiT's final numbers (arXiv 2212.09748, appendix D) and of SiT's code; of latents with 4 channels."""
SAMPLERS = {"ddpm": {"sampler": "ddpm", "steps": 250}, "flow": {"sampler": "heun", "steps": 125}}
GUIDANCE = 1.375
"""DiT's 1.5 on three of the four latent channels is about this on all of them (arXiv 2212.09748, appendix A)."""
ORIGIN = """\
**These weights are not of this project.** They were converted from `{source}` (SHA-256 `{hash}`). Their licence is
their authors', which this project's does not change: the published weights of DiT (arXiv 2212.09748) are under
CC-BY-NC 4.0, those of SiT (arXiv 2401.08740) under the MIT licence.

{found}. How long they were trained is not known here; `train` in config.yaml is DiT's recipe, for fine-tuning.
Guidance is on all latent channels: DiT's and SiT's own code guides the first three, where a scale of 1 + x is about
1 + 3/4 x here. Samples, and a run that starts from these weights:

    python sample.py FOLDER_OR_HUB_ID {vae}--out grid.png
    python train.py CONFIG train.init_from=FOLDER_OR_HUB_ID diffusion.objective={objective} {overrides}"""


def convert(
    source: str,
    folder: str | Path,
    *,
    kind: str | None = None,
    heads: int | None = None,
    vae: str | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write a release of published weights to a new or empty folder.

    Args:
        source: a file, a folder or a hub id; see `python -m gspn_dit.convert --help`.
        kind: "dit" or "sit", whose .pt it is; None for what its options or its name say.
        heads: attention heads, where neither the width nor a config.json tells.
        vae: hub id of the decoder; None for the source's, or that of DiT's final numbers.
        report: is told what was found and what is being done, a line at a time.

    Raises:
        UserError: the source cannot be read, is no DiT or not known to be a DiT or SiT; the folder is not empty.
    """
    folder = Path(folder)
    check_folder(folder, source)
    if vae is not None and not is_hub_id(vae):
        raise UserError(f"--vae {vae}: expected the hub id of an AutoencoderKL, such as {VAE}")
    published = open_source(source)
    layout = find_layout(published.name, published.tensors)
    reader = Reader(published.name, layout, published.tensors)
    found = examine(published, reader, kind, heads)
    report(found.describe())
    network = read(reader, found)
    with torch.device("meta"):
        model = create_model(**found.settings)
    model.load_state_dict(network, assign=True)
    report(f"writing {sum(tensor.numel() for tensor in network.values()) * 4 / 1e9:.2f} GB to {folder}")
    config = create_config(found, folder, vae or published.vae or VAE)
    write_release(folder, model, config, create_state(published, found, model, config))
    report(f"released to {folder}; the weights' licence is their authors': see its README.md")
    return folder


def check_folder(folder: Path, source: str) -> None:
    """Raise `UserError` for a folder that holds anything but what a kill left, or cannot be written."""
    if os.path.isdir(folder) and any(not name.startswith(".") for name in os.listdir(folder)):
        raise UserError(f"FOLDER {folder} exists and is not empty: give a new one")
    refuse_inputs("FOLDER", folder, [("SOURCE", source)])
    check_output_folder("FOLDER", folder)


def read(reader: Reader, found: Found) -> dict[str, torch.Tensor]:
    """All weights as our network has them."""
    sizes = found.sizes
    with progress_bar(total=sizes.depth, desc="converting", unit=" blocks") as bar:
        network = read_network(reader, sizes, TimestepEmbedding.frequencies, bar.update)
    if found.kind == "sit":
        network = to_flow(network, sizes.patch, sizes.channels, sizes.out_channels)
    return renumber(network, sizes.width)


def create_config(found: Found, folder: Path, vae: str) -> Config:
    """What a run of these weights would have had."""
    pixels = found.sizes.channels in (1, 3)
    data = {"kind": "images", "path": "data/images", "size": found.input_size}
    if not pixels:
        decoder = vae if found.sizes.channels == 4 else None
        data = {"kind": "latents", "path": "data/imagenet256", "autoencoder": decoder}
    return parse_config(
        {
            "run_dir": f"runs/{folder.resolve().name}",
            "model": found.model,
            "diffusion": {"objective": found.objective},
            "data": data,
            "train": {"steps": 400_000, "batch_size": 256, "precision": "bf16"},
            "sample": {**SAMPLERS[found.objective], "cfg_scale": GUIDANCE, "per_class": 4},
        }
    )


def create_state(source: Source, found: Found, model: nn.Module, config: Config) -> dict[str, Any]:
    """What a checkpoint's state.json would say; steps and images are not known."""
    sizes = found.sizes
    needs_vae = config.data.kind == "latents" and config.data.autoencoder is None
    origin = ORIGIN.format(
        source=source.name,
        hash=sha256(source.path),
        found=found.describe(),
        vae="--vae HUB_ID_OR_FOLDER " if needs_vae else "",
        objective=found.objective,
        overrides=" ".join(f"model.{key}={value}" for key, value in found.model.items()),
    )
    return {
        "format": FORMAT,
        "step": None,
        "images_seen": None,
        "model": model.config,
        "dataset": {"size": found.input_size, "channels": sizes.channels, "num_classes": sizes.classes},
        "origin": origin,
    }
