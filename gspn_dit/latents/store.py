"""The writing side of a folder of latents: what it will hold, what is done, and how it is finished.

While it is filled, chunks/ holds one file per finished chunk; `latents.py` describes the files that stay.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gspn_dit.data.images import ImageFolder
from gspn_dit.errors import UserError
from gspn_dit.files import LEFTOVER, leftovers, remove_folder, replacing
from gspn_dit.latents.autoencoder import LatentAutoencoder
from gspn_dit.latents.dataset import Manifest, read_labels, read_manifest
from gspn_dit.latents.measuring import measure_channels
from gspn_dit.names import canonical, printable

CHUNK = 256
"""Images of a chunk; fixed, so that a run may be resumed with another number of processes."""

CHUNK_NAME = re.compile(r"\d{9,}\.json")

DECISIVE = {
    "image_size": "--image-size",
    "weights_hash": "weights of the autoencoder",
    "scale": "scale of the autoencoder",
    "shift": "shift of the autoencoder",
    "normalization": "normalization of the autoencoder",
    "class_names": "classes",
    "images_hash": "images",
}
"""What must agree for a folder to be continued, in words."""


def describe(images: ImageFolder, autoencoder: LatentAutoencoder, size: int) -> Manifest:
    """The manifest of a store that is yet to be filled."""
    if size % autoencoder.factor:
        raise UserError(f"image size {size}: the autoencoder needs a multiple of {autoencoder.factor}")
    side = size // autoencoder.factor
    return Manifest(
        autoencoder=autoencoder.name,
        weights_hash=autoencoder.weights_hash,
        scale=autoencoder.traits.scale,
        shift=autoencoder.traits.shift,
        posterior=autoencoder.traits.posterior,
        normalization=autoencoder.traits.normalization,
        images=len(images.paths),
        skipped=0,
        latent_shape=(autoencoder.channels, side, side),
        float16_error={},
        complete=False,
        **describe_images(images, size),
    )


def describe_images(images: ImageFolder, size: int) -> dict[str, Any]:
    """What the manifest says of the images: known before an autoencoder is loaded."""
    paths = "\0".join(images.paths).encode("utf-8", "surrogateescape")  # the names' bytes, in any locale
    return {
        "image_size": size,
        "class_names": tuple(map(canonical, images.class_names)),
        "images_hash": hashlib.sha256(paths).hexdigest(),
    }


def chunks_of(images: int) -> list[range]:
    """The rows of a store in chunks."""
    return [range(start, min(start + CHUNK, images)) for start in range(0, images, CHUNK)]


class LatentStore:
    """A folder of latents that is being filled."""

    def __init__(self, folder: str | Path) -> None:
        """Nothing is written yet; raises `UserError` when the folder holds something else."""
        self.folder = Path(folder)
        self.chunks = self.folder / "chunks"
        self.moments = self.folder / "moments.bin"
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file: expected a new folder, or that of an earlier run")
        names = os.listdir(self.folder) if self.folder.exists() else []
        if "manifest.json" not in names and not all(
            name == ".lock" or LEFTOVER.fullmatch(name) for name in names
        ):
            raise UserError(f"{self.folder} is not empty and holds no latents: choose another folder")

    def matching(self, wanted: Manifest) -> Manifest | None:
        """The manifest of earlier work, None before any; `UserError` when its images or settings differ."""
        if not (self.folder / "manifest.json").exists():
            return None
        earlier = read_manifest(self.folder)
        self.compare(earlier, {name: getattr(wanted, name) for name in DECISIVE})
        return earlier

    def check_earlier(self, images: ImageFolder, size: int) -> None:
        """Raise `UserError` when earlier work is of other images, or of another size."""
        if (self.folder / "manifest.json").exists():
            self.compare(read_manifest(self.folder), describe_images(images, size))

    def compare(self, earlier: Manifest, wanted: dict[str, Any]) -> None:
        for name, value in wanted.items():
            if getattr(earlier, name) != value:
                other = f"{self.folder} holds latents with other {DECISIVE[name]}"
                raise UserError(f"{other}: choose another folder or remove it")

    def allocated_bytes(self) -> int:
        """Bytes of moments.bin that are on the disk already; it is sparse."""
        return self.moments.stat().st_blocks * 512 if self.moments.exists() else 0

    def free_bytes(self) -> int:
        """Free bytes on the disk that the folder is, or will be, on."""
        existing = next(path for path in (self.folder, *self.folder.resolve().parents) if path.exists())
        return shutil.disk_usage(existing).free

    def begin(self, manifest: Manifest) -> None:
        """Make the files, or take up those of an earlier run; safe to be killed in and called again."""
        cut = not self.moments.exists() or self.moments.stat().st_size != manifest.moments_bytes
        if cut and any(self.chunks.glob("*.json")):
            raise UserError(f"{self.moments} was removed or cut since it was written: remove {self.folder}")
        for leftover in [*leftovers(self.folder), *leftovers(self.chunks)]:
            leftover.unlink()
        # The manifest comes first: it is how a later call knows this folder for its own.
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest.save(self.folder)
        self.chunks.mkdir(exist_ok=True)
        with open(self.moments, "ab") as file:
            file.truncate(manifest.moments_bytes)

    def entry(self, chunk: range) -> Path:
        """The file that says that a chunk is done."""
        return self.chunks / f"{chunk.start:09d}.json"

    def unfinished(self, manifest: Manifest) -> list[range]:
        """The chunks of rows that are not done."""
        if manifest.complete:
            return []
        return [chunk for chunk in chunks_of(manifest.images) if not self.entry(chunk).exists()]

    def kept(self, manifest: Manifest) -> str:
        """What an interrupt leaves, for the message."""
        kept = manifest.images - sum(map(len, self.unfinished(manifest)))
        return (
            f"{kept:,} of {manifest.images:,} images are encoded in {self.folder}: the same command goes on"
        )

    @contextmanager
    def writer(self) -> Iterator["ChunkWriter"]:
        """Open moments.bin for writing; a full disk becomes a `UserError`."""
        try:
            with open(self.moments, "r+b", buffering=0) as file:
                yield ChunkWriter(self, file.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"{self.folder}: disk full; make room and run the same command again") from error

    def skipped(self, manifest: Manifest) -> dict[int, str]:
        """Reasons by row, of all chunks."""
        reasons: dict[int, str] = {}
        for chunk in chunks_of(manifest.images):
            entry = json.loads(self.entry(chunk).read_text(encoding="utf-8"))
            reasons |= {int(row): reason for row, reason in entry.items()}
        return reasons

    def finish(self, manifest: Manifest, images: ImageFolder) -> None:
        """Write labels and lists, measure the channels, and mark the store complete."""
        reasons = self.skipped(manifest)
        labels = np.array(images.labels, dtype=np.int64)
        labels[list(reasons)] = -1
        with replacing(self.folder / "labels.npy") as file:
            np.save(file, labels)
        with replacing(self.folder / "images.json") as file:
            file.write(json.dumps([canonical(path) for path in images.paths], indent=0).encode())
        with replacing(self.folder / "skipped.txt") as file:
            lines = (
                f"{printable(images.paths[row])}\t{printable(reason)}\n" for row, reason in reasons.items()
            )
            file.write("".join(lines).encode())
        measured = measure_channels(self.moments, manifest, labels >= 0)
        replace(manifest, skipped=len(reasons), complete=True, **measured).save(self.folder)

    def lacks_statistics(self, manifest: Manifest) -> bool:
        """Whether a finished store is one from before channels were measured, and can be written."""
        return manifest.channel_mean is None and os.access(self.folder, os.W_OK)

    def add_statistics(self, manifest: Manifest) -> None:
        """Measure the channels of a finished store."""
        labels = read_labels(self.folder / "labels.npy", manifest)
        replace(manifest, **measure_channels(self.moments, manifest, labels >= 0)).save(self.folder)

    def drop_journal(self) -> None:
        """Remove what only an unfinished store needs."""
        remove_folder(self.chunks, CHUNK_NAME)


class ChunkWriter:
    """Writes moments in place and notes finished chunks."""

    def __init__(self, store: LatentStore, descriptor: int) -> None:
        self.store = store
        self.descriptor = descriptor

    def write(self, row: int, moments: np.ndarray) -> None:
        """Write moments (rows, 2, 2 or 1, C, h, w) float16 from `row` on."""
        data = memoryview(moments).cast("B")
        offset = row * moments[0].nbytes
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written

    def finish_chunk(self, chunk: range, skipped: dict[int, str]) -> None:
        """Note that a chunk is done, once its moments are safe on the disk."""
        os.fdatasync(self.descriptor)
        with replacing(self.store.entry(chunk)) as file:
            file.write(json.dumps(skipped).encode())
