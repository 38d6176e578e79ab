"""Errors that a user can act on, and how the command lines report them."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, what was expected and what to do."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a bad argument is a `UserError`: one line without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's `main`; its exit status.

    A `UserError`, a file that cannot be read or written, or a full disk becomes one line on stderr and exit
    status 2.
    """
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        if error.filename is not None:
            message = f"cannot use {os.fsdecode(error.filename)}: {error.strerror}"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):  # a write to an open file does not know its name
            message = f"no space left on the disk: free some, and give the same command again ({error})"
        else:  # not about a file: a fault of the program
            raise
        print(f"error: {message}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
