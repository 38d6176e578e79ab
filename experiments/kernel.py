"""Time and memory of the GSPN module, of attention, and of the scan alone, over the resolution of the image.

On a CPU in float32 with all cores, on a GPU in bfloat16. A token is 16 pixels wide: patches of 2 on latents that are 8
times smaller than the image. Batch 1.
"""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from tqdm import tqdm

from experiments.summary import quartiles
from experiments.train_run import environment, is_measured, write_json
from gspn_dit.models.mixers import create_mixer
from gspn_dit.models.settings import resolve_settings
from ops import gspn_scan

PIXELS_PER_TOKEN = 16
MODES = ("forward", "both")
MIXERS = {"gspn": "GSPN-DiT-S/2", "attention": "DiT-S/2"}
SETTINGS = {
    "cpu": {
        "width": 384,
        "pixels": [256, 512, 1024, 2048, 4096],
        "attention_to": 2048,
        "scan_pixels": [256, 512, 1024, 2048, 4096, 8192, 16384],
        "scan_channels": 16,
        "seconds": 3.0,
        "rounds": 15,
    },
    "gpu": {
        "width": 384,
        "pixels": [256, 512, 1024, 2048, 4096],
        "attention_to": 4096,
        "scan_pixels": [256, 512, 1024, 2048, 4096, 8192, 16384],
        "scan_channels": 64,
        "seconds": 1.0,
        "rounds": 15,
    },
    "mini": {
        "width": 16,
        "pixels": [64, 128, 256],
        "attention_to": 128,
        "scan_pixels": [64, 256],
        "scan_channels": 2,
        "seconds": 0.01,
        "rounds": 15,
    },
}
"""`attention_to`: the largest image at which attention is timed; `seconds`, `rounds`: the most for a median."""


def run(scale: str, path: Path) -> None:
    """Measure, unless the result is there."""
    settings = SETTINGS[scale]
    if is_measured(path, settings):
        return
    cuda = torch.cuda.is_available()
    rows = measure_mixers(settings) + measure_scan(settings)
    write_json(
        path,
        {
            "settings": settings,
            "dtype": "bfloat16" if cuda else "float32",
            "threads": torch.get_num_threads(),
            "memory": "torch.cuda.max_memory_allocated" if cuda else "tensors counted on fake tensors",
            "parameters": {part: parameters_of(name, settings["width"]) for part, name in MIXERS.items()},
            "rows": rows,
            **environment(),
        },
    )


def measure_mixers(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the two mixers at every size; attention's time is None beyond `attention_to`."""
    rows = []
    for pixels in tqdm(settings["pixels"], desc="mixers", unit="size"):
        side = pixels // PIXELS_PER_TOKEN
        timers = {}
        for part, name in MIXERS.items():
            if part == "attention" and pixels > settings["attention_to"]:
                continue
            step = mixer_step(name, settings["width"], side)
            timers |= {(part, mode): (lambda step=step, mode=mode: step(mode)) for mode in MODES}
        times = take_turns(timers, settings)
        for part, name in MIXERS.items():
            make = functools.partial(mixer_step, name, settings["width"], side)
            for mode in MODES:
                rows.append(
                    row_of(part, pixels, mode, times.get((part, mode))) | {"bytes": peak_bytes(make, mode)}
                )
    return rows


def measure_scan(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the scan alone, with one affinity map for all channels."""
    rows = []
    for pixels in tqdm(settings["scan_pixels"], desc="scan", unit="size"):
        side = pixels // PIXELS_PER_TOKEN
        step = scan_step(settings["scan_channels"], side)
        times = take_turns({mode: lambda mode=mode, step=step: step(mode) for mode in MODES}, settings)
        for mode in MODES:
            rows.append(
                row_of("scan", pixels, mode, times[mode])
                | {"bytes": peak_bytes(lambda side=side: scan_step(settings["scan_channels"], side), mode)}
            )
    return rows


def row_of(part: str, pixels: int, mode: str, times: list[float] | None) -> dict[str, Any]:
    """A size of a part: the median of its times with their quartiles, None where it is not timed."""
    tokens = (pixels // PIXELS_PER_TOKEN) ** 2
    row = {"part": part, "pixels": pixels, "tokens": tokens, "mode": mode}
    if times is None:
        return row | {"seconds": None}
    low, high = quartiles(times)
    return row | {"seconds": statistics.median(times), "low": low, "high": high, "rounds": len(times)}


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    return (
        (torch.device("cuda"), torch.bfloat16)
        if torch.cuda.is_available()
        else (torch.device("cpu"), torch.float32)
    )


def mixer_step(name: str, width: int, side: int) -> "Step":
    """A step of a mixer of size S on random tokens (1, side, side, width)."""
    device, dtype = device_and_dtype()
    with torch.device(device):
        mixer = make_mixer(name, width)
        for module in mixer.modules():
            if hasattr(module, "initialize_weights"):
                module.initialize_weights()
    if dtype != torch.float32:
        mixer.to(dtype)
    x = torch.randn(1, side, side, width, device=device, dtype=dtype).requires_grad_()
    return Step(mixer, (x,), [x, *mixer.parameters()])


def make_mixer(name: str, width: int) -> nn.Module:
    settings = resolve_settings(name, width=width)
    return create_mixer(settings, settings.segment_of(0))


def parameters_of(name: str, width: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make_mixer(name, width).parameters())


def scan_step(channels: int, side: int) -> "Step":
    """A step of the scan on random maps with `channels` channels and one group."""
    device, dtype = device_and_dtype()
    shapes = (1, side, side, channels), (1, side, side, 4, channels), (1, side, side, 4, 3, 1)
    inputs = tuple(torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in shapes)
    return Step(gspn_scan, inputs, list(inputs))


class Step:
    """step("forward") runs without autograd; step("both") runs forward and backward."""

    def __init__(
        self, function: Callable | nn.Module, inputs: tuple[torch.Tensor, ...], leaves: list[torch.Tensor]
    ) -> None:
        self.function, self.inputs, self.leaves = function, inputs, leaves

    def __call__(self, mode: str) -> object:
        if mode == "forward":
            with torch.no_grad():
                return self.function(*self.inputs)
        for leaf in self.leaves:
            leaf.grad = None
        out = self.function(*self.inputs)
        out.backward(torch.ones_like(out))
        return out


def take_turns(calls: dict[Any, Callable[[], object]], settings: dict[str, Any]) -> dict[Any, list[float]]:
    """Seconds of each call in each round, in turns, after a first round that is not counted; three rounds at least."""
    first = {key: seconds_of(call) for key, call in calls.items()}
    affordable = settings["seconds"] / max(sum(first.values()), 1e-9)
    times = {key: [] for key in calls}
    for _ in range(int(max(3, min(settings["rounds"], affordable)))):
        for key, call in calls.items():
            times[key].append(seconds_of(call))
    return times


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call; on a GPU between two events."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def peak_bytes(make: Callable[[], Step], mode: str) -> int:
    """Peak of the bytes in tensors during a step, inputs, weights and results included.

    On a CPU the step runs on tensors without data: what operators use inside themselves is not counted.
    """
    if torch.cuda.is_available():
        step = make()
        torch.cuda.reset_peak_memory_stats()
        held = step(mode)
        torch.cuda.synchronize()
        del held
        return torch.cuda.max_memory_allocated()
    with FakeTensorMode():
        step = make()
        tracker = MemTracker()
        tracker.track_external(*step.leaves)
        with tracker:
            held = step(mode)
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        del held
    return peak["Total"]


def exponent(rows: list[dict[str, Any]], key: str) -> float | None:
    """Slope of log(key) over log(tokens) by least squares over the measured rows; None for fewer than two."""
    points = [(math.log(row["tokens"]), math.log(row[key])) for row in rows if row[key]]
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def extrapolated(rows: list[dict[str, Any]], tokens: int) -> float:
    """Seconds of attention beyond the measured sizes: a N + b N^2 through the two largest measured ones."""
    (n1, t1), (n2, t2) = [(row["tokens"], row["seconds"]) for row in rows if row["seconds"]][-2:]
    b = max((t2 / n2 - t1 / n1) / (n2 - n1), 0.0)
    a = max(t2 / n2 - b * n2, 0.0)
    return a * tokens + b * tokens**2


def crossover(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> float | None:
    """Tokens from which `first` takes less time than `second` at every larger measured size; None if nowhere.

    Between two sizes it is interpolated on logarithmic axes. 0 where `first` is faster at all sizes.
    """
    pairs = [
        (math.log(a["tokens"]), math.log(b["seconds"] / a["seconds"]))
        for a, b in zip(first, second, strict=True)
        if a["seconds"] and b["seconds"]
    ]
    if not pairs or pairs[-1][1] <= 0:
        return None
    for (n1, gain1), (n2, gain2) in reversed(list(itertools.pairwise(pairs))):
        if gain1 <= 0:
            return math.exp(n1 + (n2 - n1) * -gain1 / (gain2 - gain1))
    return 0.0


def rows_of(record: dict[str, Any], part: str, mode: str) -> list[dict[str, Any]]:
    return [row for row in record["rows"] if row["part"] == part and row["mode"] == mode]


def crossover_of(record: dict[str, Any], mode: str) -> float | None:
    """Tokens from which the GSPN module is faster than attention, measured or extrapolated; see `crossover`."""
    gspn, attention = (rows_of(record, part, mode) for part in ("gspn", "attention"))
    if sum(row["seconds"] is not None for row in attention) < 2:
        return None
    attention = [
        row | {"seconds": row["seconds"] or extrapolated(attention, row["tokens"])} for row in attention
    ]
    return crossover(gspn, attention)
