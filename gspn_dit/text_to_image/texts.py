"""From captions to what a UNet takes of them: the text encoders of a pipeline's folder, or words at random."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gspn_dit.errors import UserError
from gspn_dit.files import read_json, write_json
from gspn_dit.random import generator

NO_TRANSFORMERS = "text encoders need the package transformers: pip install transformers"
START = ""
"""The word that stands before every caption, alone for an empty one."""


class TextEncoder(Protocol):
    """What encodes captions for a UNet."""

    def __call__(self, captions: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
        """The UNet's arguments for captions of images of `size` (height and width in pixels).

        encoder_hidden_states (n, L, D), and in SDXL's layout added_cond_kwargs.
        """
        ...


@dataclass
class RandomWords:
    """Each word is a random vector of its own, keyed by the word and `seed`: no weights, for small experiments.

    Beyond `length` - 1 words a caption is cut; below, vectors of zero fill it up.
    """

    dim: int
    length: int
    seed: int = 0
    device: torch.device | str = "cpu"

    def __call__(self, captions: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
        """See `TextEncoder`."""
        states = torch.zeros(len(captions), self.length, self.dim)
        for row, caption in zip(states, captions, strict=True):
            words = [START, *re.findall(r"\w+", caption.lower())][: self.length]
            row[: len(words)] = torch.stack([self.vector(word) for word in words])
        return {"encoder_hidden_states": states.to(self.device)}

    def vector(self, word: str) -> torch.Tensor:
        """Standard normal (D,)."""
        digest = hashlib.blake2b(word.encode(), digest_size=7).digest()
        return torch.randn(self.dim, generator=generator(self.seed, int.from_bytes(digest, "little")))

    def save(self, folder: Path) -> None:
        """Write config.json, as `load_texts` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"dim": self.dim, "length": self.length, "seed": self.seed}
        write_json(folder / "config.json", {"_class_name": type(self).__name__, **settings})


class PipelineTexts:
    """The text encoders of a StableDiffusionPipeline or StableDiffusionXLPipeline, by the pipeline's own means."""

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        self.pipeline = pipeline.to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
        """See `TextEncoder`; the image was neither cropped nor scaled, as SDXL is told.

        The empty caption is what the pipeline guides by: for SDXL zeros, unless its config says otherwise.
        """
        states, _, *pooled = self.pipeline.encode_prompt(
            list(captions), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):
            empty = torch.tensor([caption == "" for caption in captions], device=states.device)
            states, *pooled = (
                part.masked_fill(empty.view(-1, *[1] * (part.dim() - 1)), 0) for part in (states, *pooled[:1])
            )
        if not pooled:
            return {"encoder_hidden_states": states}
        ids = torch.tensor([*size, 0, 0, *size], dtype=states.dtype, device=states.device)
        added = {"text_embeds": pooled[0], "time_ids": ids.repeat(len(captions), 1)}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added}


def read_settings(file: Path) -> dict[str, Any]:
    """The settings of a part of a pipeline's folder; `UserError` where they are not there whole."""
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise UserError(
            f"{file} is missing or damaged: expected the settings of a part of a StableDiffusionPipeline or "
            "StableDiffusionXLPipeline, in JSON; save or download the pipeline again"
        )
    return settings


def load_texts(folder: Path, layout: str, device: torch.device | str) -> TextEncoder:
    """The text encoder of a pipeline's folder; `UserError` where there is none that can be used.

    Args:
        layout: "sd" or "sdxl".
    """
    file = folder / "text_encoder" / "config.json"
    config = read_settings(file)
    if config.get("_class_name") == RandomWords.__name__:
        numbers = [config.get(key) for key in ("dim", "length", "seed")]
        if not all(type(number) is int for number in numbers) or min(numbers[:2]) < 1:
            raise UserError(f"{file}: expected whole numbers dim and length, of 1 or more, and seed")
        return RandomWords(*numbers, device)
    try:
        # Optional: only captions of real text encoders need it.
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(NO_TRANSFORMERS) from error
    # Without transformers these two are placeholders.
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = StableDiffusionXLPipeline if layout == "sdxl" else StableDiffusionPipeline
    absent = {"unet": None, "vae": None}
    if layout == "sd":
        absent |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        pipeline = kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, **absent)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder}: its text encoder cannot be read: {' '.join(str(error).split())}"
        ) from error
    return PipelineTexts(pipeline, device)
