"""Whole mixers on this CPU: the GSPN module against DiT's attention, with the gradients of input and weights.

    python benchmarks/bench_attention.py [--threads 2]

Both are timed in one process, in turn, on fresh inputs, in float32: size S at 16x16 tokens, batch 8. Ratios are medians
of paired runs, of wall time and of the processor time that the process used, which other processes disturb less. Writes
benchmarks/results/attention_cpu.json.
"""

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.allocator import keep_pages  # noqa: E402

keep_pages()

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.paired import PASSES, parse, timed, write  # noqa: E402
from gspn_dit.models.mixers import create_mixer  # noqa: E402
from gspn_dit.models.settings import resolve_settings  # noqa: E402

SHAPE = (8, 16, 16)
MODULES = {
    "the paper's module with its norms": {},
    "modulated local path": {"local_path": "modulated", "conv_init": "identity"},
}
TARGETS = (0.9, 1.0)
"""The most of attention's time that is meant: inference, forward and backward."""


def make_mixer(name: str, **settings: object) -> nn.Module:
    mixer = create_mixer(resolve_settings(name, **settings), 0 if "GSPN" in name else None)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.02)
    return mixer


def run_pass(name: str, mixer: nn.Module, inputs: list[torch.Tensor], grad_y: torch.Tensor) -> object:
    """One of `PASSES`."""
    if name == "inference":
        with torch.no_grad():
            return mixer(*inputs)
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(mixer(*leaves), [*leaves, *mixer.parameters()], grad_y)


def measure(settings: dict[str, object], repeats: int) -> dict:
    """Median milliseconds of both mixers, and medians of the ratios of the GSPN module to attention."""
    resolved = resolve_settings("GSPN-DiT-S/2", **settings)
    mixers = {"gspn": make_mixer("GSPN-DiT-S/2", **settings), "attention": make_mixer("DiT-S/2")}
    scales = 2 if resolved.local_path == "modulated" else 0
    rows = []
    for i in range(repeats + 2):
        x, grad_y = torch.randn(2, *SHAPE, resolved.width)
        inputs = {"gspn": [x, *torch.randn(scales, SHAPE[0], 1, 1, resolved.width)], "attention": [x]}
        order = ("gspn", "attention") if i % 2 else ("attention", "gspn")
        rows.append(
            {
                (name, way): timed(
                    lambda n=name, w=way: run_pass(n, mixers[w], inputs[w], grad_y)  # noqa: B023 (called here)
                )
                for name in PASSES
                for way in order
            }
        )
    rows = rows[2:]  # the first calls touch the allocator's pages
    result = {}
    for name in PASSES:
        for way in mixers:
            result[f"{name}_{way}_ms"] = 1e3 * statistics.median(row[name, way][0] for row in rows)
        for clock, i in (("wall", 0), ("cpu", 1)):
            ratios = [row[name, "gspn"][i] / row[name, "attention"][i] for row in rows]
            result[f"{name}_ratio_{clock}"] = statistics.median(ratios)
    return result


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse(__doc__, "attention_cpu.json")
    results = []
    print(
        f"{'over attention, size S, 16x16 tokens':36}   inference wall  cpu   at most   both wall  cpu   at most"
    )
    for label, settings in MODULES.items():
        row = measure(settings, arguments.repeats)
        results.append(
            {"module": label, "settings": settings, "shape": SHAPE, "dtype": "float32", **row}
            | dict(zip(("inference_at_most", "forward_backward_at_most"), TARGETS, strict=True))
        )
        print(
            f"{label:36}   {row['inference_ratio_wall']:14.2f} {row['inference_ratio_cpu']:4.2f} {TARGETS[0]:9.2f}"
            f"   {row['forward_backward_ratio_wall']:9.2f} {row['forward_backward_ratio_cpu']:4.2f} {TARGETS[1]:9.2f}",
            flush=True,
        )
    write(arguments, results)


if __name__ == "__main__":
    main()
