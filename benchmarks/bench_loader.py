"""How fast training latents are drawn: from the page cache, and from the disk against the disk's own rate.

The store holds random moments of 4x32x32 latents (ImageNet at 256 px), 16 KiB a mirror. Cold runs start with
the file dropped from the page cache; the disk's own rate is that of direct reads (O_DIRECT) of random blocks
of the same size, by as many threads as serve it best.
"""

import argparse
import json
import mmap
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


def rate(job: Callable[[int], None], count: int, threads: int) -> float:
    """Jobs per second: job(0), ..., job(count - 1) on `threads` threads."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(job, range(count)))
        return count / (time.perf_counter() - start)


def loader_rate(dataset: LatentDataset, indices: np.ndarray, threads: int) -> float:
    """Latents per second, posterior draw included."""
    batches = len(indices) // BATCH

    def draw(number: int) -> None:
        span = np.arange(number * BATCH, (number + 1) * BATCH)
        dataset.draw(indices[span], span, seed=0)

    return rate(draw, batches, threads) * BATCH


def disk_rate(path: Path, blocks: np.ndarray, block_bytes: int, threads: int) -> float:
    """Blocks per second by direct random reads, past the page cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        # Direct reads need memory that is aligned to pages, which mmap gives; one job is one thread's share.
        def read(thread: int) -> None:
            with mmap.mmap(-1, block_bytes) as memory, memoryview(memory) as view:
                for block in blocks[thread::threads].tolist():
                    os.preadv(descriptor, [view], block * block_bytes)

        return rate(read, threads, threads) / threads * len(blocks)
    finally:
        os.close(descriptor)


def measure(folder: Path, threads: int) -> dict[str, float]:
    """One round of all rates, in latents (blocks) per second."""
    path = folder / "moments.bin"
    manifest = read_manifest(folder)
    generator = np.random.default_rng()
    indices = generator.permutation(manifest.images)[: manifest.images // BATCH * BATCH]
    blocks = generator.permutation(manifest.images * MIRRORS)[: len(indices)]

    drop_from_cache(path)
    disk = max(disk_rate(path, blocks, manifest.block_bytes, readers) for readers in READERS)
    drop_from_cache(path)
    cold = loader_rate(LatentDataset(folder), indices, threads)
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
    cached = loader_rate(LatentDataset(folder), indices, threads)
    return {"cached": cached, "cold": cold, "disk": disk}


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
    parser.add_argument("--threads", type=int, default=2, help="threads that draw (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds; medians are reported (default: %(default)s)"
    )
    parser.add_argument("--json", default=Path(__file__).parent / "results" / "loader.json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_store(Path(folder), arguments.images)
        rounds = [measure(Path(folder), arguments.threads) for _ in range(arguments.repeats)]
    medians = {name: statistics.median(result[name] for result in rounds) for name in rounds[0]}
    share = statistics.median(result["cold"] / result["disk"] for result in rounds)
    print(f"from the page cache: {medians['cached']:,.0f} latents/s on {arguments.threads} threads")
    print(f"from the disk:       {medians['cold']:,.0f} latents/s")
    print(f"the disk itself:     {medians['disk']:,.0f} random reads/s of 16 KiB; share reached {share:.0%}")
    write_results(Path(arguments.json), vars(arguments), medians, share, rounds)


def write_results(
    path: Path, settings: dict, medians: dict[str, float], share: float, rounds: list[dict[str, float]]
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
        "threads": settings["threads"],
        "latents_per_second": medians,
        "share_of_disk": share,
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
