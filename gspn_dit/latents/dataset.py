"""A folder of latents as encode_latents.py makes it, and the draw of training images from it.

    manifest.json   format and version, autoencoder, image size, counts, class names, float16 error, statistics
    moments.bin     (images, 2, 2, C, h, w) float16: for the image and its mirror image, mean and log-variance;
                    (images, 2, 1, C, h, w) of an autoencoder without a posterior: the latent alone
    labels.npy      (images,) int64, -1 for an image that was skipped
    images.json     the path of every image, relative to the image folder; its bytes are
                    path.encode("utf-8", "surrogateescape")
    skipped.txt     path and reason of every skipped image; what is no clean text in a path is escaped (\\xf1)

A mirror is a row of its own because the latent of a mirrored image is not the mirrored latent.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from gspn_dit import schema
from gspn_dit.errors import UserError
from gspn_dit.files import describe_file, replacing
from gspn_dit.latents.normalization import Kind, Normalization, Scaling, channel_norm, record, recorded
from gspn_dit.random import POSTERIOR, seed_of

FORMAT = "gspn-dit latents"
VERSION = 1
DTYPE = np.dtype("<f2")
MIRRORS = 2
SLICE = 16
"""Images whose arithmetic is done at once, so that it stays in the cache."""
AHEAD = 2
"""Slices asked of the disk before they are needed: enough to keep it busy, and no more than it takes at once."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of latents holds."""

    autoencoder: str
    """Its hub id or folder."""
    weights_hash: str
    """SHA-256 of its weights."""
    scale: float
    shift: float
    """Those of the autoencoder's config: by them the diffusion sees (z - shift) * scale; the file holds the
    moments of z."""
    image_size: int
    images: int
    """Rows of the files, skipped images included."""
    skipped: int
    latent_shape: tuple[int, int, int]
    """(C, h, w)."""
    class_names: tuple[str, ...]
    images_hash: str
    """SHA-256 of the list of paths."""
    float16_error: dict[str, float]
    """What storing in float16 costs, measured on the first batch; see encoding.float16_error."""
    complete: bool
    """False while encode_latents.py is at work, or was killed."""
    posterior: bool = True
    """Whether log-variances are stored beside means; else the latents are drawn without noise."""
    normalization: Kind = "scale"
    """How the diffusion sees the latents unless data.normalization says otherwise: by scale and shift, or channels,
    by the statistics that follow."""
    channel_mean: tuple[float, ...] | None = None
    channel_std: tuple[float, ...] | None = None
    """Of z, channel by channel; see gspn_dit/latents/measuring.py. None in a store that is unfinished, or older."""
    format: str = FORMAT
    version: int = VERSION

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Moments of one mirror of one image: (2, C, h, w), or (1, C, h, w) without a posterior."""
        return (2 if self.posterior else 1, *self.latent_shape)

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
        why = "has no readable manifest.json"
        if not Path(folder).is_dir():
            why = f"is {describe_file(folder)}" if Path(folder).exists() else "does not exist"
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
    """Check a manifest's fields and their types."""
    try:
        manifest = schema.build(Manifest, content)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; encode again") from error
    if min(manifest.images, manifest.skipped, *manifest.latent_shape) < 0:
        raise UserError(f"{path} is damaged: images, skipped and latent_shape must be counts; encode again")
    return manifest


class LatentDataset:
    """Draws from the posteriors of encoded images.

    `draw` is a pure function of its arguments and may be called from several threads at once.
    """

    def __init__(
        self,
        folder: str | Path,
        normalization: Kind | None = None,
        trained_on: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a folder that encode_latents.py finished; raises `UserError` naming what is wrong with it.

        Args:
            normalization: data.normalization; None for that of the manifest.
            trained_on: what a run remembers of its training set (`describe_dataset`), for held-out latents: they are
                normalised as those were, whatever their own statistics.
        """
        folder = Path(folder)
        self.manifest = manifest = read_manifest(folder)
        if not manifest.complete:
            raise UserError(
                f"latents folder {folder} is unfinished: run the same encode_latents.py command again"
            )
        labels = read_labels(folder / "labels.npy", manifest)
        self.rows = np.flatnonzero(labels >= 0)
        self.labels = labels[self.rows]
        self.class_names = list(manifest.class_names)
        self.num_classes = len(manifest.class_names)
        self.channels, self.size, _ = manifest.latent_shape
        self.autoencoder = manifest.autoencoder
        self.block_bytes = manifest.block_bytes
        self.normalization = choose_normalization(folder, manifest, normalization, trained_on)
        self.normalized = record(self.normalization, manifest.normalization)
        """What a checkpoint remembers of it."""
        self.file = open_moments(folder / "moments.bin", manifest)

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
        parts = [slice(start, start + SLICE) for start in range(0, len(keys), SLICE)]
        for ahead, part in zip_longest(parts, [None] * AHEAD + parts):
            if ahead:
                self.draw_noise(x[ahead], blocks[ahead], keys[ahead])
            if part:
                self.draw_latents(x[part], blocks[part])
        return x, torch.from_numpy(self.labels[indices])

    def draw_noise(self, x: torch.Tensor, blocks: np.ndarray, keys: list[int]) -> None:
        """Fill x (n, C, h, w) with standard normal noise, and have the disk fetch `blocks` (n,) meanwhile.

        Without posteriors there is no noise to draw, and x is left alone.
        """
        generator = torch.Generator()
        file, size = self.file.fileno(), self.block_bytes
        for noise, offset, key in zip(x.unbind(), self.offsets(blocks), keys, strict=True):
            os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)
            if self.manifest.posterior:
                noise.normal_(generator=generator.manual_seed(key))

    def draw_latents(self, x: torch.Tensor, blocks: np.ndarray) -> None:
        """Turn standard normal x (n, C, h, w), in place, into draws from the posteriors in `blocks` (n,).

        Without posteriors it does not matter what x holds.
        """
        mean, *log_variance = self.read(blocks).float().unbind(1)  # (n, C, h, w) each
        if log_variance:
            deviation = log_variance[0].mul_(0.5 / math.log(2)).exp2_()  # a third of the time of exp
            torch.addcmul(mean, deviation, x, out=x)
        else:
            x.copy_(mean)
        self.normalization.apply_(x)

    def read(self, blocks: np.ndarray) -> torch.Tensor:
        """The moments in `blocks` (n,): (n, 2 or 1, C, h, w) float16."""
        moments = torch.empty(len(blocks), *self.manifest.block_shape, dtype=torch.float16)
        # Not through a memory map: a page fault takes longer than this copy, and a bad disk would end the process.
        file = self.file.fileno()
        for block, offset in zip(moments.numpy(), self.offsets(blocks), strict=True):
            if os.preadv(file, [block], offset) != self.block_bytes:
                raise UserError(f"{self.file.name} was cut while it was read; encode again")
        return moments

    def offsets(self, blocks: np.ndarray) -> list[int]:
        """Where blocks begin in moments.bin, in bytes."""
        return (blocks * self.block_bytes).tolist()


def choose_normalization(
    folder: Path, manifest: Manifest, asked: Kind | None, trained_on: Mapping[str, Any] | None
) -> Normalization:
    """What brings latents to the diffusion; `UserError` where statistics are needed and the manifest has none."""
    if trained_on is not None:
        return recorded(trained_on) or Scaling(manifest.scale, manifest.shift)
    kind = asked or manifest.normalization
    if kind == "scale":
        return Scaling(manifest.scale, manifest.shift)
    mean, std, channels = manifest.channel_mean, manifest.channel_std, manifest.latent_shape[0]
    remedy = (
        "run the same encode_latents.py command again, which measures them, or set data.normalization=scale"
    )
    if mean is not None:
        remedy = "set data.normalization=scale, or encode again"
    return channel_norm(mean, std, channels, f"latents folder {folder}", remedy)


def open_moments(path: Path, manifest: Manifest) -> BinaryIO:
    """moments.bin, for as long as the data set lives; `UserError` when it is not there in full length."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (open as long as the data set)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; encode again") from error
    size = os.fstat(file.fileno()).st_size
    if size != manifest.moments_bytes or size == 0:
        expected = f"{manifest.moments_bytes:,}"
        raise UserError(f"{path} has {size:,} bytes, expected {expected}: cut or foreign; encode again")
    # What is needed is asked for; the kernel's own guess would read what no one needs.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return file


def read_labels(path: Path, manifest: Manifest) -> np.ndarray:
    """labels.npy, checked against the manifest: (images,) int64."""
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: expected an array of labels; encode again") from error
    if not isinstance(labels, np.ndarray):
        raise UserError(f"{path} is {describe_file(path)}: expected an array of labels; encode again")
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
