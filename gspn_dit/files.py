"""Files: written so that a kill or a full disk never leaves half of one, hashed, cached, and locked."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import stat
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from gspn_dit.errors import UserError

LEFTOVER = re.compile(r"\.tmp-[0-9a-f]{32}-.+", re.DOTALL)
"""What `replacing` calls a file that is being written."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` for writing; on a clean exit it is synced and renamed to `path`.

    Where `path` is a link, what it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    # Not the process's number: on a shared disk another machine may have a process of that number.
    aside = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def leftovers(folder: Path) -> list[Path]:
    """The files that a kill left half written in a folder."""
    return [path for path in folder.glob(".tmp-*") if LEFTOVER.fullmatch(path.name)]


def remove_folder(folder: Path, own: re.Pattern[str]) -> None:
    """Remove the files of a folder whose names match, and what a kill left of them; the folder too when that is all."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if own.fullmatch(path.name) or LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        folder.rmdir()


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none or it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


def sync_folder(path: Path) -> None:
    """Make renames inside a folder last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's contents last through a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The folder of results that follow from their inputs alone: $GSPN_DIT_CACHE, or ~/.cache/gspn-dit; made here.

    `UserError` where there is none to be had, as for a container's user without a home.
    """
    given = os.environ.get("GSPN_DIT_CACHE")
    if not given:
        require_home("GSPN_DIT_CACHE")
    folder = Path(at_home("GSPN_DIT_CACHE", given) if given else Path.home() / ".cache" / "gspn-dit")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the cache {folder} ({error.strerror}): set GSPN_DIT_CACHE to a folder that can be"
        ) from error
    return folder


def require_home(*variables: str) -> None:
    """Raise `UserError` where a cache would lie in a home that nobody has, and none of the variables names another.

    Libraries make a folder called ~ in the working directory then.
    """
    if not any(map(os.environ.get, variables)) and os.path.expanduser("~") == "~":
        raise UserError(f"this user has no home folder for a cache: set {variables[0]} to a folder")


def content_key(parts: Iterable[bytes]) -> str:
    """SHA-256 over byte strings, each preceded by its length, so that no two lists of parts read alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def refuse_inputs(option: str, output: str | Path, inputs: Iterable[tuple[str, str | Path]]) -> None:
    """Raise `UserError` for an output that is one of the inputs, or would lie in a folder that is one.

    Args:
        option: what names the output on the command line, for the message.
        inputs: (name, path) of each file or folder that is read. Links are followed; a path of which nothing is
            there, such as a hub id, refuses nothing.
    """
    place = Path(os.path.realpath(output))
    for name, path in inputs:
        source = Path(os.path.realpath(path))
        if not source.exists():
            continue
        if place == source or (place.exists() and place.samefile(source)):
            raise UserError(
                f"{option} {output} is {name} itself, which it would overwrite: give another name"
            )
        if source in place.parents:
            raise UserError(f"{option} {output} lies in {name}, {path}: give a place outside of it")


def check_output(what: str, path: str | Path, *, in_place: bool = False) -> None:
    """Raise `UserError` unless a file can be written at `path`; nothing is left behind.

    Args:
        what: names the file in the message: an option, or what will be written.
        in_place: the folder must be there; else the first one that is decides, as the others can be made in it.
    """
    path = Path(path)
    if (os.path.exists(path) and not os.path.isfile(path)) or os.path.abspath(path).startswith("/dev/"):
        kind = describe_file(path) if os.path.isdir(path) else "a device, a pipe or a socket"
        raise UserError(f"{what} {path} cannot be written: it is {kind}; give the name of a file")
    if in_place and not path.parent.is_dir():
        raise UserError(f"{what} {path} cannot be written: its folder does not exist")
    probe(what, path, path.parent)


def check_output_folder(what: str, path: str | Path) -> None:
    """Raise `UserError` unless files can be written in the folder `path`, which need not be there yet."""
    path = Path(path)
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"{what} {path} is {describe_file(path)}; expected a folder, or a name for a new one")
    probe(what, path, path)


def probe(what: str, path: Path, folder: Path) -> None:
    """Write and remove a file where `path` is to be: permissions do not tell all (read-only disks, /proc, quotas)."""
    present = existing(folder)
    if not present.is_dir():
        kind = describe_file(present)
        raise UserError(f"{what} {path} cannot be written: {present} is {kind}, not a folder")
    try:
        # Results are written beside their place first, under a longer name: see files.replacing.
        prefix = f".tmp-{'0' * 24}-{path.name if folder == path.parent else ''}"
        descriptor, name = tempfile.mkstemp(dir=present, prefix=prefix)
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)  # another process may tidy up
    except OSError as error:
        raise UserError(f"{what} {path} cannot be written in {present}: {error.strerror}") from error


def existing(path: Path) -> Path:
    """The path itself, or the nearest above it that is there."""
    path = Path(os.path.abspath(path))
    while not os.path.lexists(path):
        path = path.parent
    return path


# Locks: of two commands that would write the same, the second is told who is at work. The system lets go of a lock
# whatever ends its process; the note of who holds it is for people.


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make and hold a folder until the context or the process ends; `UserError` if another process has it.

    One that was made here and into which nothing was written goes again.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(folder / ".lock", folder):
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def claimed_file(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a file that is to be written; another process that has it is a `UserError`, or with `wait` waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.with_name(f".lock-{path.name}"), path, wait):
        yield


@contextlib.contextmanager
def held(lock: Path, what: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file of `what`, which is there as long."""
    while True:
        with open(lock, "a+b") as file:
            take(file, what, wait)
            if is_still(file, lock):  # else its last holder has just removed it
                sign(file)
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


def take(file: BinaryIO, what: Path, wait: bool) -> None:
    """Lock an open file, or say why not. A disk without locks, as some network file systems are, gets a warning."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not isinstance(error, BlockingIOError) and error.errno != errno.EACCES:
            print(
                f"{what}: this disk keeps no locks ({error.strerror}): see to it that no other process writes there",
                file=sys.stderr,
            )
        elif wait:
            print(f"waiting for {holder(file)}, at work on {what}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            raise UserError(f"{what} is in use by {holder(file)}: wait for it, or choose another") from error


def is_still(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def sign(file: BinaryIO) -> None:
    """Note who holds a lock, for others to read; a full disk keeps nobody from work."""
    note = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}"
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(note.encode())
        file.flush()


def holder(file: BinaryIO) -> str:
    """Who a lock's note names."""
    file.seek(0)
    return file.read(300).decode(errors="replace").strip() or "another process"


def at_home(what: str, path: str) -> str:
    """`path` with a ~ or ~user that begins it replaced by that home.

    Shells do that for a word that begins with ~, and not for run_dir=~/x or a path in a file. Raises `UserError`
    where there is no such home: what begins with ~ would become a folder of that name.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(
            f"{what} {path}: {path.split('/')[0]} is nobody's home here; give the path in full, or as ./{path}"
        )
    return expanded


def home_path(path: str) -> str:
    """For argparse: an argument that is a path, in which ~ is home."""
    return at_home("path", path)


def home_folder(path: str) -> Path:
    """`home_path`, for arguments that are `Path`."""
    return Path(home_path(path))


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
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        # NotImplementedError is zipfile's word for a version that it does not know: damage, as a rule.
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
