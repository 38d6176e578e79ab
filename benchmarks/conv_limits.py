"""What bounds the depthwise convolution on an H100 or H200: memory, or its instructions. Arithmetic, not measured."""

import json

import torch

from benchmarks import sass_conv
from benchmarks.compiler_report import ConvKernel, read_conv_report
from benchmarks.conv_cost import ConvShape, conv_shapes, passes, with_borders
from benchmarks.sass import RESULTS
from benchmarks.scan_limits import MEGAHERTZ, PROCESSORS, SCHEDULERS, SHARED


def conv_limits(
    kernels: list[ConvKernel], counts: dict, shape: ConvShape, backward: bool, bandwidth: float
) -> list[dict]:
    """The kernels of one pass in bfloat16 on sm_90; `counts`: the convolutions of results/sass.json.

    An instruction of a warp takes one of a multiprocessor's schedulers a cycle. Where the plan's tile is not the usual
    one its instructions are more than those counted.
    """
    rows = []
    for found in passes(shape, torch.bfloat16, backward, PROCESSORS, SHARED):
        plan = found["plan"]
        wanted = ("sm_90", found["kernel"], "bfloat16", shape.size, bool(plan["usual"]))
        kernel = next(kernel for kernel in kernels if kernel[:5] == wanted)
        a_row = counts[str(sass_conv.ConvKernel(found["kernel"], "bfloat16", shape.size, True))]
        by_registers = 65536 // (128 * -(-kernel.registers // 8) * 8)
        blocks = min(by_registers, 228 * 1024 // (plan["shared_bytes"] + 1024))
        rows_computed = shape.batch * with_borders(shape.height, plan["rows"], shape.size)
        warps = 4 * plan["strips"] * plan["tiles"]
        memory = 1e6 * found["ideal_bytes"] / bandwidth
        issue = rows_computed * warps * a_row["instructions"] / (PROCESSORS * SCHEDULERS * MEGAHERTZ)
        maps = 2 if found["kernel"] == "conv_gradient" else 1
        rows.append(
            {
                "shape": shape._asdict(),
                "pass": "backward" if backward else "forward",
                **found,
                "registers": kernel.registers,
                "resident_blocks": blocks,
                "kilobytes_in_flight": blocks * plan["rows_in_flight"] * maps * 2,  # rows of 1,024 elements
                "bytes_per_element": found["moved_bytes"] / shape.elements,
                "memory_microseconds": memory,
                "issue_microseconds": issue,
                "highest_share_of_copy": memory / max(memory, issue),
            }
        )
    return rows


def predict_convs(bandwidth: float) -> list[dict]:
    """The mixers' convolutions, forward and backward."""
    kernels, counts = read_conv_report(), json.loads(RESULTS.read_text())["convolutions"]
    return [
        row
        for shape in conv_shapes()
        for backward in (False, True)
        for row in conv_limits(kernels, counts, shape, backward, bandwidth)
    ]


def print_convs(rows: list[dict]) -> None:
    """The table of depthwise convolutions."""
    for row in rows:
        print(
            f"{row['shape']['name']:32}{row['kernel']:14} {row['registers']:4} registers, "
            f"{row['resident_blocks']} blocks, {row['kilobytes_in_flight']:.0f} KB in flight, "
            f"{row['bytes_per_element']:.1f} B/element, memory {row['memory_microseconds']:.0f} us, "
            f"instructions {row['issue_microseconds']:.0f} us: {row['highest_share_of_copy']:.0%} of copy at the most"
        )
