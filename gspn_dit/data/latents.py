"""A folder of latents as encode_latents.py makes it, and the draw of training images from it.

    manifest.json   format and version, autoencoder, image size, counts, class names, float16 error
    moments.bin     (images, 2, 2, C, h, w) float16: for the image and its mirror image, mean and log-variance
    labels.npy      (images,) int64, -1 for an image that was skipped
    images.json     the path of every image, relative to the image folder
    skipped.txt     path and reason of every skipped image

A mirror is a row of its own because the latent of a mirrored image is not the mirrored latent.
"""

import json
import mmap
import os
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from gspn_dit.errors import UserError
from gspn_dit.files import replacing
from gspn_dit.random import POSTERIOR, seed_of

FORMAT = "gspn-dit latents"
VERSION = 1
DTYPE = np.dtype("<f2")
MIRRORS = 2
SLICE = 16
"""Images whose arithmetic is done at once, so that it stays in the cache."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of latents holds."""

    autoencoder: str
    """Hub id or folder of the AutoencoderKL."""
    weights_hash: str
    """SHA-256 of its weights."""
    scale: float
    shift: float
    """Diffusion sees (z - shift) * scale; the file holds the moments of z."""
    image_size: int
    images: int
    """Rows of the files, skipped images included."""
    skipped: int
    latent_shape: tuple[int, int, int]
    """(C, h, w)."""
    class_names: list[str]
    images_hash: str
    """SHA-256 of the list of paths."""
    float16_error: dict[str, float]
    """What storing in float16 costs, measured on the first batch; see encoding.float16_error."""
    complete: bool
    """False while encode_latents.py is at work, or was killed."""
    format: str = FORMAT
    version: int = VERSION

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Moments of one mirror of one image: (2, C, h, w)."""
        return (2, *self.latent_shape)

    @property
    def block_bytes(self) -> int:
        """Bytes of one mirror of one image."""
        return int(np.prod(self.block_shape)) * DTYPE.itemsize

    @property
    def moments_bytes(self) -> int:
        """Bytes of the whole moments.bin."""
        return self.images * MIRRORS * self.block_bytes

    def save(self, folder: Path) -> None:
        """Write manifest.json, whole or not at all."""
        with replacing(folder / "manifest.json") as file:
            file.write(json.dumps(asdict(self), indent=1).encode())


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder of latents; `UserError` when it is not one or of another version."""
    path = Path(folder) / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = "does not exist" if not Path(folder).is_dir() else "has no readable manifest.json"
        raise UserError(
            f"latents folder {folder} {why}: expected a folder that encode_latents.py made"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a manifest of latents: expected a folder that encode_latents.py made")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {content.get('version')}, this code reads version {VERSION}: encode again"
        )
    return parse_manifest(content, path)


def parse_manifest(content: dict[str, Any], path: Path) -> Manifest:
    """Check the types of a manifest's fields."""
    names = {field.name for field in fields(Manifest)}
    if set(content) != names:
        raise UserError(
            f"{path} is damaged: {', '.join(sorted(names ^ set(content)))} missing or unknown; encode again"
        )
    shape = content["latent_shape"]
    counts = [content["images"], content["skipped"], *(shape if isinstance(shape, list) else [None])]
    if len(counts) != 5 or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise UserError(f"{path} is damaged: images, skipped and latent_shape must be counts; encode again")
    return Manifest(**{**content, "latent_shape": tuple(shape)})


class LatentDataset:
    """Draws from the posteriors of encoded images.

    `draw` is a pure function of its arguments and may be called from several threads at once.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a folder that encode_latents.py finished; raises `UserError` naming what is wrong with it."""
        folder = Path(folder)
        self.manifest = manifest = read_manifest(folder)
        if not manifest.complete:
            raise UserError(
                f"latents folder {folder} is unfinished: run the same encode_latents.py command again"
            )
        labels = read_labels(folder / "labels.npy", manifest)
        self.rows = np.flatnonzero(labels >= 0)
        self.labels = labels[self.rows]
        self.class_names = manifest.class_names
        self.num_classes = len(manifest.class_names)
        self.channels, self.size, _ = manifest.latent_shape
        self.autoencoder = manifest.autoencoder
        self.file = open_file(folder / "moments.bin")
        self.moments = map_moments(self.file, manifest)

    def __len__(self) -> int:
        return len(self.rows)

    def draw(
        self, indices: np.ndarray, image_numbers: np.ndarray, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents as the diffusion sees them: x (n, C, h, w) float32, and labels (n,) int64.

        Mirror and posterior noise of an image are keyed by (seed, image number); see `Dataset.draw`.
        """
        keys = [seed_of(POSTERIOR, seed, number) for number in image_numbers.tolist()]
        mirrors = np.array([key & 1 for key in keys], dtype=np.int64)
        blocks = self.rows[indices] * MIRRORS + mirrors
        x = torch.empty(len(keys), *self.manifest.latent_shape)
        generator = torch.Generator()
        for block, key, noise in zip(np.sort(blocks).tolist(), keys, x.unbind(), strict=True):
            self.read_ahead(block)
            noise.normal_(generator=generator.manual_seed(key))
        for part, latents in zip(torch.from_numpy(blocks).split(SLICE), x.split(SLICE), strict=True):
            mean, log_variance = self.moments.index_select(0, part).float().unbind(1)  # (n, C, h, w) each
            deviation = log_variance.mul_(0.5).exp_()
            latents.mul_(deviation).add_(mean).sub_(self.manifest.shift).mul_(self.manifest.scale)
        return x, torch.from_numpy(self.labels[indices])

    def read_ahead(self, block: int) -> None:
        """Have the kernel fetch a block while the processor does something else."""
        size = self.manifest.block_bytes
        os.posix_fadvise(self.file.fileno(), block * size, size, os.POSIX_FADV_WILLNEED)


def open_file(path: Path) -> BinaryIO:
    """Open a file for as long as the data set lives; `UserError` when it cannot be."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; encode again") from error


def map_moments(file: BinaryIO, manifest: Manifest) -> torch.Tensor:
    """moments.bin, memory-mapped: (images * 2, 2, C, h, w) float16; rows 2i and 2i + 1 are image i."""
    size = os.fstat(file.fileno()).st_size
    if size != manifest.moments_bytes or size == 0:
        expected = f"{manifest.moments_bytes:,}"
        raise UserError(f"{file.name} has {size:,} bytes, expected {expected}: cut or foreign; encode again")
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapping.madvise(mmap.MADV_RANDOM)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(mapping, dtype=torch.float16).view(-1, *manifest.block_shape)


def read_labels(path: Path, manifest: Manifest) -> np.ndarray:
    """labels.npy, checked against the manifest: (images,) int64."""
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: expected an array of labels; encode again") from error
    good = (
        labels.shape == (manifest.images,)
        and labels.dtype == np.int64
        and labels.min(initial=-1) >= -1
        and labels.max(initial=-1) < len(manifest.class_names)
        and np.count_nonzero(labels < 0) == manifest.skipped
    )
    if not good:
        raise UserError(f"{path} does not fit manifest.json: it is damaged or foreign; encode again")
    return labels
