"""Two ways to the same result, timed in one process, in turn: what the benchmarks of single operators share."""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PASSES = ("inference", "forward_backward")


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call by the clock and of the processor."""
    start, start_used = time.perf_counter(), time.process_time()
    result = run()
    times = time.perf_counter() - start, time.process_time() - start_used
    del result
    return times


def run_pass(name: str, way: Callable[..., torch.Tensor], tensors: list[torch.Tensor], grad_y: torch.Tensor):
    """One of `PASSES` through way(*tensors)."""
    if name == "inference":
        with torch.no_grad():
            return way(*tensors)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(way(*leaves), leaves, grad_y)


def measure(
    ways: dict[str, Callable[..., torch.Tensor]],
    draw: Callable[[], tuple[list[torch.Tensor], torch.Tensor]],
    repeats: int,
) -> dict:
    """Median milliseconds of both ways, and medians of the ratios of the first to the second.

    `draw` gives fresh inputs and a gradient. The clock's times count what other processes take, the processor's hardly.
    """
    rows, (first, second) = [], ways
    for i in range(repeats + 2):
        tensors, grad_y = draw()
        row = {}
        for name in PASSES:
            for way in (first, second) if i % 2 else (second, first):
                row[name, way] = timed(lambda args=(name, ways[way], tensors, grad_y): run_pass(*args))
        rows.append(row)
    rows = rows[2:]  # the first calls touch the allocator's pages
    result = {}
    for name in PASSES:
        for way in ways:
            result[f"{name}_{way}_ms"] = 1e3 * statistics.median(row[name, way][0] for row in rows)
        for clock, i in (("wall", 0), ("cpu", 1)):
            ratios = [row[name, first][i] / row[name, second][i] for row in rows]
            result[f"{name}_ratio_{clock}"] = statistics.median(ratios)
    return result


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number, not below `least`."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {number}")
        return number

    return whole_number


def parse(description: str, results: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Repeats, threads and the file of the results; sets the threads and the seed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=at_least(1), default=30, help="paired runs per case (default %(default)s)"
    )
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / results)
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    return arguments


def write(arguments: argparse.Namespace, results: list[dict]) -> None:
    """The results and what they were measured on, as JSON."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    record = {
        "device": names[0] if names else platform.processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "results": results,
    }
    arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {arguments.json}")
