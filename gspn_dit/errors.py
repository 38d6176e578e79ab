"""Errors that a user can act on, and how the command lines report them."""

import argparse
import errno
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from gspn_dit import signals
from gspn_dit.names import forgive, printable

INSTALL = "is not installed: run `make setup`, or pip install -r requirements.txt"
SMALLER = "batch (train.micro_batch or train.memory of a training, --batch-size elsewhere), picture or model"
"""What takes less memory."""
NO_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Words of a RuntimeError of torch."""
OWN = ("gspn_dit", "ops", "experiments", "benchmarks")
"""This repository's packages: that one of their modules is missing is a fault of the program."""


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, what was expected and what to do."""


class NonFiniteError(UserError):
    """A result that is NaN or infinite, and is not passed on."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a bad argument is a `UserError`: one line without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def require_packages(*names: str) -> None:
    """Raise `UserError` for a package that is needed later and not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the package {name} {INSTALL}")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's `main`; its exit status.

    A `UserError`, a file that cannot be used, a full disk or a missing package becomes one line on stderr and exit
    status 2; a signal that stops the program one line and 128 + its number. What is printed may hold names that are
    no clean text: see `names.forgive`.
    """
    forgive()
    with signals.handling(signals.stop, lambda: "what was in hand is lost") as request:
        try:
            status = main()
        except KeyboardInterrupt as error:
            status = stopped(error, request.number or signal.SIGINT)
        except Exception as error:
            # Met on the way out of a stop: nobody reads the output any more, or another process is gone.
            if request.number:
                status = stopped(error, request.number)
            elif (message := one_line(error)) is None:
                raise
            else:
                print(f"error: {printable(message)}", file=sys.stderr)
                status = 2
        if request.number:
            signals.flush_or_drop(sys.stdout, sys.stderr)
    sys.exit(status or 0)


def stopped(error: BaseException | None, number: int) -> int:
    """Say what stopped the program and what the interrupt's notes say; the exit status."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    signals.say("; ".join([f"stopped by {signals.name_of(number)}", *getattr(error, "__notes__", ())]))
    return signals.exit_status(number)


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory, of the machine or of a GPU, was too little."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # Libraries' errors by name and words: torch, whose they are, is not loaded for this.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))
    )


def asked_for(error: Exception) -> str:
    """How much memory an error of its lack says was asked for; else its type."""
    found = re.search(r"(?i)(tried|unable) to allocate .{1,40}?(bytes|[KMGTP]iB)", str(error))
    return found[0] if found else type(error).__name__


def one_line(error: Exception) -> str | None:
    """What a user can do something about; None for a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in OWN:
        return f"the package {error.name} {INSTALL}"
    if lacks_memory(error):
        return f"out of memory: a smaller {SMALLER} helps ({asked_for(error)})"
    if not isinstance(error, OSError):
        return None
    if error.filename is not None:
        name = os.fsdecode(error.filename)
        if os.path.islink(name) and not os.path.exists(name):
            return f"{name} is a link to {os.readlink(name)}, which is not there"
        return f"cannot use {name}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a write to an open file does not know its name
        return f"no space left on the disk: free some, and give the same command again ({error})"
    return None
