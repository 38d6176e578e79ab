"""The depthwise convolution on this CPU, against torch's at the shapes of GSPN-DiT-S/2's mixer.

    python benchmarks/bench_conv.py [--threads 2]

Both are timed in one process, in turn, on fresh inputs: inference, and forward with backward to input, weight and
bias; with the gate relu(x)^2 too at the kernel of 3. Ratios are medians of paired runs, of wall time and of the
processor time that the process used, which other processes disturb less. Writes benchmarks/results/conv_cpu.json.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.allocator import keep_pages  # noqa: E402

keep_pages()

import torch  # noqa: E402

from benchmarks.paired import measure, parse, write  # noqa: E402
from gspn_dit.models.basics import relu_squared  # noqa: E402
from ops import depthwise_conv, depthwise_conv_reference  # noqa: E402

MAPS = [(8, 16, 16, 384), (1, 64, 64, 384)]
CASES = [(7, None), (3, None), (3, "relu_squared")]  # kernel, activation


def by_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str | None
) -> torch.Tensor:
    """torch's convolution, and the gate as the mixer has it."""
    y = depthwise_conv_reference(x, weight, bias)
    return relu_squared(y) if activation else y


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse(__doc__, "conv_cpu.json")
    results = []
    print("own over torch's:    B,H,W,C  k   activation      dtype   inference wall  cpu   both wall  cpu")
    cases = [
        (shape, *case, dtype) for shape in MAPS for case in CASES for dtype in (torch.float32, torch.bfloat16)
    ]
    for shape, size, activation, dtype in cases:
        sizes = (shape, (shape[3], 1, size, size), (shape[3],))

        def draw(sizes=sizes, dtype=dtype):
            return [torch.randn(size).to(dtype) for size in sizes], torch.randn(sizes[0]).to(dtype)

        ways = {
            name: lambda *tensors, conv=conv, activation=activation: conv(*tensors, activation)
            for name, conv in (("own", depthwise_conv), ("torch", by_torch))
        }
        row = measure(ways, draw, arguments.repeats)
        name = str(dtype).removeprefix("torch.")
        results.append({"shape": shape, "kernel": size, "activation": activation, "dtype": name} | row)
        print(
            f"{','.join(map(str, shape)):>28} {size:2} {activation!s:>12} {name:>10}"
            f"   {row['inference_ratio_wall']:14.2f} {row['inference_ratio_cpu']:4.2f}"
            f"   {row['forward_backward_ratio_wall']:9.2f} {row['forward_backward_ratio_cpu']:4.2f}",
            flush=True,
        )
    write(arguments, results)


if __name__ == "__main__":
    main()
