"""How fast training latents are drawn: from the page cache, and from the disk against the disk's own rate.

The store holds random moments of 4x32x32 latents (ImageNet at 256 px), 16 KiB a mirror. Cold runs start with
the file dropped from the page cache; the disk's own rate is that of direct reads (O_DIRECT) of random blocks
of the same size, by as many threads as serve it best. Beside it: what a GPU can take at the most.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.bench_memory import model_settings
from benchmarks.paired import at_least
from gspn_dit.config import load_config
from gspn_dit.data.batches import Batches
from gspn_dit.latents.dataset import AHEAD, DTYPE, MIRRORS, SLICE, LatentDataset, Manifest, read_manifest
from gspn_dit.models import create_model

CONFIGS = Path(__file__).parents[1] / "configs"
SHAPE = (4, 32, 32)
DEEP_SHAPE = (32, 8, 8)
"""Latents of a deep-compression autoencoder at 256 px."""
BATCH = 256
Work = Callable[[np.ndarray], object]
"""What is done with a batch of image numbers."""
READERS = (1, 4, 16, 32, 64)
"""Numbers of threads tried for the disk's own rate."""
H100_PEAK = 989e12
"""Dense bf16 FLOP/s of an H100 SXM, from its data sheet."""


def make_store(folder: Path, images: int) -> None:
    """A folder of random moments in the form that encode_latents.py writes."""
    manifest = Manifest(
        autoencoder="random moments",
        weights_hash="",
        scale=0.18215,
        shift=0.0,
        image_size=256,
        images=images,
        skipped=0,
        latent_shape=SHAPE,
        class_names=tuple(str(number) for number in range(1000)),
        images_hash="",
        float16_error={},
        complete=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.SFC64(0))
    with open(folder / "moments.bin", "wb") as file:
        for start in range(0, images, 1000):
            shape = (min(1000, images - start), MIRRORS, *manifest.block_shape)
            file.write(generator.standard_normal(shape, dtype=np.float32).astype(DTYPE).tobytes())
        os.fsync(file.fileno())
    np.save(folder / "labels.npy", np.arange(images, dtype=np.int64) % 1000)
    manifest.save(folder)


def drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def draw(dataset: LatentDataset) -> Work:
    """A batch, posterior draw included."""
    return lambda numbers: dataset.draw(numbers, numbers, seed=0)


def draw_all(dataset: LatentDataset) -> Work:
    """All that a training step draws: the time, the diffusion's noise and the class dropout too."""
    return Batches(
        dataset, batch_size=BATCH, micro_batch=None, class_dropout=0.1, times=torch.Tensor.float, seed=0
    ).draw


def only_read(dataset: LatentDataset) -> Work:
    """The reads of a batch without the draw: what more cores would leave."""

    def read(numbers: np.ndarray) -> None:
        parts = np.split(numbers * MIRRORS, range(SLICE, len(numbers), SLICE))
        for ahead, part in zip_longest(parts, [None] * AHEAD + parts):
            for offset in () if ahead is None else dataset.offsets(ahead):
                os.posix_fadvise(dataset.file.fileno(), offset, dataset.block_bytes, os.POSIX_FADV_WILLNEED)
            if part is not None:
                dataset.read(part)

    return read


def rate(job: Callable[[LatentDataset], Work], folder: Path, indices: np.ndarray, processes: int) -> float:
    """Latents per second; as in training, every process works on one thread."""
    context = multiprocessing.get_context("fork")
    barrier, times = context.Barrier(processes), context.SimpleQueue()

    def work(share: np.ndarray) -> None:
        do = job(LatentDataset(folder))
        barrier.wait()
        begin = time.perf_counter()
        for start in range(0, len(share), BATCH):
            do(share[start : start + BATCH])
        times.put((begin, time.perf_counter()))

    workers = [context.Process(target=work, args=(share,)) for share in np.array_split(indices, processes)]
    for worker in workers:
        worker.start()
    begins, ends = zip(*(times.get() for _ in workers), strict=True)
    for worker in workers:
        worker.join()
    return len(indices) / (max(ends) - min(begins))


def disk_rate(path: Path, blocks: np.ndarray, block_bytes: int, threads: int) -> float:
    """Blocks per second by direct random reads, past the page cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(share: np.ndarray) -> None:
        # Direct reads need memory that is aligned to pages, which mmap gives.
        with mmap.mmap(-1, block_bytes) as memory, memoryview(memory) as view:
            for block in share.tolist():
                os.preadv(descriptor, [view], block * block_bytes)

    try:
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(read, np.array_split(blocks, threads)))
            return len(blocks) / (time.perf_counter() - start)
    finally:
        os.close(descriptor)


def measure(folder: Path, processes: int) -> dict[str, float]:
    """One round: rates in latents (blocks) per second."""
    path = folder / "moments.bin"
    manifest = read_manifest(folder)
    generator = np.random.default_rng()
    indices = generator.permutation(manifest.images)
    blocks = generator.permutation(manifest.images * MIRRORS)[: len(indices)]

    def cold(measurement: Callable[..., float], *arguments: object) -> float:
        drop_from_cache(path)
        return measurement(*arguments)

    results = {
        f"disk_{readers}_threads": cold(disk_rate, path, blocks, manifest.block_bytes, readers)
        for readers in READERS
    }
    results |= {
        "cold": cold(rate, draw, folder, indices, processes),
        "cold_without_draw": cold(rate, only_read, folder, indices, processes),
    }
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
    return results | {
        "cached": rate(draw, folder, indices, processes),
        "cached_all_of_a_step": rate(draw_all, folder, indices, processes),
    }


def most_images(path: Path, latent: tuple[int, int, int]) -> float:
    """Images per second at which an H100 could train a config's model if it worked at its peak.

    The FLOPs of a step are three times those of the forward, the scan's own left out.
    """
    with FakeTensorMode():
        model = create_model(**model_settings(load_config(path, ["data.path=unused"]), latent))
        x, t, y = torch.zeros(1, *latent), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(x, t, y)
    return H100_PEAK / (3 * counter.get_total_flops())


def main() -> None:
    """Print the medians and write them to a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", help="an existing folder on the disk to be measured (default: that of temporary files)"
    )
    parser.add_argument(
        "--images", type=at_least(1), default=40_000, help="images of the store (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=at_least(1), default=2, help="processes that draw (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=at_least(1), default=5, help="rounds; medians are reported (default: %(default)s)"
    )
    parser.add_argument("--json", default=Path(__file__).parent / "results" / "loader.json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_store(Path(folder), arguments.images)
        rounds = [measure(Path(folder), arguments.processes) for _ in range(arguments.repeats)]
    medians = {name: statistics.median(result[name] for result in rounds) for name in rounds[0]}
    disk, threads = max((medians[f"disk_{readers}_threads"], readers) for readers in READERS)
    shares = {name: medians[name] / disk for name in ("cold", "cold_without_draw")}
    demand = {path.stem: most_images(path, SHAPE) for path in sorted(CONFIGS.glob("*2.yaml"))}
    demand["gspn_dit_b1_dc"] = most_images(CONFIGS / "gspn_dit_b1_dc.yaml", DEEP_SHAPE)
    print(f"latents/s of {arguments.processes} processes, medians of {arguments.repeats} rounds")
    print(f"from the page cache          {medians['cached']:9,.0f}")
    print(f"  with all that a step draws {medians['cached_all_of_a_step']:9,.0f}")
    print(
        f"from the disk                {medians['cold']:9,.0f}  {shares['cold']:.0%} of the disk's own rate"
    )
    print(
        f"  without the draw           {medians['cold_without_draw']:9,.0f}  {shares['cold_without_draw']:.0%}"
    )
    print(f"the disk's own rate          {disk:9,.0f}  random reads/s of 16 KiB, by {threads} threads")
    for name, images in sorted(demand.items(), key=lambda item: -item[1]):
        print(f"an H100 at its peak, {name:<15} {images:9,.0f}  images/s at the most")
    write_results(
        Path(arguments.json),
        {
            "images": arguments.images,
            "processes": arguments.processes,
            "latents_per_second": medians,
            "disk": disk,
            "share_of_disk": shares,
            "most_images_per_second_of_an_h100": demand,
            "rounds": rounds,
        },
    )


def write_results(path: Path, results: dict) -> None:
    """The figures with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        "benchmark": "loader",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_after": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "dtype": "float16 stored, float32 drawn",
        "latent_shape": SHAPE,
    }
    path.write_text(json.dumps(environment | results, indent=1) + "\n")


def processor_name() -> str:
    """The processor as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    main()
