"""Image folders: which files are images, of which class, and how one becomes a square of pixels."""

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gspn_dit.errors import UserError
from gspn_dit.files import describe_file

NAMED = 3
"""Files left out that a line names; it counts them all."""


class UnreadableImage(Exception):
    """An image that cannot be used; the message says why."""


@dataclass(frozen=True)
class Listing:
    """What lies below a folder; paths are relative to it, with forward slashes, and sorted."""

    images: list[str]
    folders: list[str]
    """The folders directly below, hidden ones left out."""
    left_out: list[str]
    """Hidden files and folders, files that are no images, and folders that a link led to a second time."""

    def left_out_line(self) -> str | None:
        """One line that counts what was left out and names some of it; None where there is nothing."""
        if not self.left_out:
            return None
        named = ", ".join(self.left_out[:NAMED]) + (", ..." if len(self.left_out) > NAMED else "")
        return f"left out {len(self.left_out):,} files or folders, hidden or no images: {named}"


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, in the sorted order that numbers them."""

    root: Path
    paths: list[str]
    """Relative to root, with forward slashes."""
    labels: list[int]
    class_names: list[str]
    """The sorted names of the folders directly below root; root's own name when the images lie in it."""
    notes: list[str]
    """Lines to be shown: what was left out, and class folders without an image."""


def list_images(root: str | Path) -> ImageFolder:
    """Find every image below `root`: root/class/**/image, or all images directly in root as one class.

    A class folder without an image keeps its number, so that no label depends on what other classes hold.
    Raises `UserError` when there are no images, or when some lie beside the class folders.
    """
    root = Path(root)
    if not root.is_dir():
        there = f"is {describe_file(root)}" if root.exists() else "does not exist"
        raise UserError(f"image folder {root} {there}: expected class folders of images, or images")
    found = find_images(root)
    paths, note = found.images, found.left_out_line()
    notes = [f"{root}: {note}"] if note else []
    if not paths:
        raise UserError(f"image folder {root} holds no image that Pillow knows by its extension")
    flat = [path for path in paths if "/" not in path]
    if flat and len(flat) < len(paths):
        raise UserError(
            f"image folder {root} holds images beside its class folders, e.g. {flat[0]}: "
            "move them into a class folder"
        )
    if flat:
        return ImageFolder(root, paths, [0] * len(paths), [root.resolve().name], notes)
    numbers = {name: number for number, name in enumerate(found.folders)}
    labels = [numbers[path.split("/")[0]] for path in paths]
    for name in sorted(numbers.keys() - {path.split("/")[0] for path in paths}):
        notes.append(
            f"{root}: class folder {name} holds no image; it keeps its number, {numbers[name]}: remove it if "
            "it is no class"
        )
    return ImageFolder(root, paths, labels, found.folders, notes)


def find_images(root: Path) -> Listing:
    """Every image below root: the one rule of what counts, for encoding, training and scoring alike.

    A file is an image when Pillow knows its extension; hidden files and folders do not count, links do, and a
    folder reached twice through links counts once. `UserError` for a folder that cannot be read.
    """
    extensions = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    seen, images, left_out, top = set(), [], [], []
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse_unreadable):
        relative = Path(folder).relative_to(root)
        real = os.path.realpath(folder)
        if real in seen:
            left_out.append(relative.as_posix())
            subfolders.clear()
            continue
        seen.add(real)
        left_out += [(relative / name).as_posix() for name in subfolders if name.startswith(".")]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        top = top or (list(subfolders) if Path(folder) == root else [])
        for name in files:
            counts = not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions
            (images if counts else left_out).append((relative / name).as_posix())
    return Listing(sorted(images), top, sorted(left_out))


def refuse_unreadable(error: OSError) -> None:
    """A folder that os.walk cannot list; by itself it would leave out whatever lies there."""
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def read_image(path: str | Path, size: int | None) -> np.ndarray:
    """Read, convert to RGB and crop as ADM does: (size, size, 3) uint8; the whole (H, W, 3) for a size of None.

    EXIF orientation is not applied and alpha is dropped, as in ADM. Raises `UnreadableImage`.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            image.load()
            image = to_rgb(image)
            return np.asarray(image if size is None else center_crop(image, size))
    except Exception as error:
        # A broken file makes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(reason) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB; Pillow's own conversion would clip the values of 16-bit images at 255."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    elif image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is unknown")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: halve by a box filter while the short side is at least 2 * size, resize by bicubic, crop.

    Smaller images are enlarged. Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), preprocessing of ImageNet.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    if width * height > Image.MAX_IMAGE_PIXELS:
        if size**2 > Image.MAX_IMAGE_PIXELS:
            raise UnreadableImage(f"a side of {size} pixels is more than can be made of any picture")
        raise UnreadableImage(f"an aspect ratio of {math.ceil(max(image.size) / min(image.size))}:1")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
