"""Pixels of an image folder, to train on without an autoencoder.

    root/train/class/**/image and root/test/class/**/image    the images of test/ are held out
    root/class/**/image                                       a share of every class is held out
    root/image (or root/train/image and root/test/image)      the same, all of one class

Which images are held out of a folder without test/ depends on their paths alone: not on a run's seed, and for
the images that were there before, hardly on those that are added.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gspn_dit.data.batches import chunks
from gspn_dit.data.images import ImageFolder, UnreadableImage, list_images, read_image
from gspn_dit.errors import UserError
from gspn_dit.files import content_key, sha256
from gspn_dit.processes import progress_bar
from gspn_dit.random import FLIP, seed_of

MEMORY_SHARE = 1 / 4
"""Part of the machine's memory that its processes together may fill with pixels."""
READERS = 8
"""Threads that decode, at most one for each core: Pillow decodes outside of Python's lock."""
NAMED = 3
"""Unreadable images named in an error."""
SPLITS = {"train", "test", "val", "valid", "validation"}
"""Names of folders that are parts of a data set, and not classes."""


class PixelDataset:
    """RGB images of one size with values in [-1, 1]; of the training part, mirrored half of the time.

    Read once and kept in memory as uint8 where they fit (see `fits`), else read from the disk at every draw.
    `draw` is a pure function of its arguments.
    """

    channels = 3
    autoencoder = None

    def __init__(self, images: ImageFolder, size: int, *, flip: bool, keep: bool) -> None:
        """Raises `UserError` naming images that cannot be read, all of them when they are kept in memory.

        Args:
            flip: mirror an image or not by its number in training.
            keep: read all of them now; else each is read when it is drawn.
        """
        self.images, self.size, self.flip = images, size, flip
        self.class_names = images.class_names
        self.num_classes = len(images.class_names)
        self.labels = torch.tensor(images.labels)
        files = [images.root / path for path in images.paths]
        self.hashes = {"listing_hash": content_key(listing(images.paths, files))}
        self.pixels: torch.Tensor | None = None
        if keep:
            self.pixels, self.hashes["images_hash"] = read_all(images.paths, files, size)

    def __len__(self) -> int:
        return len(self.labels)

    def draw(
        self, indices: np.ndarray, image_numbers: np.ndarray, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Dataset.draw`; the mirror of an image is keyed by (seed, image number)."""
        chosen = torch.from_numpy(indices)
        pixels = self.read(indices.tolist()) if self.pixels is None else self.pixels[chosen]
        x = pixels.float().div_(127.5).sub_(1)  # (n, 3, size, size)
        if self.flip:
            mirrored = [seed_of(FLIP, seed, number) & 1 for number in image_numbers.tolist()]
            x = torch.where(torch.tensor(mirrored, dtype=torch.bool).view(-1, 1, 1, 1), x.flip(3), x)
        return x, self.labels[chosen]

    def read(self, indices: list[int]) -> torch.Tensor:
        """Images from the disk, (n, 3, size, size) uint8."""
        files = [self.images.root / self.images.paths[index] for index in indices]
        with readers() as pool:
            return torch.stack(list(pool.map(lambda file: read_pixels(file, self.size), files)))

    @property
    def notes(self) -> list[str]:
        """Lines to be shown: what the folder holds besides, and where the pixels are."""
        megabytes = len(self) * image_bytes(self.size) / 1e6
        where = "in memory" if self.pixels is not None else "read from the disk at every draw"
        return [*self.images.notes, f"pixels: {self.size}x{self.size}, {megabytes:,.0f} MB, {where}"]


def training_pixels(root: str | Path, size: int, held_out: float, flip: bool) -> PixelDataset:
    """The images of `root` to train on; see this file's head for its folders, and `data` of a config."""
    images, _ = split_folder(Path(root), held_out)
    return PixelDataset(images, size, flip=flip, keep=fits(len(images.paths), size))


def held_out_pixels(root: str | Path, size: int, held_out: float) -> PixelDataset | None:
    """The images of `root` never trained on, never mirrored, read as they are drawn; None when there are none."""
    _, images = split_folder(Path(root), held_out)
    return PixelDataset(images, size, flip=False, keep=False) if images else None


def split_folder(root: Path, share: float) -> tuple[ImageFolder, ImageFolder | None]:
    """The images to train on and those held out, None when there are none; both number the classes alike.

    Args:
        share: of the images of each class, held out where there is no folder test/.
    """
    folders = {path.name for path in root.glob("[!.]*") if path.is_dir()}
    if {"train", "test"} <= folders:
        return with_test(root, list_images(root / "train"), list_images(root / "test"))
    if folders and folders <= SPLITS:
        found = ", ".join(sorted(folders))
        raise UserError(f"image folder {root} holds {found}: expected train and test, or class folders")
    images = list_images(root)
    chosen = held_out_of(images, share)
    if chosen.all():
        raise UserError(f"data.held_out: {share} leaves no image of {root} to train on")
    return part(images, ~chosen), part(images, chosen) if chosen.any() else None


def with_test(root: Path, train: ImageFolder, test: ImageFolder) -> tuple[ImageFolder, ImageFolder]:
    """Number the classes of test/ as those of train/; `UserError` for one that train/ lacks."""
    if is_flat(train) != is_flat(test):
        raise UserError(f"image folder {root}: expected class folders in both train and test, or in neither")
    if is_flat(train):
        names = [root.resolve().name]
        return replace(train, class_names=names), replace(test, class_names=names)
    numbers = {name: number for number, name in enumerate(train.class_names)}
    unknown = sorted(set(test.class_names) - set(numbers))
    if unknown:
        raise UserError(f"image folder {root}: test holds the class {unknown[0]}, which train does not")
    labels = [numbers[test.class_names[label]] for label in test.labels]
    return train, replace(test, labels=labels, class_names=train.class_names)


def is_flat(images: ImageFolder) -> bool:
    """Whether the images lie in the folder itself, without classes."""
    return "/" not in images.paths[0]


def held_out_of(images: ImageFolder, share: float) -> np.ndarray:
    """Which images are held out, (n,) bool: of each class, the share whose paths have the lowest hashes."""
    ranks = np.array([content_key([path.encode()]) for path in images.paths])
    labels = np.array(images.labels)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in range(len(images.class_names)):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(ranks[members])][: round(share * len(members))]] = True
    return chosen


def part(images: ImageFolder, chosen: np.ndarray) -> ImageFolder:
    """Some of the images of a folder, chosen by a mask (n,); its classes are the same."""
    numbers = np.flatnonzero(chosen).tolist()
    paths, labels = ([values[number] for number in numbers] for values in (images.paths, images.labels))
    return replace(images, paths=paths, labels=labels)


def image_bytes(size: int) -> int:
    return 3 * size * size


def fits(count: int, size: int) -> bool:
    """Whether so many images may be kept in memory by each of the machine's processes."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return count * image_bytes(size) * processes <= MEMORY_SHARE * memory


def listing(paths: Sequence[str], files: Sequence[Path]) -> Iterator[bytes]:
    """What a folder's listing says of its images: paths and lengths."""
    for path, file in zip(paths, files, strict=True):
        yield path.encode()
        yield str(file.stat().st_size).encode()


def read_all(paths: Sequence[str], files: Sequence[Path], size: int) -> tuple[torch.Tensor, str]:
    """All images (n, 3, size, size) uint8, and a hash of their paths and files; `UserError` for broken ones."""
    pixels = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    parts: list[bytes] = []
    broken: list[str] = []

    def read(number: int) -> str:
        try:
            pixels[number] = pixels_of(files[number], size)
        except UnreadableImage as error:
            broken.append(f"{files[number]} ({error})")
        return sha256(files[number])

    first = os.environ.get("RANK", "0") == "0"
    bar = progress_bar(total=len(files), desc="reading images", unit=" images", disable=not first)
    with readers() as pool, bar:
        for numbers in chunks(np.arange(len(files)), 1024):
            for number, file_hash in zip(numbers.tolist(), pool.map(read, numbers.tolist()), strict=True):
                parts += [paths[number].encode(), file_hash.encode()]
            bar.update(len(numbers))
    if broken:
        named = "; ".join(sorted(broken)[:NAMED])
        raise UserError(f"{len(broken)} of {len(files)} images cannot be read: remove or mend them: {named}")
    return pixels, content_key(parts)


def read_pixels(file: Path, size: int | None) -> torch.Tensor:
    """One image (3, size, size) uint8, the whole of it for a size of None; `UserError` when it cannot be read."""
    try:
        return pixels_of(file, size)
    except UnreadableImage as error:
        raise UserError(f"the image {file} cannot be read ({error}): mend or remove it") from error


def pixels_of(file: Path, size: int | None) -> torch.Tensor:
    """What `read_pixels` gives; raises `UnreadableImage`."""
    return torch.from_numpy(read_image(file, size).transpose(2, 0, 1).copy())


@contextlib.contextmanager
def readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), "readers") as pool:
        yield pool
