"""Images per second of every variant as a ratio to the base run's, timed side by side in one process.

Training: forward, backward and AdamW's step of a batch; sampling: one forward of a larger batch. One thread on
a CPU, as in the training runs. All variants take turns, each round begins at another, and a ratio is the median
over the rounds.
"""

import statistics
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from experiments.plan import BASE, VARIANTS, Scale, Variant, make_run
from experiments.summary import quartiles
from experiments.train_run import environment, is_measured, write_json
from gspn_dit.models import create_model

ROUNDS = {"cpu": 15, "gpu": 30, "mini": 1}


def run(scale: Scale, path: Path) -> None:
    """Measure, unless the result is there; a minute or two."""
    on_cpu = not torch.cuda.is_available()
    settings = {
        "rounds": ROUNDS[scale.name],
        "batch": scale.train["batch_size"],
        "threads": 1 if on_cpu else None,
    }
    if is_measured(path, settings):
        return
    threads = torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    try:
        rows = measure(scale)
    finally:
        torch.set_num_threads(threads)
    write_json(path, {"settings": settings, "rows": rows, **environment()})


def measure(scale: Scale) -> list[dict]:
    """A row for each variant of the flow objective."""
    contenders = {v.name: Contender(v, scale) for v in VARIANTS if v.objective == "flow"}
    names = list(contenders)
    times = {name: {"training": [], "sampling": []} for name in names}
    for number in tqdm(range(ROUNDS[scale.name] + 1), desc="throughput", unit="round"):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for kind in ("training", "sampling"):
                seconds = contenders[name].seconds(kind)
                if number:  # the first round warms up
                    times[name][kind].append(seconds)
    return [
        {
            "variant": name,
            **{
                kind: summary(times[name][kind], times[BASE][kind], contenders[name].images[kind])
                for kind in times[name]
            },
        }
        for name in names
    ]


def summary(seconds: list[float], base: list[float], images: int) -> dict[str, float]:
    """Images per second, and its ratio to the base's: the median of the rounds' ratios, with their quartiles."""
    ratios = [b / s for s, b in zip(seconds, base, strict=True)]
    low, high = quartiles(ratios)
    return {
        "images_per_second": images / statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
    }


class Contender:
    """A model of a variant with its optimiser and its inputs."""

    def __init__(self, variant: Variant, scale: Scale) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = make_run(variant, scale, 0).settings["config"]["model"]
        torch.manual_seed(0)
        self.model: nn.Module = create_model(
            **model, input_size=32, in_channels=1, num_classes=10, learn_sigma=False
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.images = {
            "training": scale.train["batch_size"],
            "sampling": scale.sampling["flow"]["batch_size"],
        }
        self.bf16 = scale.train.get("precision") == "bf16"

    def seconds(self, kind: str) -> float:
        """Time of one step of training or of sampling."""
        count = self.images[kind]
        x = torch.randn(count, 1, 32, 32, device=self.device)
        t, y = torch.rand(count, device=self.device), torch.randint(10, (count,), device=self.device)
        self.wait()
        start = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if kind == "training":
                self.model(x, t, y).square().mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            else:
                with torch.no_grad():
                    self.model(x, t, y)
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
