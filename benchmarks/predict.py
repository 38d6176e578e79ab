"""What the CUDA kernels should do, worked out without a GPU: `python benchmarks/predict.py`.

From the compiler's report (registers), the plan of every listed shape (threads, shared memory), the machine code's
instructions and the bytes that must move: bytes in flight on a multiprocessor, the least time at the bandwidth given,
the plan's modelled time, and which of memory, instructions and waiting binds. The model is made to rank plans: a
warning, not a time. Predictions, not yet measured on a GPU. Writes benchmarks/results/cuda_predictions.json.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.compiler_report import Kernel, read_report  # noqa: E402
from benchmarks.conv_limits import predict_convs, print_convs  # noqa: E402
from benchmarks.mixer_cost import GROUPS, RANK, VARIANTS, WIDTH, gspn_stages, mixer_seconds, stage_seconds  # noqa: E402
from benchmarks.scan_cost import WIDE_MAP, Plan, Shape, ideal_bytes, model_shapes, plan_of, scratch_bytes  # noqa: E402
from benchmarks.scan_limits import (  # noqa: E402
    PROCESSORS,
    SHARED,
    limits,
    read_out,
    saved_by_maps_inside,
    target,
)
from gspn_dit.errors import UserError, run  # noqa: E402
from ops.library import BACKENDS, LIBRARY  # noqa: E402

ARCHITECTURE = "sm_90"


def find_kernel(
    kernels: list[Kernel], shape: Shape, dtype: torch.dtype, backward: bool, plan: Plan, reads_out: bool
) -> Kernel:
    """The kernel that carries out `plan`."""
    wanted = (
        ARCHITECTURE,
        ("mix_" if reads_out else "scan_") + ("backward" if backward else "forward"),
        str(dtype).removeprefix("torch."),
        plan.vector,
        shape.groups != shape.channels,
        plan.run == 1,
        True,
    )
    return next(kernel for kernel in kernels if kernel[:7] == wanted)


def loads_per_item(shape: Shape, dtype: torch.dtype, backward: bool, plan: Plan, reads_out: bool) -> int:
    """Bytes that a thread asks for at once: the inputs of one position."""
    vectors = 2 + reads_out  # x, lam, and u
    vectors += backward * (2 if plan.run == 1 else 4)  # grad_h or grad_y, its own h or three of them
    logits = 3 * (plan.vector if shape.groups == shape.channels else 1)
    return dtype.itemsize * (vectors * plan.vector + logits)


def predict(
    kernels: list[Kernel], shape: Shape, backward: bool, bandwidth: float, reads_out: bool = False
) -> dict:
    """One row of the table, in bfloat16; `bandwidth` in bytes per second.

    With `reads_out` it is of `gspn_mix`, forward in inference: of one kernel, or of the scan's with the merge's bytes
    and time added.
    """
    dtype = torch.bfloat16
    ideal = ideal_bytes(shape, dtype, backward, reads_out, states=False)
    if reads_out:
        joined, plan, modelled, moved = read_out(shape, backward)
    else:
        joined, plan = False, plan_of(shape, dtype, backward, PROCESSORS, SHARED)
        modelled, moved = plan.modelled_microseconds, ideal + scratch_bytes(shape, backward, plan)
    kernel = find_kernel(kernels, shape, dtype, backward, plan, joined)
    warps = -(-plan.threads // 32)
    blocks = min(kernel.resident_warps // warps, 228 * 1024 // (plan.shared_bytes + 1024), 32)
    resident = min(blocks, plan.blocks / PROCESSORS)
    in_flight = (
        resident * plan.threads * plan.items_in_flight * loads_per_item(shape, dtype, backward, plan, joined)
    )
    times = limits(shape, backward, plan, blocks, moved, bandwidth, joined)
    elements = shape.batch * shape.height * shape.width * shape.channels * 4
    floor = ideal / bandwidth * 1e6
    return {
        "operator": "gspn_mix" if reads_out else "gspn_scan",
        "kernels": "one" if joined or not reads_out else "scan, merge",
        "shape": shape._asdict(),
        "pass": "backward" if backward else "forward",
        "dtype": str(dtype).removeprefix("torch."),
        "plan": plan._asdict(),
        "registers": kernel.registers,
        "resident_warps": blocks * warps,
        "occupancy": blocks * warps / 64,
        "waves": plan.blocks / (blocks * PROCESSORS),
        "kilobytes_in_flight": in_flight / 1024,
        "bytes_per_element": moved / elements,
        "ideal_bytes_per_element": ideal / elements,
        "floor_microseconds": floor,
        "modelled_microseconds": modelled,
        "limits": times._asdict(),
        "binds": times.binds,
        "share": floor / modelled,
        "target": target(shape, backward),
        "reached": floor / modelled >= target(shape, backward),
    }


def predict_merge(kernels: list[Kernel], channels: int, backward: bool, bandwidth: float) -> dict:
    """The gated merge at one width, in bfloat16 and four directions."""
    vector = next(v for v in (8, 4, 2, 1) if channels % v == 0)
    wanted = (ARCHITECTURE, "merge_backward" if backward else "merge_forward", "bfloat16", vector)
    kernel = next(kernel for kernel in kernels if kernel[:4] == wanted)
    warps = min(kernel.resident_warps // 8 * 8, 64)  # in blocks of 256 threads
    moved = (4 if backward else 2) + 1 / 4  # elements for each of h
    return {
        "channels": channels,
        "pass": "backward" if backward else "forward",
        "vector": vector,
        "registers": kernel.registers,
        "occupancy": warps / 64,
        "kilobytes_in_flight": warps * 32 * (2 * 4 + backward) * vector * 2 / 1024,
        "bytes_per_element": 2 * moved,
        "floor_nanoseconds_a_token": 1e9 * 4 * channels * 2 * moved / bandwidth,
    }


def predict_mixers(bandwidth: float, rate: float) -> dict:
    """Floors in nanoseconds for one token of GSPN-DiT-XL/2's mixer, by stage and against attention's."""
    nanoseconds = lambda stage: 1e9 * stage_seconds([stage], bandwidth, rate)  # noqa: E731
    stages = [
        {
            "variant": variant,
            "stage": stage.name,
            "forward": nanoseconds(stage),
            "backward": nanoseconds(stage.backward()),
        }
        for variant in VARIANTS
        for stage in gspn_stages(variant)
    ]
    rows = []
    for variant in VARIANTS:
        for pixels in (256, 512, 1024, 2048, 4096):
            times = mixer_seconds((pixels // 16) ** 2, bandwidth, rate, variant)
            in_nanoseconds = {name: 1e9 * seconds for name, seconds in times.items()}
            rows.append({"variant": variant, "pixels": pixels, **in_nanoseconds})
    return {"stages": stages, "rows": rows}


def print_scans(rows: list[dict]) -> None:
    """The table of scans, and why a target is not expected to be reached."""
    head = f"{'shape':34}{'operator':>10}{'pass':>9} regs warps waves KB/SM  B/element (ideal)  floor, modelled us"
    print(head + "  share, meant  memory, instructions, waiting alone, us: binds")
    for row in rows:
        alone = ", ".join(f"{value:.0f}" for value in row["limits"].values())
        print(
            f"{row['shape']['name']:34}{row['operator']:>10}{row['pass']:>9}{row['registers']:5}"
            f"{row['resident_warps']:6}{row['waves']:6.1f}{row['kilobytes_in_flight']:6.0f}"
            f"{row['bytes_per_element']:11.1f} ({row['ideal_bytes_per_element']:5.1f})"
            f"{row['floor_microseconds']:8.0f}{row['modelled_microseconds']:8.0f}"
            f"{row['share']:8.0%} {row['target']:.0%}{'' if row['reached'] else ' missed'}  {alone}: {row['binds']}"
            f"{'' if row['kernels'] == 'one' else ', in two kernels'}"
        )


def print_mixers(mixers: dict) -> None:
    """The table of mixers."""
    for variant in VARIANTS:
        stages = [stage for stage in mixers["stages"] if stage["variant"] == variant]
        for pass_ in ("forward", "backward"):
            total = sum(stage[pass_] for stage in stages)
            parts = ", ".join(f"{stage['stage']} {stage[pass_]:.1f}" for stage in stages)
            print(f"GSPN mixer, {variant}, ns a token {pass_}: {total:.1f} = {parts}")
    for row in mixers["rows"]:
        print(
            f"{row['variant']:9}{row['pixels']:5} px, ns a token, GSPN / attention: "
            f"forward {row['gspn, forward']:.0f} / {row['attention, forward']:.0f}, "
            f"with backward {row['gspn, forward and backward']:.0f} / "
            f"{row['attention, forward and backward']:.0f}"
        )


def main(argv: list[str] | None = None) -> int:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bandwidth", type=float, default=4.3e12, help="bytes per second (default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, default=7.8e14, help="matrix operations per second")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "cuda_predictions.json"
    )
    arguments = parser.parse_args(argv)
    if "cuda" not in BACKENDS:
        raise UserError("the library has no CUDA kernels: build them with `make setup CUDA=1`")
    kernels = read_report()
    rows = [
        predict(kernels, shape, backward, arguments.bandwidth, reads_out)
        for shape in [*model_shapes(), WIDE_MAP]
        for reads_out in (False, True)
        for backward in (False, True)
    ]
    build = json.loads(LIBRARY.with_name("build.json").read_text())
    result = {
        "note": "predicted, not yet measured on a GPU",
        "device": f"{ARCHITECTURE}, {PROCESSORS} multiprocessors, {arguments.bandwidth / 1e12:.1f} TB/s",
        "date": datetime.date.today().isoformat(),
        "nvcc": build["nvcc"],
        "torch": build["torch"],
        "kernels": [kernel._asdict() for kernel in kernels if kernel.architecture == ARCHITECTURE],
        "rows": rows,
        "merges": [
            predict_merge(kernels, channels, backward, arguments.bandwidth)
            for channels in (1500, 1152)
            for backward in (False, True)
        ],
        "convolutions": predict_convs(arguments.bandwidth),
        "mixers": predict_mixers(arguments.bandwidth, arguments.rate),
        "maps_inside": saved_by_maps_inside(WIDTH, RANK, GROUPS, arguments.bandwidth, arguments.rate),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"PREDICTED for {result['device']}, not yet measured on a GPU; bfloat16, four directions")
    print_scans(rows)
    for row in result["merges"]:
        print(
            f"gated merge, {row['channels']} channels {row['pass']:>9}: {row['registers']} registers, occupancy "
            f"{row['occupancy']:.0%}, {row['kilobytes_in_flight']:.0f} KB in flight, "
            f"{row['bytes_per_element']:.1f} bytes an element of h, {row['floor_nanoseconds_a_token']:.1f} ns a token"
        )
    print_convs(result["convolutions"])
    print_mixers(result["mixers"])
    saved = result["maps_inside"]
    print(
        "lam, u and logits computed inside the scan would save, ns a token: "
        f"{saved['maps_forward']:.1f} forward, {saved['maps_backward']:.1f} backward"
    )
    print(f"written to {arguments.json}")
    return 0


if __name__ == "__main__":
    run(main)
