"""The depthwise convolution on a GPU: share of the copy bandwidth, and torch's convolution beside it."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.conv_cost import ConvShape, conv_shapes, passes
from benchmarks.gpu_timing import median_seconds, rotations
from ops import depthwise_conv, depthwise_conv_reference

TARGET = 0.7  # of the copy bandwidth, forward


def make_tensors(shape: ConvShape) -> list[torch.Tensor]:
    """Random x, weight and bias in bfloat16."""
    _, batch, height, width, channels, size = shape
    sizes = ((batch, height, width, channels), (channels, 1, size, size), (channels,))
    return [torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in sizes]


def time_conv(conv: Callable[..., torch.Tensor], sets: list[list[torch.Tensor]], backward: bool) -> float:
    """Median seconds of one pass over rotating inputs; backward to input, weight and bias."""
    if not backward:
        with torch.no_grad():
            return median_seconds(lambda i: conv(*sets[i]), len(sets))
    leaves = [[tensor.detach().requires_grad_() for tensor in tensors] for tensors in sets]
    outputs = [conv(*tensors) for tensors in leaves]
    grads = [torch.randn_like(y) for y in outputs]
    run = lambda i: torch.autograd.grad(outputs[i], leaves[i], grads[i], retain_graph=True)  # noqa: E731
    return median_seconds(run, len(sets))


def conv_rows(copy_bytes_per_second: float) -> Iterator[dict]:
    """The mixers' convolutions, forward and backward."""
    properties = torch.cuda.get_device_properties(0)
    device = (properties.multi_processor_count, properties.shared_memory_per_block_optin)
    for shape in conv_shapes():
        for backward in (False, True):
            kernels = passes(shape, torch.bfloat16, backward, *device)
            moved, ideal = (sum(kernel[key] for kernel in kernels) for key in ("moved_bytes", "ideal_bytes"))
            sets = [make_tensors(shape) for _ in range(rotations(ideal))]
            row = {
                "shape": shape._asdict(),
                "dtype": "bfloat16",
                "pass": "backward" if backward else "forward",
                "kernels": kernels,
                "moved_bytes": moved,
                "ideal_bytes": ideal,
            }
            for name, conv in (("op", depthwise_conv), ("torch", depthwise_conv_reference)):
                row[f"{name}_microseconds"] = 1e6 * time_conv(conv, sets, backward)
            seconds = row["op_microseconds"] / 1e6
            row["share_of_copy"] = moved / seconds / copy_bytes_per_second
            row["share_of_ideal"] = ideal / seconds / copy_bytes_per_second
            row["times_torch"] = row["torch_microseconds"] / row["op_microseconds"]
            row["target"] = None if backward else TARGET
            del sets
            torch.cuda.empty_cache()
            yield row
