"""GSPN-DiT-XL/2's mixer on this CPU, stage by stage, and as it was before its passes over memory were joined.

    python benchmarks/bench_mixer.py

"Before" gates, adds up and squares by formulas of one pass each; "after" is the mixer as it is. Both are timed in one
process, in turn; times are medians, ratios are medians of paired runs. Writes benchmarks/results/mixer_cpu.json.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.allocator import keep_pages  # noqa: E402

keep_pages()

import torch  # noqa: E402

from benchmarks.mixer_stages import FORMULA, Stage, by_formula, mixer_stages  # noqa: E402
from benchmarks.paired import at_least  # noqa: E402
from gspn_dit.models.mixers import create_mixer  # noqa: E402
from gspn_dit.models.settings import resolve_settings  # noqa: E402

MODEL = "GSPN-DiT-XL/2"
SHAPES = [(4, 16, 16), (1, 64, 64)]


def make_mixer(dtype: torch.dtype) -> torch.nn.Module:
    """A fresh mixer of the model, of global scans."""
    torch.manual_seed(0)
    mixer = create_mixer(resolve_settings(MODEL), segment=0)
    for module in mixer.modules():
        if hasattr(module, "initialize_weights"):
            module.initialize_weights()
    return mixer.to(dtype)


def timed(run: Callable[[], object]) -> tuple[float, object]:
    """Milliseconds of one call, and what it returned."""
    start = time.perf_counter()
    result = run()
    return 1e3 * (time.perf_counter() - start), result


def time_stage(stage: Stage) -> tuple[float, float]:
    """Milliseconds forward and backward."""
    forward, outputs = timed(lambda: stage.run(*stage.inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [torch.randn_like(output) for output in outputs]
    backward, _ = timed(lambda: stage.gradients(outputs, grads))
    return forward, backward


def time_mixer(mixer: torch.nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Milliseconds forward and backward, gradients of input and weights."""
    forward, y = timed(lambda: mixer(x))
    grad = torch.randn_like(y)
    backward, _ = timed(lambda: torch.autograd.grad(y, (x, *mixer.parameters()), grad))
    return forward, backward


def measure(shape: tuple[int, ...], dtype: torch.dtype, repeats: int) -> dict:
    """Medians of the stages and of the whole mixer before and after."""
    mixer = make_mixer(dtype)
    x = torch.randn(*shape, resolve_settings(MODEL).width).to(dtype).requires_grad_()
    stages = mixer_stages(mixer, x)
    of_stages, before, after = [], [], []
    for _ in range(repeats):
        of_stages.append([time_stage(stage) for stage in stages])
        with by_formula():
            before.append(time_mixer(mixer, x))
        after.append(time_mixer(mixer, x))
    of_stages, before, after = of_stages[2:], before[2:], after[2:]  # the first touch the allocator's pages
    both = [sum(times) for times in before], [sum(times) for times in after]
    return {
        "tokens": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "stages": [
            {
                "stage": stage.name,
                "forward_ms": statistics.median(run[i][0] for run in of_stages),
                "backward_ms": statistics.median(run[i][1] for run in of_stages),
            }
            for i, stage in enumerate(stages)
        ],
        "mixer_before": {"forward_ms": median(before, 0), "backward_ms": median(before, 1)},
        "mixer_after": {"forward_ms": median(after, 0), "backward_ms": median(after, 1)},
        "before_over_after": statistics.median(b / a for b, a in zip(*both, strict=True)),
    }


def median(rows: list[tuple[float, float]], i: int) -> float:
    return statistics.median(row[i] for row in rows)


def show(result: dict) -> None:
    """The table of one shape: what the mixer does, and beside it what it did."""
    print(f"\n{MODEL}, tokens {tuple(result['tokens'])}, {result['dtype']}: ms forward / backward")
    was = {
        row["stage"].removesuffix(FORMULA): row for row in result["stages"] if row["stage"].endswith(FORMULA)
    }
    for row in result["stages"]:
        if row["stage"].endswith(FORMULA):
            continue
        line = f"  {row['stage']:20}{row['forward_ms']:8.2f} {row['backward_ms']:8.2f}"
        if old := was.get(row["stage"]):
            line += f"   before {old['forward_ms']:8.2f} {old['backward_ms']:8.2f}"
        print(line)
    for name in ("before", "after"):
        times = result[f"mixer_{name}"]
        print(f"  mixer {name:14}{times['forward_ms']:8.2f} {times['backward_ms']:8.2f}")
    print(f"  before over after, forward and backward: {result['before_over_after']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=at_least(3), default=14, help="default: %(default)s, of which two are dropped"
    )
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "mixer_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            results.append(measure(shape, dtype, arguments.repeats))
            show(results[-1])
    report = {
        "model": MODEL,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "repeats": arguments.repeats - 2,
        "results": results,
    }
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
