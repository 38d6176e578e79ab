"""The scan, its mixer and a training step on a GPU: `python benchmarks/bench_gpu.py`.

In one process and one run: the copy bandwidth of the device; the share of it that the scan reaches at every
listed shape, by the bytes that it moves (scratch included) and by those that it cannot avoid; two
launch-per-line CUDA baselines; the plain PyTorch scan under torch.compile; flash attention at equal tokens
and width; the depthwise convolution and torch's; the gated merge and its formula; the resolution from which
the GSPN mixer, and the whole training step, beat attention's; and a profile of the mixer, by stage and by
kernel. Each part may fail alone: its error is recorded and the others go on. Writes benchmarks/results/gpu.json.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from gspn_dit.errors import UserError, run  # noqa: E402
from ops.library import BACKENDS  # noqa: E402


class Report:
    """Results by part, saved after each."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.deadline = path, time.monotonic() + 60 * minutes
        self.results: dict = {"errors": {}}

    def collect(
        self, name: str, rows: Callable[[], Iterable[dict]], show: Callable[[dict], str]
    ) -> list[dict]:
        """Run one part row by row; what it has when it fails or time runs out is kept."""
        print(f"\n{name}", flush=True)
        found = self.results[name] = []
        try:
            for row in rows():
                found.append(row)
                print("  " + show(row), flush=True)
                if time.monotonic() > self.deadline:
                    self.results["errors"][name] = "stopped: out of time"
                    break
        except Exception as error:
            self.results["errors"][name] = traceback.format_exc()
            print(
                f"  failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                flush=True,
            )
        torch.cuda.empty_cache()
        self.save()
        return found

    def save(self) -> None:
        """Write aside and rename, so that a killed run leaves the parts that it finished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".tmp")
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(partial, self.path)


def show_scan(row: dict) -> str:
    return (
        f"{row['shape']['name']:36}{row['dtype']:>9} {row['pass']:9}{row['microseconds']:10.0f} us"
        f"{row['moved_bytes'] / 1e6:10.0f} MB  {row['share_of_copy']:6.1%} of copy, "
        f"ideal {row['share_of_ideal']:6.1%}"
    )


def show_baseline(row: dict) -> str:
    return (
        f"{row['shape']['name']:36}{row['pass']:9} op {row['op_microseconds']:9.0f} us, "
        f"uncoalesced {row['times_uncoalesced']:6.1f}x, coalesced {row['times_coalesced']:6.1f}x"
    )


def show_attention(row: dict) -> str:
    return (
        f"{row['shape']['name']:36} attention / scan: forward {row['attention_over_scan_forward']:6.2f}, "
        f"backward {row['attention_over_scan_backward']:6.2f}"
    )


def show_reference(row: dict) -> str:
    return (
        f"{row['shape']['name']:36} reference compiled by the {row['compiled']} / op: "
        f"forward {row['times_reference_forward']:6.1f}, backward {row['times_reference_backward']:6.1f}"
    )


def show_times(row: dict) -> str:
    times = [f"{key} {value:.0f}" for key, value in row.items() if "forward" in key or key.endswith("step")]
    return f"{row['pixels']:5} px, batch {row['batch']:2}, us: " + "; ".join(times)


def show_conv(row: dict) -> str:
    target = f" (target {row['target']:.0%})" if row["target"] else ""
    return (
        f"{row['shape']['name']:36}{row['pass']:9}{row['op_microseconds']:9.0f} us, "
        f"{row['share_of_copy']:6.1%} of copy{target}, ideal {row['share_of_ideal']:6.1%}, "
        f"torch / op {row['times_torch']:5.2f}"
    )


def show_merge(row: dict) -> str:
    return (
        f"{row['shape']['name']:36}{row['pass']:9}{row['op_microseconds']:9.0f} us, "
        f"{row['share_of_copy']:6.1%} of copy, formula / op {row['times_formula']:5.2f}"
    )


def show_stages(row: dict) -> str:
    head = f"{row['pixels']} px, batch {row['batch']}, us forward / backward"
    return head + "".join(
        f"\n    {s['stage']:34}{s['forward_microseconds']:8.0f} {s['backward_microseconds']:8.0f}"
        for s in row["stages"]
    )


def show_profile(row: dict) -> str:
    head = f"{row['pixels']} px, {'compiled' if row['compiled'] else 'eager'}: {row['microseconds']:.0f} us\n"
    lines = [f"    {k['share']:6.1%} {k['calls']:5.1f} calls  {k['name'][:90]}" for k in row["kernels"][:12]]
    return head + "\n".join(lines)


def benchmark(report: Report) -> None:
    """All parts, the scan's own first."""
    from benchmarks import conv_cost, gpu_conv, gpu_scans, gpu_timing, scan_cost

    report.results["environment"] = gpu_timing.environment()
    bandwidth = report.results["copy_bytes_per_second"] = gpu_timing.copy_bandwidth()
    print(f"{report.results['environment']['device']}: copy {bandwidth / 1e12:.2f} TB/s, read and written")
    report.results["bytes"] = f"{scan_cost.FORMULA}\n{conv_cost.FORMULA}"
    print(report.results["bytes"])
    report.collect("scan", lambda: gpu_scans.scan_rows(bandwidth), show_scan)
    report.collect("launch-per-line baselines", gpu_scans.baseline_rows, show_baseline)
    report.collect("flash attention", gpu_scans.attention_rows, show_attention)
    report.collect("depthwise convolution", lambda: gpu_conv.conv_rows(bandwidth), show_conv)
    try:
        benchmark_models(report, bandwidth)
    except ImportError as error:  # a Python without the models' packages still times the scan
        report.results["errors"]["models"] = str(error)
        print(f"models: not timed, {error}")
    report.collect("compiled reference", gpu_scans.compiled_reference_rows, show_reference)
    report.save()


def benchmark_models(report: Report, bandwidth: float) -> None:
    """The mixer and what is around it; the resolutions from which they beat attention."""
    from benchmarks import gpu_models

    report.collect("gated merge", lambda: gpu_models.merge_rows(bandwidth), show_merge)
    eager = report.collect("mixers, eager", lambda: gpu_models.mixer_rows(compiled=False), show_times)
    steps = report.collect("training step", gpu_models.step_rows, show_times)
    report.collect("mixer stages", gpu_models.stage_rows, show_stages)
    report.collect("mixer profile", gpu_models.profile_rows, show_profile)
    mixers = report.collect("mixers, compiled", gpu_models.mixer_rows, show_times)
    crossovers = {
        "mixer forward, eager": (eager, "forward"),
        "mixer forward and backward, eager": (eager, "forward and backward"),
        "mixer forward": (mixers, "forward"),
        "mixer forward and backward": (mixers, "forward and backward"),
        "training step": (steps, "step"),
    }
    report.results["against attention"] = {
        name: gpu_models.crossover(rows, what) for name, (rows, what) in crossovers.items()
    }
    for name, found in report.results["against attention"].items():
        print(f"{name}: {gpu_models.show_crossover(found)}")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit status 1 when a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="stop at about this time (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError(
            "no GPU visible to torch: run this on a machine with an NVIDIA GPU and a CUDA build of torch"
        )
    if "cuda" not in BACKENDS:
        raise UserError("the scan has no CUDA kernels: run `python ops/build.py --cuda required`")
    report = Report(arguments.json, arguments.minutes)
    benchmark(report)
    for name, error in report.results["errors"].items():
        print(f"FAILED {name}: {error.strip().splitlines()[-1]}")
    print(f"written to {arguments.json}")
    return 1 if report.results["errors"] else 0


if __name__ == "__main__":
    run(main)
