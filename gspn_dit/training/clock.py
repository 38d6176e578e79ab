"""How fast training is, without its pauses."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Steps per second between laps, without the pauses for samples and checkpoints."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.start = time.perf_counter()

    def lap(self, step: int) -> float:
        """Steps per second since the last lap, which ended at another step."""
        now = time.perf_counter()
        speed = (step - self.step) / (now - self.start)
        self.step, self.start = step, now
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin
