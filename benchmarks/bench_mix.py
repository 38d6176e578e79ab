"""Scan and read-out in one operator on this CPU, against the scan and the gated merge one after the other.

    python benchmarks/bench_mix.py [--threads 2]

Both are timed in one process, in turn, on fresh inputs: inference, and forward with backward. Ratios are medians of
paired runs, of wall time and of the processor time that the process used, which other processes disturb less. Writes
benchmarks/results/mix_cpu.json.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Pages that the allocator returns to the system come back untouched, and touching them costs more than a scan.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
if any(os.environ.get(key) != value for key, value in ALLOCATOR.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from ops import gated_merge, gspn_mix, gspn_scan  # noqa: E402

DIRECTIONS = 4
MAPS = [(8, 16, 16, 384), (1, 64, 64, 384)]
GROUPS = (24, 384)
# The most of scan and merge that the one operator may take: inference, forward and backward.
TARGETS = {24: (0.75, 0.9), 384: (0.9, 1.0)}


def make_inputs(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Fresh x, lam, logits and u."""
    lead, channels = shape[:3], shape[3]
    x, lam = torch.rand(shape), torch.rand(*lead, DIRECTIONS, channels)
    logits, u = torch.randn(*lead, DIRECTIONS, 3, groups), torch.randn(*lead, DIRECTIONS, channels)
    return [tensor.to(dtype) for tensor in (x, lam, logits, u)]


def in_two(x: torch.Tensor, lam: torch.Tensor, logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return gated_merge(gspn_scan(x, lam, logits), u)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call by the clock and of the processor."""
    start, start_used = time.perf_counter(), time.process_time()
    result = run()
    times = time.perf_counter() - start, time.process_time() - start_used
    del result
    return times


def forward_backward(mix: Callable[..., torch.Tensor], inputs: list[torch.Tensor], grad_y: torch.Tensor):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(mix(*leaves), leaves, grad_y)


def inference(mix: Callable[..., torch.Tensor], inputs: list[torch.Tensor], _):
    with torch.no_grad():
        return mix(*inputs)


def measure(shape: tuple[int, ...], groups: int, dtype: torch.dtype, repeats: int) -> dict:
    """Medians of both ways, and of their ratios."""
    rows = []
    for i in tqdm(range(repeats + 2), desc=f"{shape} G={groups} {dtype}", leave=False):
        inputs, grad_y = make_inputs(shape, groups, dtype), torch.randn(shape).to(dtype)
        row = {}
        for name, run in (("inference", inference), ("forward_backward", forward_backward)):
            ways = [("mix", gspn_mix), ("scan_and_merge", in_two)]
            for way, mix in ways if i % 2 else reversed(ways):
                row[name, way] = timed(lambda args=(run, mix, inputs, grad_y): args[0](*args[1:]))
        rows.append(row)
    rows = rows[2:]  # the first calls touch the allocator's pages
    result = {"shape": shape, "groups": groups, "dtype": str(dtype).removeprefix("torch.")}
    for name in ("inference", "forward_backward"):
        for way in ("mix", "scan_and_merge"):
            result[f"{name}_{way}_ms"] = 1e3 * statistics.median(row[name, way][0] for row in rows)
        for clock, i in (("wall", 0), ("cpu", 1)):
            ratios = [row[name, "mix"][i] / row[name, "scan_and_merge"][i] for row in rows]
            result[f"{name}_ratio_{clock}"] = statistics.median(ratios)
    return result


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=40, help="paired runs per shape (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "mix_cpu.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    results = []
    print(f"{'B,H,W,C':>14}   G      dtype   inference wall  cpu   at most   both wall  cpu   at most")
    for groups in GROUPS:
        for shape in MAPS:
            for dtype in (torch.float32, torch.bfloat16):
                row = measure(shape, groups, dtype, arguments.repeats)
                most = TARGETS[groups]
                results.append(row | {"inference_at_most": most[0], "forward_backward_at_most": most[1]})
                print(
                    f"{','.join(map(str, shape)):>14} {groups:3} {row['dtype']:>10}"
                    f"   {row['inference_ratio_wall']:14.2f} {row['inference_ratio_cpu']:4.2f} {most[0]:9.2f}"
                    f"   {row['forward_backward_ratio_wall']:9.2f} {row['forward_backward_ratio_cpu']:4.2f}"
                    f" {most[1]:9.2f}",
                    flush=True,
                )
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


if __name__ == "__main__":
    main()
