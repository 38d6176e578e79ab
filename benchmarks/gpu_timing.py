"""Timing on a GPU: medians by CUDA events over rotating inputs; the copy bandwidth that all is judged by."""

import datetime
import itertools
import platform
import statistics
from collections.abc import Callable

import torch
import torch._dynamo

# Inputs rotate over this many bytes, several times the L2 cache: no run finds the last one's data there.
ROTATION_BYTES = 512 * 2**20


def rotations(bytes_of_a_set: int) -> int:
    """How many sets of inputs a measurement rotates over."""
    return max(1, min(8, -(-ROTATION_BYTES // max(1, bytes_of_a_set))))


def median_seconds(run: Callable[[int], object], sets: int = 1, seconds: float = 0.3) -> float:
    """Median device time of `run(i)`, i over the sets of inputs, in about `seconds` of repetitions."""
    for i in range(max(2, sets)):
        run(i % sets)
    torch.cuda.synchronize()
    first = _timed(run, 1, sets)[0]
    repeats = int(max(5, min(100, seconds / max(first, 1e-6))))
    return statistics.median(_timed(run, repeats, sets))


def _timed(run, repeats, sets):
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for i in range(repeats):
        run(i % sets)
        events[i + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


def compile_afresh(function: Callable) -> Callable:
    """torch.compile for the shapes that follow, with the earlier compilations of every function forgotten.

    Dynamo keeps a few for each function and, past its limit, would run the rest without compiling in silence: here
    that is an error.
    """
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(function, dynamic=False)


def copy_bandwidth() -> float:
    """Bytes per second of a device-to-device copy, read and written bytes together."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda _: target.copy_(source), seconds=0.5)


def environment() -> dict:
    """What decides a measurement."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
