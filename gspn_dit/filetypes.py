"""What a file is, by its first bytes: for the message about one of another kind than was asked for."""

import os
import stat
import zipfile
from pathlib import Path

STARTS = (
    (b"\x93NUMPY", "a .npy, one array of numpy"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"PAR1", "a Parquet file"),
    (b"version https://git-lfs", "a pointer of Git LFS: run `git lfs pull` for the file itself"),
)
"""Bytes that a file begins with, and what it then is."""


def describe_file(path: str | Path) -> str:
    """What lies at a path, in words that follow "is": a folder, a .npy, a text, ..."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return "a folder"
        if not stat.S_ISREG(mode):
            return "a device, a pipe or a socket"
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"not to be read ({error.strerror})"
    return "an empty file" if not start else describe_start(start, Path(path))


def describe_start(start: bytes, path: Path) -> str:
    """What a file with these first 512 bytes is."""
    for magic, kind in STARTS:
        if start.startswith(magic):
            return kind
    if start.startswith(b"PK"):
        return describe_zip(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return "a safetensors file"
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "a pickle"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "a web page (HTML): the download gave no file"
    return "a text" if is_text(start) else "a file of an unknown kind"


def describe_zip(path: Path) -> str:
    """What a zip holds: arrays of numpy, what torch.save wrote, or something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return "a zip archive that is cut short or damaged"
    if any(name.endswith("data.pkl") for name in names):
        return "what torch.save wrote"
    if names and all(name.endswith(".npy") for name in names):
        return "an npz"
    return "a zip archive"


def is_text(start: bytes) -> bool:
    """Whether bytes are UTF-8 without control characters; a character cut at the end does not count."""
    text = start.decode("utf-8", "ignore")
    lost = len(start) - len(text.encode())
    return lost < 4 and not any(ord(c) < 32 and c not in "\t\n\r\f" for c in text)
