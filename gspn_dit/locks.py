"""Locks: of two commands that would write the same, the second is told who is at work.

The system lets go of a lock whatever ends its process; the note of who holds it is for people.
"""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from gspn_dit.errors import UserError


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
