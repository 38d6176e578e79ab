"""The scan on this CPU against copying the bytes that it must read and write: `make bench`.

Everything compared is timed in one process, in turn, on fresh inputs; the figures are medians of paired runs and their
ratios. Writes benchmarks/results/cpu.json and cpu.png.
"""

import argparse
import datetime
import json
import math
import mmap
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.allocator import keep_pages  # noqa: E402

keep_pages()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.paired import at_least  # noqa: E402
from ops import gspn_scan, gspn_scan_reference  # noqa: E402

SHAPES = [(8, 16, 16, 384), (1, 64, 64, 384), (1, 256, 256, 64)]
DIRECTIONS = 4
HEAD_WIDTH = 64


def timed(run) -> tuple[float, object]:
    """Seconds of one call, and what it returned."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Fresh x, lam, logits with G = C."""
    batch, height, width, channels = shape
    lam = torch.rand(batch, height, width, DIRECTIONS, channels).to(dtype)
    logits = torch.randn(batch, height, width, DIRECTIONS, 3, channels).to(dtype)
    return torch.rand(shape).to(dtype), lam, logits


def copy_time(total_bytes: int) -> float:
    """Seconds to copy so that `total_bytes` are read and written in all."""
    source = torch.rand(total_bytes // 8)
    return timed(source.clone)[0]


def measure_scan(shape: tuple[int, ...], dtype: torch.dtype, repeats: int) -> dict:
    """Median times and ratios of the compiled scan; bytes are those that it cannot avoid."""
    rows = []
    for _ in tqdm(range(repeats), desc=f"scan {shape}", leave=False):
        inputs = make_inputs(shape, dtype)
        inputs_bytes = sum(t.numel() * t.element_size() for t in inputs)
        h_bytes = inputs[1].numel() * inputs[1].element_size()
        row = {}
        row["copy_forward"] = copy_time(inputs_bytes + h_bytes)
        row["forward"], h = timed(lambda inputs=inputs: gspn_scan(*inputs))
        row["forward_none"], _ = timed(lambda inputs=inputs: gspn_scan(*inputs, normalization="none"))
        grad_h = torch.rand_like(h, dtype=torch.float32).to(dtype)
        row["copy_backward"] = copy_time(2 * inputs_bytes + 2 * h_bytes)
        arguments = (grad_h, *inputs, h, [0, 1, 2, 3], 0, 0)
        row["backward"], _ = timed(lambda arguments=arguments: torch.ops.gspn.scan_backward(*arguments))
        rows.append(row)
    rows = rows[2:]  # the first calls touch the allocator's pages
    result = {f"{key}_ms": 1e3 * statistics.median(row[key] for row in rows) for key in rows[0]}
    for name, copy in (
        ("forward", "copy_forward"),
        ("forward_none", "copy_forward"),
        ("backward", "copy_backward"),
    ):
        result[f"{name}_over_copy"] = statistics.median(row[name] / row[copy] for row in rows)
    result["forward_bytes"] = inputs_bytes + h_bytes
    result["copy_gb_per_second"] = (inputs_bytes + h_bytes) / result["copy_forward_ms"] / 1e6
    return result


def measure_first_touch(shape: tuple[int, ...]) -> float:
    """Milliseconds to touch, for the first time, as many bytes as h has: what a fresh process pays once."""
    size = DIRECTIONS * math.prod(shape) * 4
    pages = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)  # from the system, past the allocator
    return 1e3 * timed(lambda: pages[:: mmap.PAGESIZE].fill(1))[0]


def measure_others(shape: tuple[int, ...], dtype: torch.dtype, repeats: int) -> dict:
    """The eager reference and torch's attention, forward and forward plus backward, beside the scan."""
    batch, height, width, channels = shape
    heads = max(1, channels // HEAD_WIDTH)
    attention = lambda q, k, v: F.scaled_dot_product_attention(q, k, v)  # noqa: E731
    rows = []
    for _ in tqdm(range(repeats), desc=f"others {shape}", leave=False):
        row = {}
        inputs = [t.requires_grad_() for t in make_inputs(shape, dtype)]
        qkv = [torch.randn(batch, heads, height * width, channels // heads, dtype=dtype) for _ in range(3)]
        qkv = [t.requires_grad_() for t in qkv]
        for name, run, leaves in (
            ("scan", gspn_scan, inputs),
            ("reference", gspn_scan_reference, inputs),
            ("attention", attention, qkv),
        ):
            row[f"{name}_forward"], out = timed(lambda run=run, leaves=leaves: run(*leaves))
            gradient = torch.rand_like(out)
            seconds, _ = timed(lambda out=out, leaves=leaves, g=gradient: torch.autograd.grad(out, leaves, g))
            row[f"{name}_both"] = row[f"{name}_forward"] + seconds
            del out
        rows.append(row)
    result = {}
    for other in ("reference", "attention"):
        for part in ("forward", "both"):
            ratio = [row[f"{other}_{part}"] / row[f"scan_{part}"] for row in rows]
            result[f"{other}_{part}_over_scan"] = statistics.median(ratio)
    return result


def draw(results: list[dict], path: Path) -> None:
    """Bars of the three ratios to a copy, per shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), constrained_layout=True)
    bars = [("forward", "forward"), ("forward_none", "forward, weights given"), ("backward", "backward")]
    for i, (key, label) in enumerate(bars):
        positions = [row + 0.27 * (i - 1) for row in range(len(results))]
        drawn = axes.bar(positions, [r[f"{key}_over_copy"] for r in results], 0.25, label=label)
        axes.bar_label(drawn, fmt="%.2f", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(results)), ["x".join(map(str, r["shape"])) for r in results])
    axes.set_xlabel("B x H x W x C (K = 4, G = C, float32)")
    axes.set_ylabel("time / time of copying\nthe same bytes")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print a table, write JSON and the chart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=at_least(3), default=17, help="paired runs per shape (default 17)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    results = []
    print(
        f"{'B,H,W,C':>16}  forward  none  backward   copy GB/s   reference  attention (fwd, fwd+bwd, over the scan)"
    )
    for shape in SHAPES:
        pixels = shape[1] * shape[2]
        row = {"shape": shape, **measure_scan(shape, torch.float32, arguments.repeats)}
        row["first_touch_of_h_ms"] = measure_first_touch(shape)
        row |= measure_others(shape, torch.float32, 1 if pixels > 10000 else 3)
        results.append(row)
        print(
            f"{','.join(map(str, shape)):>16}  {row['forward_over_copy']:7.2f} {row['forward_none_over_copy']:5.2f}"
            f"  {row['backward_over_copy']:8.2f}   {row['copy_gb_per_second']:9.1f}"
            f"  {row['reference_forward_over_scan']:5.1f} {row['reference_both_over_scan']:5.1f}"
            f"  {row['attention_forward_over_scan']:5.1f} {row['attention_both_over_scan']:5.1f}"
            f"   first touch of h {row['first_touch_of_h_ms']:.1f} ms",
            flush=True,
        )
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    record = {
        "device": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "results": results,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cpu.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(results, arguments.out / "cpu.png")


if __name__ == "__main__":
    main()
