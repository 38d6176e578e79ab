"""Scan and read-out in one operator on this CPU, against the scan and the gated merge one after the other.

    python benchmarks/bench_mix.py [--threads 2]

Both are timed in one process, in turn, on fresh inputs: inference, and forward with backward. Ratios are medians of
paired runs, of wall time and of the processor time that the process used, which other processes disturb less. Writes
benchmarks/results/mix_cpu.json.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.allocator import keep_pages  # noqa: E402

keep_pages()

import torch  # noqa: E402

from benchmarks.paired import measure, parse, write  # noqa: E402
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


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse(__doc__, "mix_cpu.json")
    results = []
    print(f"{'B,H,W,C':>14}   G      dtype   inference wall  cpu   at most   both wall  cpu   at most")
    cases = [(g, shape, dtype) for g in GROUPS for shape in MAPS for dtype in (torch.float32, torch.bfloat16)]
    for groups, shape, dtype in cases:
        draw = lambda s=shape, g=groups, d=dtype: (make_inputs(s, g, d), torch.randn(s).to(d))  # noqa: E731
        row = measure({"mix": gspn_mix, "scan_and_merge": in_two}, draw, arguments.repeats)
        most, name = TARGETS[groups], str(dtype).removeprefix("torch.")
        case = {"shape": shape, "groups": groups, "dtype": name}
        results.append(case | row | {"inference_at_most": most[0], "forward_backward_at_most": most[1]})
        print(
            f"{','.join(map(str, shape)):>14} {groups:3} {name:>10}"
            f"   {row['inference_ratio_wall']:14.2f} {row['inference_ratio_cpu']:4.2f} {most[0]:9.2f}"
            f"   {row['forward_backward_ratio_wall']:9.2f} {row['forward_backward_ratio_cpu']:4.2f} {most[1]:9.2f}",
            flush=True,
        )
    write(arguments, results)


if __name__ == "__main__":
    main()
