"""Sets of images to score: a folder, an npz or an array, read in part: a set need not fit in memory."""

import contextlib
import copy
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image

from gspn_dit.data.images import UnreadableImage, find_images, read_image
from gspn_dit.errors import UserError
from gspn_dit.files import content_key, describe_file, sha256

LOSSLESS = {".png", ".apng", ".bmp", ".dib", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff", ".tga", ".pcx"}
"""Formats that keep 8-bit RGB as it is; all others count as lossy."""
# NotImplementedError, a RuntimeError, is zipfile's word for a compression or a version that it does not know.
DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
"""What reading an archive raises when its bytes are not those that were written, or are encrypted."""
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or no whole one."""
LOOKED_AT = 1_000
"""Pictures of a folder whose sizes are compared when it is opened: unlike ones mostly show among them."""


class Images(Protocol):
    """Images of one size, by number."""

    name: str
    size: tuple[int, int]
    """Height and width."""
    lossy: bool
    """Whether some came through a format that changes pixels."""
    note: str | None
    """A line to be shown: what was left out."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Images (stop - start, H, W, 3) uint8; grey is repeated."""
        ...

    def key(self) -> str:
        """A hash of the contents."""
        ...


def open_images(path: str | Path, crop: int | None = None) -> Images:
    """The images in a folder or in an npz; `UserError` when there are none, or fewer than two.

    Args:
        crop: side in pixels that a folder's pictures are resized and cut to, as for training; None leaves them alone.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}; expected an npz or a folder of images")
    images = FolderImages(path, crop) if path.is_dir() else NpzImages(path)
    if crop is None and isinstance(images, FolderImages):
        images.check_sizes()
    if len(images) < 2:
        raise UserError(f"{path} holds {len(images)} images: scores need at least 2")
    return images


class ArrayImages:
    """Images in memory, (n, H, W, 3) uint8."""

    lossy = False
    note = None

    def __init__(self, array: np.ndarray, name: str) -> None:
        self.array, self.name = array, name
        self.size = array.shape[1:3]

    def __len__(self) -> int:
        return len(self.array)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]

    def key(self) -> str:
        return content_key([repr(self.array.shape).encode(), self.array.tobytes()])


class FolderImages:
    """Every image below a folder (see `gspn_dit.data.images.find_images`), in the order of the paths.

    They have one size, or are cut to squares of side `crop`.
    """

    def __init__(self, folder: Path, crop: int | None = None) -> None:
        self.name, self.crop = str(folder), crop
        found = find_images(folder)
        self.files = [folder / path for path in found.images]
        if not self.files:
            raise UserError(f"{folder} holds no images: expected files that Pillow reads, in it or below")
        note = found.left_out_line()
        self.note = f"{folder}: {note}" if note else None
        self.lossy = any(file.suffix.lower() not in LOSSLESS for file in self.files)
        self.size = self.open(self.files[0]).shape[:2]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, start: int, stop: int) -> np.ndarray:
        images = []
        for file in self.files[start:stop]:
            image = self.open(file)
            self.check_size(file, image.shape[:2])
            images.append(image)
        return np.stack(images)

    def check_size(self, file: Path, size: tuple[int, int]) -> None:
        """Raise `UserError` for a height and width that the others do not have."""
        if tuple(size) != tuple(self.size):
            found, expected = ("x".join(map(str, shape)) for shape in (size, self.size))
            raise UserError(
                f"{file} is {found}, the images before it {expected}: scores need one size; --crop cuts a reference's "
                "pictures to that of the samples, as training does"
            )

    def check_sizes(self) -> None:
        """Raise `UserError` where the first `LOOKED_AT` pictures differ in size; only their headers are read."""
        for file in self.files[:LOOKED_AT]:
            try:
                with Image.open(file) as image:
                    size = image.size[::-1]
            except UNREADABLE:
                continue  # told when it is read
            self.check_size(file, size)

    def subset(self, numbers: np.ndarray) -> "FolderImages":
        """The images with these numbers (k,)."""
        chosen = copy.copy(self)
        chosen.files = [self.files[number] for number in numbers.tolist()]
        return chosen

    def open(self, file: Path) -> np.ndarray:
        """One image as (H, W, 3) uint8."""
        try:
            if self.crop is not None:
                return read_image(file, self.crop)
            with Image.open(file) as image:
                if image.mode[0] in "IF":  # Pillow would clip what is beyond 255
                    raise UserError(f"{file} has pixels of mode {image.mode}; expected 8 bits a channel")
                return np.array(image.convert("RGB"))
        except (*UNREADABLE, UnreadableImage) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{file} cannot be read as an image: {reason}; remove it or write it again"
            ) from error

    def key(self) -> str:
        cut = [] if self.crop is None else [f"cut to {self.crop}".encode()]
        return content_key([*(sha256(file).encode() for file in self.files), *cut])


class NpzImages:
    """`arr_0` of an npz, (n, H, W, 3), (n, H, W, 1) or (n, H, W) uint8; pickled objects are refused.

    Stored arrays, as numpy.savez writes them, are mapped; compressed ones are read from front to back.
    """

    lossy = False
    note = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        arrays = NpzFile(path)
        arrays.check()
        if "arr_0" not in arrays.names:
            raise UserError(f"{path} has no array arr_0 (it has {', '.join(arrays.names) or 'none'})")
        shape, dtype = arrays.header("arr_0")
        if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise UserError(
                f"{path}: arr_0 is {dtype} {shape}; expected uint8 (n, H, W, 3), or (n, H, W) for grey"
            )
        if 0 in shape[1:]:
            raise UserError(f"{path}: arr_0 is {shape}; expected images of at least one pixel")
        self.count, self.size, self.image_shape = shape[0], shape[1:3], shape[1:]
        self.rows = arrays.rows("arr_0")

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> np.ndarray:
        images = self.rows.read(start, stop).reshape(-1, *self.image_shape)
        if images.ndim == 3:
            images = images[..., None]
        return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)

    def key(self) -> str:
        return sha256(self.path)


class NpzFile:
    """The arrays of an npz, without ever unpickling; whatever is wrong with it is one `UserError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except DAMAGE as error:
            raise self.no_npz() from error
        entries = [name for name in self.archive.namelist() if name.endswith(".npy")]
        if not entries:
            raise self.no_npz()
        self.names = [name.removesuffix(".npy") for name in entries]

    def no_npz(self) -> UserError:
        """The error for a file of another kind."""
        return UserError(
            f"{self.path} is {describe_file(self.path)}; expected an npz, whole, as "
            "numpy.savez(path, arr_0=images) writes it"
        )

    def check(self) -> None:
        """Raise `UserError` for an array whose bytes are not those that were written."""
        with self.damage_told("an array"):
            damaged = self.archive.testzip()
        if damaged:
            raise UserError(f"{self.path} is damaged ({damaged}): write or download it again")

    @contextlib.contextmanager
    def damage_told(self, what: str) -> Iterator[None]:
        """Turn what reading a damaged archive raises into a `UserError`."""
        try:
            yield
        except DAMAGE as error:
            raise UserError(f"{self.path} is damaged ({what}): write or download it again") from error

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """The bytes of an array, its header among them."""
        with self.damage_told(name), self.archive.open(f"{name}.npy") as entry:
            yield entry

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of an array; pickled objects are refused."""
        with self.open(name) as entry:
            return self.parse(name, entry)

    def parse(self, name: str, entry: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
        """Read an array's header, and leave the file at its first element."""
        try:
            version = np.lib.format.read_magic(entry)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(entry)
        except (ValueError, tokenize.TokenError) as error:
            raise UserError(f"{self.path}: {name} is not an array that numpy wrote") from error
        if dtype.hasobject:
            raise UserError(f"{self.path}: {name} holds pickled Python objects, which are refused")
        if fortran and len(shape) > 1:
            raise UserError(f"{self.path}: {name} is in Fortran order; write it from a C-contiguous array")
        return shape, dtype

    def read(self, name: str) -> np.ndarray:
        """A whole array of numbers."""
        with self.open(name) as entry:
            shape, dtype = self.parse(name, entry)
            if dtype.kind not in "fiu":
                raise UserError(f"{self.path}: {name} is {dtype}; expected numbers")
            return np.frombuffer(bytearray(entry.read()), dtype=dtype).reshape(shape)

    def rows(self, name: str) -> "MappedRows | StreamedRows":
        """Rows of an array of bytes, read in part."""
        info = self.archive.getinfo(f"{name}.npy")
        with self.open(name) as entry:
            shape, _ = self.parse(name, entry)
            header = entry.tell()
        length = math.prod(shape[1:])
        if info.file_size != header + shape[0] * length:
            raise UserError(f"{self.path}: {name} is not as long as its shape {shape} says: write it again")
        if info.compress_type != zipfile.ZIP_STORED:
            return StreamedRows(self, name, length)
        return MappedRows(self.path, data_offset(self.path, info) + header, shape[0], length)


def data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin: after its local header, name and extra field."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra


class MappedRows:
    """Rows of uint8 in a file, mapped."""

    def __init__(self, path: Path, offset: int, count: int, length: int) -> None:
        self.place = {
            "filename": path,
            "dtype": np.uint8,
            "mode": "r",
            "offset": offset,
            "shape": (count, length),
        }

    def read(self, start: int, stop: int) -> np.ndarray:
        # Mapped anew for each read, so that the pages of a large file do not count as this process's memory.
        return np.array(np.memmap(**self.place)[start:stop])


class StreamedRows:
    """Rows of uint8 in a compressed entry; asked for in rising order, each is decompressed once."""

    def __init__(self, file: NpzFile, name: str, length: int) -> None:
        self.file, self.name, self.length = file, name, length
        self.reopen()

    def reopen(self) -> None:
        self.entry = self.file.archive.open(f"{self.name}.npy")
        self.file.parse(self.name, self.entry)
        self.next = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        if start < self.next:
            self.reopen()
        for size in chunks((start - self.next) * self.length):
            self.entry.read(size)
        self.next = stop
        rows = bytearray(self.entry.read((stop - start) * self.length))
        return np.frombuffer(rows, dtype=np.uint8).reshape(-1, self.length)


def chunks(total: int, size: int = 1 << 24) -> Iterator[int]:
    """Sizes of at most 16 MiB that add up to a total."""
    while total > 0:
        yield min(size, total)
        total -= size
