"""A folder of images with captions, and what each image of a step draws.

FOLDER/**/picture.jpg and picture.txt     the caption in a file of its own
FOLDER/metadata.jsonl                     {"file_name": "picture.jpg", "text": "..."} a line, as datasets' imagefolder
FOLDER/**/name/picture.jpg                the name of its folder, where that is asked for
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gspn_dit.data.batches import Batches, normal, uniform
from gspn_dit.data.images import ImageFolder, find_images
from gspn_dit.data.pixels import PixelDataset, fits
from gspn_dit.errors import UserError
from gspn_dit.files import content_key, describe_file
from gspn_dit.random import DROPOUT, NOISE, POSTERIOR, TIME

METADATA = "metadata.jsonl"


class CaptionedImages(PixelDataset):
    """Images of one size whose labels number their captions; the label after the last is the empty caption."""

    def __init__(
        self, folder: str | Path, size: int, source: str, column: str, *, flip: bool, draws: int
    ) -> None:
        """Raises `UserError` naming what is wrong with the folder; see `read_captions` for `source` and `column`.

        `draws` is how many images will be drawn: where these are fewer than there are, each is read when it is drawn.
        """
        root = Path(folder)
        captions, note = read_captions(root, source, column)
        names = list(captions.values())
        images = ImageFolder(root, list(captions), list(range(len(names))), names, [note] if note else [])
        super().__init__(images, size, flip=flip, keep=draws >= len(names) and fits(len(names), size))
        self.captions = [*names, ""]

    def describe(self) -> dict[str, Any]:
        """What a checkpoint remembers of it."""
        words = content_key(caption.encode("utf-8", "surrogateescape") for caption in self.captions)
        return {
            "images": len(self),
            "size": self.size,
            "captions_hash": words,
            "listing_hash": self.hashes["listing_hash"],
        }


def read_captions(root: Path, source: str, column: str) -> tuple[dict[str, str], str | None]:
    """Path below `root` -> caption, in sorted order, and a line about what was left out.

    Args:
        source: "files" (metadata.jsonl where there is one, else a .txt beside each image) or "folders".
        column: of metadata.jsonl.
    """
    if not root.is_dir():
        there = f"{root} is {describe_file(root)}" if root.exists() else f"the folder {root} does not exist"
        raise UserError(f"data.path: {there}: expected a folder of images with captions")
    found = find_images(root)
    if not found.images:
        raise UserError(f"data.path: {root} holds no image that Pillow knows by its extension")
    if source == "folders":
        bare = next((path for path in found.images if "/" not in path), None)
        if bare:
            raise UserError(f"data.captions is folders, and {root / bare} lies in none of its own")
        return {path: path.split("/")[-2].replace("_", " ") for path in found.images}, found.left_out_line()
    if (root / METADATA).is_file():
        return from_metadata(root / METADATA, found.images, column), None
    return {path: beside(root / path) for path in found.images}, None


def beside(image: Path) -> str:
    """The caption in the .txt beside an image."""
    try:
        return " ".join(image.with_suffix(".txt").read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{image} has no readable caption: expected {image.with_suffix('.txt').name} beside it, {METADATA} in the "
            "folder, or data.captions=folders"
        ) from error


def from_metadata(path: Path, images: list[str], column: str) -> dict[str, str]:
    """The captions in a metadata.jsonl of images that are there."""
    known, captions = set(images), {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row[column]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: expected an object with file_name and {column}"
            ) from error
        if name not in known or not isinstance(caption, str):
            raise UserError(f"{path}, line {number}: {name} is no image here, or its {column} is no text")
        captions[name] = " ".join(caption.split())
    if not captions:
        raise UserError(f"{path} is empty: expected a line for each image")
    return dict(sorted(captions.items()))


@dataclass(frozen=True)
class CaptionedBatch:
    """The images of one forward pass and what they draw."""

    pixels: torch.Tensor
    """(n, 3, size, size) float32 in [-1, 1]"""
    captions: list[str]
    t: torch.Tensor
    """(n,) int64, timesteps of the teacher's schedule"""
    noise: torch.Tensor
    """(n, C, h, w) float32, of what the UNet sees"""
    posterior: torch.Tensor
    """(n, C, h, w) float32, for the draw from an autoencoder's posterior"""


class CaptionedBatches(Batches):
    """`Batches` of captions and of latents' noise; keyed by the image's number in training as those are."""

    def __init__(self, dataset: CaptionedImages, shape: tuple[int, ...], **settings: Any) -> None:
        """`shape` (C, h, w) is of what the UNet sees; `settings` are those of `Batches`."""
        super().__init__(dataset, **settings)
        self.shape = torch.Size(shape)

    def draw(self, numbers: np.ndarray) -> CaptionedBatch:
        """The images with these numbers (n,) int64 and everything they draw."""
        pixels, labels = self.dataset.draw(self.order.indices(numbers), numbers, self.seed)
        dropped = uniform(DROPOUT, self.seed, numbers) < self.class_dropout
        labels = torch.where(dropped, len(self.dataset), labels)
        return CaptionedBatch(
            pixels,
            [self.dataset.captions[label] for label in labels.tolist()],
            self.times(uniform(TIME, self.seed, numbers)),
            normal(NOISE, self.seed, numbers, self.shape),
            normal(POSTERIOR, self.seed, numbers, self.shape),
        )
