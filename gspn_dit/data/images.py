"""Image folders: which files are images, of which class, and how one becomes a square of pixels."""

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gspn_dit.errors import UserError


class UnreadableImage(Exception):
    """An image that cannot be used; the message says why."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, in the sorted order that numbers them."""

    root: Path
    paths: list[str]
    """Relative to root, with forward slashes."""
    labels: list[int]
    class_names: list[str]
    """The sorted names of the folders directly below root; root's own name when the images lie in it."""


def list_images(root: str | Path) -> ImageFolder:
    """Find every image below `root`: root/class/**/image, or all images directly in root as one class.

    A file is an image when Pillow knows its extension; hidden files and folders do not count, links do.
    Raises `UserError` when there are no images, or when some lie beside the class folders.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"image folder {root} does not exist: expected class folders of images, or images")
    paths = sorted(find_images(root))
    if not paths:
        raise UserError(f"image folder {root} holds no image that Pillow knows by its extension")
    flat = [path for path in paths if "/" not in path]
    if flat and len(flat) < len(paths):
        raise UserError(
            f"image folder {root} holds images beside its class folders, e.g. {flat[0]}: "
            "move them into a class folder"
        )
    classes = [root.resolve().name if flat else path.split("/")[0] for path in paths]
    class_names = sorted(set(classes))
    numbers = {name: number for number, name in enumerate(class_names)}
    return ImageFolder(root, paths, [numbers[name] for name in classes], class_names)


def find_images(root: Path) -> list[str]:
    """Relative paths of the images below root, unsorted; a folder reached twice through links counts once."""
    extensions = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    seen = set()
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        relative = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                found.append((relative / name).as_posix())
    return found


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Read, convert to RGB and crop as ADM does: (size, size, 3) uint8.

    EXIF orientation is not applied and alpha is dropped, as in ADM. Raises `UnreadableImage`.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            image.load()
            return np.asarray(center_crop(to_rgb(image), size))
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
        raise UnreadableImage(f"an aspect ratio of {math.ceil(max(image.size) / min(image.size))}:1")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
