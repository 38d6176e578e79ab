"""What each image of a step draws: its picture, time, noise and whether its class is dropped.

All of it is keyed by the image's number in training (step * global batch + place in the batch): neither the
number of processes, nor the micro-batch, nor an interruption changes a draw.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from gspn_dit.data import Dataset
from gspn_dit.data.order import EpochOrder
from gspn_dit.random import CONTRAST, DROPOUT, NOISE, TIME, seed_of


class Tensors:
    """For a dataclass of tensors, or None: what training does with a batch whatever it holds."""

    def to(self, device: torch.device) -> Self:
        """A copy on a device; the transfer overlaps with work there when the batch is pinned."""
        return type(self)(
            **{name: value.to(device, non_blocking=True) for name, value in self.tensors().items()}
        )

    def pin_memory(self) -> Self:
        return type(self)(**{name: value.pin_memory() for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """What it holds, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Batch(Tensors):
    """The images of one forward pass."""

    x: torch.Tensor
    """(n, C, H, W) float32"""
    y: torch.Tensor
    """(n,) int64; the null label where the class is dropped"""
    t: torch.Tensor
    """(n,) float32, the time of the diffusion"""
    noise: torch.Tensor
    """(n, C, H, W) float32"""
    contrast: torch.Tensor | None = None
    """(n, C, H, W) float32, what to predict for another image of the step; None where nobody asks for it"""


class Shares:
    """One process's share of every step, in micro-batches, drawn one step ahead by a thread."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        micro_batch: int | None,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        pin: bool = False,
    ) -> None:
        """`batch_size` counts all processes, which must divide it; `micro_batch` is of this process."""
        if batch_size % processes:
            raise ValueError(f"batch_size: expected a multiple of processes, {processes}, got {batch_size}")
        self.dataset = dataset
        self.order = EpochOrder(len(dataset), seed)
        self.batch_size = batch_size
        self.local = batch_size // processes
        self.micro_batch = min(micro_batch or self.local, self.local)
        self.seed = seed
        self.rank = rank
        self.pin = pin

    def __call__(self, start: int, stop: int) -> Iterator[list[Tensors]]:
        """The micro-batches of steps `start` to `stop` - 1."""
        with drawing_thread() as pool:
            ahead: Future = pool.submit(self.step, start)
            for step in range(start, stop):
                ready = ahead.result()
                if step + 1 < stop:
                    ahead = pool.submit(self.step, step + 1)
                yield ready

    def step(self, step: int) -> list[Tensors]:
        """This process's micro-batches of one step."""
        batches = [self.draw(part) for part in self.numbers(step)]
        return [batch.pin_memory() for batch in batches] if self.pin else batches

    def numbers(self, step: int) -> list[np.ndarray]:
        """The numbers in training, each (n,) int64, of the images of this process's micro-batches."""
        first = step * self.batch_size + self.rank * self.local
        return list(chunks(np.arange(first, first + self.local), self.micro_batch))

    def draw(self, numbers: np.ndarray) -> Tensors:
        """The images with these numbers (n,) int64 and everything they draw."""
        raise NotImplementedError  # abstract: what is drawn is for what is learned


@contextlib.contextmanager
def drawing_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread for what is drawn ahead, whose operations stay in it.

    Speed: with a team of OpenMP's of its own there were more threads than cores; OpenMP then puts its threads to sleep
    between operations, and the training's take 1.5 times as long on two cores.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, "batches", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pool.submit(torch.get_num_threads).result()
        torch.set_num_threads(threads)  # OpenMP keeps a number for each thread, MKL one for all of them
        yield pool


class Batches(Shares):
    """The batches of a diffusion model."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        class_dropout: float,
        times: Callable[[torch.Tensor], torch.Tensor],
        contrast: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        **shares: Any,
    ) -> None:
        """`shares` is what `Shares` takes.

        `times` maps uniform numbers (n,) float64 in [0, 1) to times of the diffusion. `contrast` maps images and
        their noise, both (n, C, H, W), to what `Batch.contrast` holds; it takes two images a step or more.
        """
        super().__init__(dataset, **shares)
        self.class_dropout = class_dropout
        self.times = times
        self.contrast = contrast

    def draw(self, numbers: np.ndarray) -> Batch:
        """The images with these numbers (n,) int64 and everything they draw."""
        x, y = self.dataset.draw(self.order.indices(numbers), numbers, self.seed)
        dropped = uniform(DROPOUT, self.seed, numbers) < self.class_dropout
        y = torch.where(dropped, self.dataset.num_classes, y)
        t = self.times(uniform(TIME, self.seed, numbers))
        noise = normal(NOISE, self.seed, numbers, x.shape[1:])
        if self.contrast is None:
            return Batch(x, y, t, noise)
        # Drawn once more, by number: another process may have them.
        others = other_numbers(numbers, self.batch_size, self.seed)
        other_x, _ = self.dataset.draw(self.order.indices(others), others, self.seed)
        other_noise = normal(NOISE, self.seed, others, x.shape[1:])
        return Batch(x, y, t, noise, self.contrast(other_x, other_noise))


def chunks(numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def other_numbers(numbers: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """For each image another one of its step, uniform over these: numbers (n,) int64, keyed by its own number."""
    steps = (uniform(CONTRAST, seed, numbers).numpy() * (batch_size - 1)).astype(np.int64) + 1
    place = numbers % batch_size
    return numbers - place + (place + steps) % batch_size


def uniform(stream: int, seed: int, numbers: np.ndarray) -> torch.Tensor:
    """A number in [0, 1) per image, (n,) float64: the hash of its key, cheaper than a generator."""
    # A float64 has 53 bits: dropping the hash's last ten keeps the largest value below 1.
    draws = [(seed_of(stream, seed, number) >> 10) / 2**53 for number in numbers.tolist()]
    return torch.tensor(draws, dtype=torch.float64)


def normal(stream: int, seed: int, numbers: np.ndarray, shape: torch.Size) -> torch.Tensor:
    """Standard normal noise per image, (n, *shape) float32."""
    noise = torch.empty(len(numbers), *shape)
    generator = torch.Generator()
    for image, number in zip(noise, numbers.tolist(), strict=True):
        image.normal_(generator=generator.manual_seed(seed_of(stream, seed, number)))
    return noise
