"""How the processes of a training agree to stop: all at the same step, as it takes all to write a checkpoint."""

import time

import torch
from accelerate import Accelerator

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
