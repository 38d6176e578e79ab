"""A loaded run that draws what is asked of it, and shows the picture while it is denoised."""

import queue
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torchvision.models import ResNet18_Weights

from gspn_dit.diffusion import SAMPLERS
from gspn_dit.errors import UserError
from gspn_dit.models.settings import resolve_settings
from gspn_dit.sampling.generation import decode
from gspn_dit.sampling.grids import arrange
from gspn_dit.sampling.request import Request, Resolved

PREVIEW_SHARE = 0.2
"""Of the time, what decoding pictures in the making may take."""
LEAST_SECONDS = 0.1
"""Between two pictures in the making: a browser shows no more."""
MOST_IMAGES = 64
IMAGENET = 1000
"""Classes of ImageNet, whose folders are named by WordNet's numbers, in whose order they are counted everywhere."""


class Stopped(Exception):
    """Nobody waits for the picture any more."""


class Studio:
    """A run, loaded once: its choices, and pictures by them.

    Raises `UserError` for what is no run, or has no decoder that fits.
    """

    def __init__(self, run: str, *, vae: str | None, ema: bool, device: torch.device) -> None:
        self.run, self.vae, self.ema, self.device = run, vae, ema, device
        self.first = self.resolve()
        self.autoencoder = self.first.load_decoder(device)
        self.model = self.first.load_model(device)
        settings = resolve_settings(**self.first.state["model"])
        self.any_size = settings.position == "none"
        self.token = settings.patch_size * self.autoencoder.factor
        self.side = settings.input_size * self.autoencoder.factor
        self.class_names = read_names(self.first)
        self.samplers = SAMPLERS[self.first.config.diffusion.objective]
        self.title = f"{self.first.config.model.name}, {self.first.state['images_seen']:,} images seen"
        self.stopping: dict[str, threading.Event] = {}

    def resolve(self, **asked: Any) -> Resolved:
        """A request of this run, checked as on the command line."""
        return Request(run=self.run, vae=self.vae, ema=self.ema, batch_size=MOST_IMAGES, **asked).resolve()

    def draw(
        self,
        label: int,
        count: int,
        *,
        cfg_scale: float,
        steps: int,
        sampler: str,
        seed: int,
        height: int,
        width: int,
        who: str = "",
    ) -> Iterator[tuple[np.ndarray, str]]:
        """The picture in the making, again and again, and last the finished one: (H, W, 3) uint8, and a word on it.

        `count` images of a class, side by side. `stop(who)`, or leaving the iterator early, ends the work. Raises
        `UserError`.
        """
        if not 1 <= count <= MOST_IMAGES:
            raise UserError(f"images is {count}; expected 1 to {MOST_IMAGES}")
        if height < 1 or width < 1:
            raise UserError(f"size is {height}x{width}; expected pixels, multiples of {self.token}")
        size = None if (height, width) == (self.side, self.side) else (height, width)
        resolved = self.resolve(cfg_scale=cfg_scale, steps=steps, sampler=sampler, seed=seed, size=size)
        resolved.check_classes([label])
        resolved.latent_size(self.autoencoder)
        labels, numbers = torch.full((count,), label), torch.arange(count)
        return self.pictures(resolved, labels, numbers, who)

    def stop(self, who: str = "") -> None:
        """End the work that `who` waits for, if there is any."""
        if who in self.stopping:
            self.stopping[who].set()

    def pictures(
        self, resolved: Resolved, labels: torch.Tensor, numbers: torch.Tensor, who: str
    ) -> Iterator[tuple[np.ndarray, str]]:
        """What a thread at work puts into a queue."""
        made: queue.SimpleQueue = queue.SimpleQueue()
        stop = self.stopping[who] = threading.Event()
        calls = resolved.request.steps * (2 if resolved.request.sampler == "heun" else 1)
        watch = Previews(self, labels, numbers, calls, made, stop)

        def work() -> None:
            try:
                batches = resolved.generate(
                    self.model, self.autoencoder, labels, numbers, self.device, progress=False, watch=watch
                )
                images = torch.cat([images for _, images in batches])
                made.put((arrange(images), f"seed {resolved.request.seed}, done"))
                made.put(None)
            except Stopped:
                made.put(None)
            except BaseException as error:
                made.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (item := made.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()
            self.stopping.pop(who, None)


class Previews:
    """Called with the latents in the making: decodes them as often as it may."""

    def __init__(
        self,
        studio: Studio,
        labels: torch.Tensor,
        numbers: torch.Tensor,
        calls: int,
        made: queue.SimpleQueue,
        stop: threading.Event,
    ) -> None:
        self.studio, self.labels, self.numbers = studio, labels, numbers
        self.calls, self.made, self.stop = calls, made, stop
        self.call, self.next_time = 0, 0.0

    def __call__(self, latents: torch.Tensor) -> None:
        self.call += 1
        if self.stop.is_set():
            raise Stopped
        begun = time.perf_counter()
        if begun < self.next_time or not bool(latents.isfinite().all()):
            return  # what is not finite is reported at the end, with its reason
        images = decode(self.studio.autoencoder, latents, self.numbers, self.labels)
        self.made.put((arrange(images), f"{100 * self.call // self.calls} %"))
        ended = time.perf_counter()
        self.next_time = ended + max(LEAST_SECONDS, (ended - begun) / PREVIEW_SHARE)


def read_names(resolved: Resolved) -> list[str]:
    """A name for each class: those of the data's folders, in words where they are ImageNet's."""
    count = resolved.num_classes
    names = resolved.state.get("dataset", {}).get("class_names") or []
    is_imagenet = count == IMAGENET and all(re.fullmatch(r"n\d{8}", name) for name in names)
    if is_imagenet:
        names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    if len(names) != count:
        names = [f"class {label}" for label in range(count)]
    return [str(name) for name in names]
