"""How a training stops: its processes at the same step, as it takes all to write a checkpoint; and before an error."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator

from gspn_dit.checkpoint import kept_steps
from gspn_dit.errors import UserError

T = TypeVar("T")

SECONDS = 1.0
"""Between two comparisons, of which each has the processes and their devices wait for one another."""


class Agreement:
    """Whether a stop signal reached any process of a training."""

    def __init__(self, accelerator: Accelerator, step: int) -> None:
        self.accelerator = accelerator
        self.step, self.time = step, time.perf_counter()
        self.next = step + 1

    def __call__(self, number: int, step: int) -> int:
        """The number of a signal that any process received, 0 for none; every process must call this at every step.

        Several processes compare notes about once a second, counted in steps of the slowest one.
        """
        if self.accelerator.num_processes == 1:
            return number
        if step < self.next:
            return 0
        now = time.perf_counter()
        pace = (now - self.time) / (step - self.step)
        notes = torch.tensor([[number, pace]], device=self.accelerator.device)
        number, pace = self.accelerator.gather(notes).amax(dim=0).tolist()
        self.step, self.time = step, now
        self.next = step + max(1, int(SECONDS / pace))
        return int(number)


class Run(Protocol):
    """What `keeping` asks of a training."""

    run_dir: Path
    step: int

    def last_good(self) -> str: ...


@contextlib.contextmanager
def keeping(run: Run, save: Callable[[], None] | None) -> Iterator[None]:
    """Around what data can make fail: before its `UserError` goes on, which then says where the run can, `save`.

    Args:
        save: writes a checkpoint, called where there are steps since the last one; None where that cannot be.
    """
    try:
        yield
    except UserError as error:
        try:
            if save and run.step > kept_steps(run.run_dir):
                save()
        except UserError as another:
            raise UserError(f"{error}; {another}") from error
        raise UserError(f"{error}; {run.last_good()}") from error


def guarded(items: Iterator[T], guard: contextlib.AbstractContextManager[None]) -> Iterator[T]:
    """Items whose making, but not what is done with them, is within a context."""
    with guard:
        yield from items
