"""Signals that stop a program: Ctrl-C, what a cluster sends before it kills, and a terminal that is closed.

The first asks: what is done is kept, and the exit status is 128 + the signal. A later one leaves at once. Imports
nothing heavy.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 2.0
"""Seconds within which a signal is the first one again: a terminal sends it to launcher and processes, the launcher
passes it on, and `timeout` sends it to its child and then to all."""


class Stopped(KeyboardInterrupt):
    """Raised where a stop signal arrives; its notes say what is kept and how to go on."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {name_of(number)}")
        self.number = number


class Request:
    """The stop signal that was received; 0 for none."""

    number = 0


def name_of(number: int) -> str:
    """SIGINT (Ctrl-C), SIGTERM, ..."""
    return signal.Signals(number).name + (" (Ctrl-C)" if number == signal.SIGINT else "")


def exit_status(number: int) -> int:
    """What a shell gives a program that a signal ended: 130, 143, 129."""
    return 128 + number


@contextlib.contextmanager
def handling(act: Callable[[int], None], lost: Callable[[], str]) -> Iterator[Request]:
    """Within the context the first stop signal calls `act` with its number, a later one leaves and says what is lost.

    A signal that is ignored, as by nohup, stays so. In a thread, which cannot handle signals, nothing changes.
    """
    request = Request()
    first = 0.0

    def handle(number: int, frame: object) -> None:
        nonlocal first
        if not request.number:
            request.number, first = number, time.monotonic()
            act(number)
        elif time.monotonic() - first > ECHO:
            leave(number, lost())

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    handled = {number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in handled:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number in handled:
            signal.signal(number, before[number])


def stop(number: int) -> NoReturn:
    """For `handling`: stop where the program is."""
    raise Stopped(number)


def leave(number: int, lost: str) -> NoReturn:
    """End the process now, from within a handler."""
    say(f"{name_of(number)} again, left at once: {lost}")
    os._exit(exit_status(number))


@contextlib.contextmanager
def noting(note: Callable[[], str]) -> Iterator[None]:
    """Give an interrupt that passes through the context a note of what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(note())
        raise


def say(message: str) -> None:
    """One line on stderr, by the first of several processes, which may have nobody left to read it."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"\n{message}\n".encode())


def flush_or_drop(*streams: TextIO) -> None:
    """Write what is left; where the reader is gone, as the terminal after SIGHUP or a pipe's end, drop it."""
    for stream in streams or (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
