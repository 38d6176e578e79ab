"""Sample files: ADM's npz format, written in shards: a kill loses little, and memory does not grow with N.

samples.npz             arr_0 (N, H, W, 3) uint8 and labels (N,) int64, not compressed
samples.json            what decides them: checkpoint, sampler, guidance, labels, decoder
samples.npz.parts/      settings.json and finished shards, until the last one is there
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gspn_dit.errors import UserError
from gspn_dit.files import read_json, remove_folder, replacing, write_json

SHARD = 128
"""Images of a shard: the most that a kill costs each process."""
PART = re.compile(r"\d{6,}-\d{3}\.npz|settings\.json")
"""The files of the folder of shards."""
NOT_COMPARED = ("path",)
"""Settings that may differ between the runs that fill one file: they do not decide its images."""


def write_samples(path: str | Path, images: np.ndarray, labels: np.ndarray, settings: dict) -> None:
    """Write a sample file and its settings from images (N, H, W, 3) uint8 and labels (N,) int64 in memory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, len(images), images.shape[1:], [images], labels)
    write_json(path.with_suffix(".json"), settings)


def read_settings(path: Path) -> dict | None:
    """The settings stored beside a sample file; None where there are none."""
    return read_json(path.with_suffix(".json"))


class SampleFile:
    """A sample file in the making. Shard k holds the images with the numbers from 128 k on."""

    def __init__(self, path: str | Path, count: int, settings: dict) -> None:
        self.path = Path(path)
        self.count = count
        self.settings = settings
        self.parts = self.path.with_name(self.path.name + ".parts")

    def check(self) -> None:
        """Raise `UserError` when the path holds something that this file would not continue."""
        if self.path.suffix != ".npz":
            raise UserError(f"--npz {self.path}: expected a name that ends in .npz")
        beside, begun = self.path.with_suffix(".json"), self.parts / "settings.json"
        if self.path.exists() and not beside.exists() and not begun.exists():
            raise UserError(
                f"{self.path} exists and has no settings beside it: give another name, or remove it"
            )
        shards = any(map(PART.fullmatch, os.listdir(self.parts) if self.parts.is_dir() else ()))
        for file, needed in ((beside, beside.exists()), (begun, begun.exists() or shards)):
            stored = read_json(file)
            if needed and not isinstance(stored, dict):
                raise UserError(f"{file} holds no settings of samples: give {self.path} another name")
            for key in sorted(differing(stored, self.settings)):
                found, asked = stored.get(key), self.settings.get(key)
                change = f"{self.path} was begun with {key} {found!r}, now {asked!r}"
                raise UserError(f"{change}: give another name, or remove it")

    def room(self, image_bytes: int) -> str:
        """A line with the disk that the rest takes and what is free; `UserError` when it cannot fit.

        While the shards are joined, the images are there twice.
        """
        size = self.count * image_bytes
        missing = sum(len(self.numbers(shard)) for shard in self.missing()) * image_bytes
        folder = next(parent for parent in self.parts.parents if parent.exists())
        free = shutil.disk_usage(folder).free
        line = (
            f"{self.path}: {gigabytes(size)}, {gigabytes(missing + size)} until its shards are joined "
            f"({gigabytes(free)} free)"
        )
        if missing + size > free:
            raise UserError(f"no room for {line}: free some, or give a name on another disk")
        return line

    def open(self) -> None:
        """Make the folder of shards; any number of processes may call this."""
        self.parts.mkdir(parents=True, exist_ok=True)
        if read_json(self.parts / "settings.json") is None:
            write_json(self.parts / "settings.json", self.settings)

    def close_unused(self) -> None:
        """Remove the folder of shards while there is none: other settings may then take the name."""
        if not any(self.parts.glob("*.npz")):
            shutil.rmtree(self.parts, ignore_errors=True)

    @property
    def complete(self) -> bool:
        """Whether the file is there, with these settings, which are written after it."""
        stored = read_settings(self.path)
        return self.path.exists() and stored is not None and not differing(stored, self.settings)

    def numbers(self, shard: int) -> range:
        """The numbers of a shard's images."""
        return range(shard * SHARD, min((shard + 1) * SHARD, self.count))

    def missing(self, process: int = 0, processes: int = 1) -> list[int]:
        """The shards that this process has still to make: every `processes`-th one, without those there."""
        shards = range(process, -(-self.count // SHARD), processes)
        return [shard for shard in shards if not self.shard_path(shard).exists()]

    def kept(self) -> str:
        """What an interrupt leaves, for the message."""
        kept = self.count - sum(len(self.numbers(shard)) for shard in self.missing())
        return (
            f"{kept:,} of {self.count:,} images are kept in {self.parts}: the same command makes the others"
        )

    def shard_path(self, shard: int) -> Path:
        return self.parts / f"{shard:06d}-{len(self.numbers(shard)):03d}.npz"

    def write(self, shards: list[int], batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Cut batches (images, labels), which run through the numbers of `shards`, into shard files."""
        images, labels = [], []
        remaining = iter(shards)
        shard = next(remaining, None)
        for new_images, new_labels in batches:
            images.extend(new_images)
            labels.extend(new_labels)
            while shard is not None and len(images) >= len(self.numbers(shard)):
                size = len(self.numbers(shard))
                with replacing(self.shard_path(shard)) as file:
                    np.savez(
                        file, arr_0=np.stack(images[:size]), labels=np.array(labels[:size], dtype=np.int64)
                    )
                del images[:size], labels[:size]
                shard = next(remaining, None)

    def merge(self) -> None:
        """Join the shards by number into the file, which is whole or absent at any moment; remove them."""
        paths = [self.shard_path(shard) for shard in range(-(-self.count // SHARD))]
        with np.load(paths[0], allow_pickle=False) as first:
            shape = first["arr_0"].shape[1:]
        labels = np.concatenate([load(path, "labels") for path in paths])
        write_npz(self.path, self.count, shape, (load(path, "arr_0") for path in paths), labels)
        write_json(self.path.with_suffix(".json"), self.settings)
        remove_folder(self.parts, PART)


def differing(stored: dict | None, settings: dict) -> set[str]:
    """The keys of settings that matter and are not the same."""
    if stored is None:
        return set()
    plain = json.loads(json.dumps(settings))
    return {key for key in stored.keys() | plain.keys() if stored.get(key) != plain.get(key)} - set(
        NOT_COMPARED
    )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def load(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def write_npz(
    path: Path, count: int, shape: tuple[int, ...], images: Iterable[np.ndarray], labels: np.ndarray
) -> None:
    """Write arr_0 (count, *shape) uint8 part by part, then labels."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    with replacing(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for part in images:
                entry.write(np.ascontiguousarray(part, dtype=np.uint8).data)
        with archive.open("labels.npy", "w") as entry:
            np.lib.format.write_array(entry, np.asarray(labels, dtype=np.int64))
