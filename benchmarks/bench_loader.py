"""How fast training latents are drawn: from the page cache, and from the disk against the disk's own rate.

The store holds random moments of 4x32x32 latents (ImageNet at 256 px), 16 KiB a mirror. Cold runs start with
the file dropped from the page cache; the disk's own rate is that of direct reads (O_DIRECT) of random blocks
of the same size, by as many threads as serve it best.
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
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gspn_dit.data.latents import DTYPE, MIRRORS, LatentDataset, Manifest, read_manifest

SHAPE = (4, 32, 32)
BATCH = 256
Job = Callable[[LatentDataset, np.ndarray], None]
READERS = (1, 4, 16, 64)
"""Numbers of threads tried for the disk's own rate."""


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
        class_names=[str(number) for number in range(1000)],
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


def draw(dataset: LatentDataset, indices: np.ndarray) -> None:
    """What training does: one batch, posterior draw included."""
    dataset.draw(indices, indices, seed=0)


def only_read(dataset: LatentDataset, indices: np.ndarray) -> None:
    """The reads of a batch without the draw: what more cores would leave."""
    blocks = np.sort(indices * MIRRORS)
    for block in blocks.tolist():
        dataset.read_ahead(block)
    dataset.moments.index_select(0, torch.from_numpy(blocks))


def rate(job: Job, folder: Path, indices: np.ndarray, processes: int) -> float:
    """Latents per second; as in training, every process works on one thread."""
    context = multiprocessing.get_context("fork")
    barrier, times = context.Barrier(processes), context.SimpleQueue()

    def work(share: np.ndarray) -> None:
        dataset = LatentDataset(folder)
        barrier.wait()
        begin = time.perf_counter()
        for start in range(0, len(share), BATCH):
            job(dataset, share[start : start + BATCH])
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
        "disk": max(cold(disk_rate, path, blocks, manifest.block_bytes, readers) for readers in READERS),
        "cold": cold(rate, draw, folder, indices, processes),
        "cold_without_draw": cold(rate, only_read, folder, indices, processes),
    }
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
    return results | {"cached": rate(draw, folder, indices, processes)}


def main() -> None:
    """Print the medians and write them to a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", help="an existing folder on the disk to be measured (default: that of temporary files)"
    )
    parser.add_argument(
        "--images", type=int, default=40_000, help="images of the store (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes that draw (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds; medians are reported (default: %(default)s)"
    )
    parser.add_argument("--json", default=Path(__file__).parent / "results" / "loader.json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_store(Path(folder), arguments.images)
        rounds = [measure(Path(folder), arguments.processes) for _ in range(arguments.repeats)]
    medians = {name: statistics.median(result[name] for result in rounds) for name in rounds[0]}
    shares = {
        name: statistics.median(result[name] / result["disk"] for result in rounds)
        for name in ("cold", "cold_without_draw")
    }
    print(f"latents/s of {arguments.processes} processes, medians of {arguments.repeats} rounds")
    print(f"from the page cache        {medians['cached']:9,.0f}")
    print(f"from the disk              {medians['cold']:9,.0f}  {shares['cold']:.0%} of the disk's own rate")
    print(
        f"  without the draw         {medians['cold_without_draw']:9,.0f}  {shares['cold_without_draw']:.0%}"
    )
    print(f"the disk's own rate        {medians['disk']:9,.0f}  random reads/s of 16 KiB")
    write_results(Path(arguments.json), vars(arguments), medians, shares, rounds)


def write_results(
    path: Path,
    settings: dict,
    medians: dict[str, float],
    shares: dict[str, float],
    rounds: list[dict[str, float]],
) -> None:
    """The figures with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": "loader",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "dtype": "float16 stored, float32 drawn",
        "latent_shape": SHAPE,
        "images": settings["images"],
        "processes": settings["processes"],
        "latents_per_second": medians,
        "share_of_disk": shares,
        "rounds": rounds,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def processor_name() -> str:
    """The processor as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    main()
