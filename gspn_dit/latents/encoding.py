"""Encode an image folder into a folder of latents: over several processes, and resumable after a kill.

Work is cut into chunks of images. A chunk's moments are written and synced, then its entry in chunks/ says
that it is done and which images it skipped: a killed run loses the chunks in hand and nothing else.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gspn_dit.checks import NotFinite, check_finite
from gspn_dit.data.images import ImageFolder, UnreadableImage, read_image
from gspn_dit.errors import NonFiniteError, UserError
from gspn_dit.files import claimed
from gspn_dit.latents.autoencoder import LatentAutoencoder
from gspn_dit.latents.dataset import DTYPE, MIRRORS, Manifest
from gspn_dit.latents.store import LatentStore, describe
from gspn_dit.processes import held_for_all, progress_bar
from gspn_dit.signals import noting


@dataclass(frozen=True)
class Batch:
    """Neighbouring rows as a loader worker hands them over.

    numpy, not torch: tensors would travel through /dev/shm, which containers often limit to 64 MB.
    """

    rows: list[int]
    readable: list[int]
    """Places within the batch."""
    pixels: np.ndarray
    """(readable, size, size, 3) uint8."""
    skipped: dict[int, str]
    """Reasons by row."""


class Rows(Dataset):
    """The images of a folder, read and cropped, by row; an unreadable one gives the reason."""

    def __init__(self, images: ImageFolder, size: int) -> None:
        self.images = images
        self.size = size

    def __len__(self) -> int:
        return len(self.images.paths)

    def __getitem__(self, row: int) -> tuple[int, np.ndarray | str]:
        try:
            return row, read_image(self.images.root / self.images.paths[row], self.size)
        except UnreadableImage as error:
            return row, str(error)

    def collate(self, items: Sequence[tuple[int, np.ndarray | str]]) -> Batch:
        """One batch of what `__getitem__` gave."""
        readable = [place for place, (_, content) in enumerate(items) if not isinstance(content, str)]
        pixels = np.empty((len(readable), self.size, self.size, 3), dtype=np.uint8)
        for place, target in zip(readable, pixels, strict=True):
            target[:] = items[place][1]
        skipped = {row: content for row, content in items if isinstance(content, str)}
        return Batch([row for row, _ in items], readable, pixels, skipped)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The work of encoding one image folder; every process of `state` makes one and calls `run`."""

    images: ImageFolder
    store: LatentStore
    autoencoder: LatentAutoencoder
    size: int
    """Side of the cropped images in pixels."""
    batch_size: int
    """Images encoded at once by a process."""
    workers: int
    """Processes that read images for each process that encodes; 0: it reads itself."""
    state: PartialState

    def run(self) -> Manifest:
        """Encode what is not yet encoded and return the finished manifest; raises `UserError`."""
        wanted = describe(self.images, self.autoencoder, self.size)
        earlier = self.store.matching(wanted)
        done = earlier is not None and earlier.complete and not self.store.chunks.exists()
        if done and not self.store.lacks_statistics(earlier):
            return earlier  # without a lock: a finished folder may be one that nobody can write
        with held_for_all(self.state.is_main_process, claimed(self.store.folder)):
            return self.work(wanted)

    def work(self, wanted: Manifest) -> Manifest:
        """The work of `run`, by one command at a time."""
        earlier = self.store.matching(wanted)
        if self.state.is_main_process and (earlier is None or not earlier.complete):
            self.prepare(wanted, earlier)
        self.state.wait_for_everyone()
        manifest = self.store.matching(wanted)
        chunks = self.store.unfinished(manifest)
        # Nobody may finish a chunk before all have seen which are left.
        self.state.wait_for_everyone()
        with noting(lambda: self.store.kept(manifest)):
            self.encode(chunks[self.state.process_index :: self.state.num_processes], manifest)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            if not manifest.complete:
                self.store.finish(manifest, self.images)
            elif manifest.channel_mean is None:
                self.store.add_statistics(manifest)
            self.store.drop_journal()
        self.state.wait_for_everyone()
        return self.store.matching(wanted)

    def prepare(self, wanted: Manifest, earlier: Manifest | None) -> None:
        """Check the disk, say what the work will take, and make the files."""
        left = sum(map(len, self.store.unfinished(wanted)))
        needed = wanted.moments_bytes - self.store.allocated_bytes()
        free = self.store.free_bytes()
        print(
            f"{wanted.images:,} images of {len(wanted.class_names):,} classes, {left:,} yet to be encoded: "
            f"needs {in_bytes(needed)} more in {self.store.folder}, where {in_bytes(free)} are free",
            flush=True,
        )
        if needed > free:
            raise UserError(
                f"{self.store.folder}: {in_bytes(needed)} needed, {in_bytes(free)} free; make room first"
            )
        # Before the probe: a folder that cannot be made shows at once.
        self.store.folder.mkdir(parents=True, exist_ok=True)
        seconds, error = self.probe()
        processes = self.state.num_processes
        print(
            f"about {in_time(seconds * left / processes)} at {processes / seconds:,.1f} images/s, as a "
            f"first batch shows on {processes} process{'es' if processes > 1 else ''}; {in_words(error)}",
            flush=True,
        )
        self.store.begin(earlier or replace(wanted, float16_error=error))

    def probe(self) -> tuple[float, dict[str, float]]:
        """Seconds per image of one process, and the `float16_error`, from a first batch of readable images.

        The second of two encodings is timed: the first one warms up.
        """
        start = time.perf_counter()
        rows = Rows(self.images, self.size)
        contents = map(rows.__getitem__, range(len(rows)))
        readable = (item for item in contents if not isinstance(item[1], str))
        numbers, pixels = [], []
        for number, content in itertools.islice(readable, self.batch_size):
            numbers.append(number)
            pixels.append(content)
        if not pixels:
            raise UserError(f"image folder {self.images.root}: none of its {len(rows):,} images can be read")
        reading = (time.perf_counter() - start) / len(pixels)
        moments = mirrored_moments(self.autoencoder, np.stack(pixels))
        with self.naming(numbers, range(len(numbers))):
            to_float16(moments)
        start = time.perf_counter()
        mirrored_moments(self.autoencoder, np.stack(pixels))
        encoding = (time.perf_counter() - start) / len(pixels)
        seconds = max(reading / self.workers, encoding) if self.workers else reading + encoding
        return seconds, float16_error(moments, self.autoencoder.traits.scale)

    def encode(self, chunks: Sequence[range], manifest: Manifest) -> None:
        """Encode chunks of rows; no batch spans two, so that a resumed run makes the same batches."""
        rows = Rows(self.images, self.size)
        batches = [
            chunk[start : start + self.batch_size]
            for chunk in chunks
            for start in range(0, len(chunk), self.batch_size)
        ]
        loader = DataLoader(rows, batch_sampler=batches, num_workers=self.workers, collate_fn=rows.collate)
        ends = {chunk.stop: chunk for chunk in chunks}
        skipped: dict[int, str] = {}
        with self.progress(sum(map(len, chunks))) as bar, self.store.writer() as writer:
            for batch in loader:
                with self.naming(batch.rows, batch.readable):
                    moments = stored_moments(batch, self.autoencoder, manifest)
                writer.write(batch.rows[0], moments)
                skipped |= batch.skipped
                bar.update(len(batch.rows))
                finished = ends.get(batch.rows[-1] + 1)
                if finished is not None:
                    writer.finish_chunk(finished, skipped)
                    skipped = {}

    @contextlib.contextmanager
    def naming(self, rows: Sequence[int], readable: Sequence[int]) -> Iterator[None]:
        """Turn `NotFinite`, which knows the place among the readable images, into an error that names the file."""
        try:
            yield
        except NotFinite as error:
            path = self.images.root / self.images.paths[rows[readable[error.place]]]
            raise NonFiniteError(
                f"{path}: the autoencoder gives moments that are not finite in float16: check its weights, or move "
                "the image away"
            ) from error

    def progress(self, total: int) -> tqdm:
        """A bar of the first process's share of the work."""
        several = self.state.num_processes > 1
        title = f"encoding (process 0 of {self.state.num_processes})" if several else "encoding"
        return progress_bar(
            total=total, desc=title, unit="image", disable=not (total and self.state.is_main_process)
        )


def stored_moments(batch: Batch, autoencoder: LatentAutoencoder, manifest: Manifest) -> np.ndarray:
    """The stored moments (rows, 2, 2 or 1, C, h, w) float16 of a batch; zeros for skipped images."""
    stored = np.zeros((len(batch.rows), MIRRORS, *manifest.block_shape), dtype=DTYPE)
    if batch.readable:
        stored[batch.readable] = to_float16(mirrored_moments(autoencoder, batch.pixels))
    return stored


def mirrored_moments(autoencoder: LatentAutoencoder, pixels: np.ndarray) -> torch.Tensor:
    """Moments of images (B, H, W, 3) uint8 and of their mirrors: (B, 2, 2 or 1, C, h, w) float32 on the CPU."""
    images = torch.from_numpy(pixels)
    both = [autoencoder.moments(images), autoencoder.moments(images.flip(2))]
    return torch.stack(both, dim=1).cpu()


def to_float16(moments: torch.Tensor) -> np.ndarray:
    """Moments (B, ...) as they are stored; raises `NotFinite` for values that float16 cannot hold."""
    stored = moments.half()
    check_finite(stored, "its moments are")
    return stored.numpy().astype(DTYPE, copy=False)


def float16_error(moments: torch.Tensor, scale: float) -> dict[str, float]:
    """What rounding moments (B, 2, 2 or 1, C, h, w) to float16 costs, in the units of the diffusion.

    mean_max, mean_rms: error of the scaled mean; deviation_max: relative error of the posterior's deviation;
    share_of_posterior: rms error of the mean over the rms deviation of the posterior that is drawn around it.
    Without a posterior, in place of the last two, share_of_latents: rms error over the deviation of the latents.
    """
    exact = moments.double()
    error = moments.half().double() - exact
    mean_rms = error[:, :, 0].square().mean().sqrt()
    of_mean = {"mean_max": error[:, :, 0].abs().max().item() * scale, "mean_rms": mean_rms.item() * scale}
    if moments.shape[2] == 1:
        deviation = exact.std(correction=0).clamp(min=torch.finfo(torch.float16).tiny)  # one colour: none
        return {**of_mean, "share_of_latents": (mean_rms / deviation).item()}
    deviation_rms = exact[:, :, 1].exp().mean().sqrt()
    return {
        **of_mean,
        "deviation_max": torch.expm1(error[:, :, 1].abs().max() / 2).item(),
        "share_of_posterior": (mean_rms / deviation_rms).item(),
    }


def in_words(error: dict[str, float]) -> str:
    """A `float16_error` for the eye."""
    if "share_of_latents" in error:
        return f"float16 moves the latents by {error['share_of_latents']:.1e} of their deviation (rms)"
    return f"float16 moves the mean by {error['share_of_posterior']:.1e} of the posterior's deviation (rms)"


def in_time(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def in_bytes(count: int) -> str:
    """A number of bytes in words: 42.0 GB, 0.7 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
