"""Training speed of the mixer study's networks on this machine, side by side, at equal parameters.

    python benchmarks/bench_training.py

A step of each network in turn (forward, backward, AdamW), again and again in one process, as the study trains: float32,
batches of 32 images, 16x16 tokens. Ratios are medians over the rounds, of DiT's time to the network's: above 1 is
faster than DiT. Writes benchmarks/results/training_cpu.json.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.paired import at_least
from experiments.mixers_plan import DESIGNS, FINALS, PLAIN, STUDIES, Design, make_run, parameters, pixels
from gspn_dit.diffusion import create_diffusion
from gspn_dit.models.networks import create_model
from gspn_dit.models.settings import resolve_settings
from gspn_dit.processes import progress_bar

RESULTS = Path(__file__).parent / "results"
STUDY = STUDIES["cpu"]
BASE = "dit"
NETWORKS = (*FINALS, DESIGNS[PLAIN], DESIGNS["inverted-bottleneck"])


class Trained:
    """A network of the study with its optimiser."""

    def __init__(self, design: Design, patch: int, batch: int) -> None:
        run = make_run(design, STUDY, 0, "speed", patch, STUDY.screening_images)
        settings = run.settings["config"]["model"] | pixels(STUDY.size)
        self.parameters = parameters(resolve_settings(**settings))
        torch.manual_seed(0)
        self.model = create_model(**settings)
        self.diffusion = create_diffusion("flow")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.x, self.noise = torch.randn(2, batch, 3, STUDY.size, STUDY.size)
        self.t, self.y = torch.rand(batch), torch.randint(0, 10, (batch,))

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        losses = self.diffusion.losses(self.model, self.x, self.t, self.y, self.noise)
        losses["loss"].mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def measure(patch: int, batch: int, rounds: int) -> list[dict]:
    """A row for each network on the grid that a patch size makes."""
    networks = {design.name: Trained(design, patch, batch) for design in NETWORKS}
    lines = STUDY.size // patch
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for round in progress_bar(iterable=range(rounds + 2), desc=f"{lines} x {lines} tokens", unit="round"):
        for name, network in networks.items():
            taken = network.step()
            if round >= 2:  # the first rounds touch the allocator's pages
                seconds[name].append(taken)
    labels = {design.name: design.label for design in NETWORKS}
    return [
        {
            "lines": lines,
            "network": name,
            "label": labels[name].replace("*", ""),
            "parameters": networks[name].parameters,
            "images_per_second": round_to(batch / statistics.median(times)),
            "over_dit": round_to(
                statistics.median(base / mine for base, mine in zip(seconds[BASE], times, strict=True))
            ),
        }
        for name, times in seconds.items()
    ]


def round_to(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=30, help="steps of each network (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=at_least(1), default=1, help="the study trains with one (default: 1)"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "training_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for patch in STUDY.grids:
        rows += measure(patch, STUDY.batch_size, arguments.rounds)
    print(f"{'network':<50}{'tokens':>8}{'parameters':>12}{'images/s':>10}{'over DiT':>10}")
    for row in rows:
        print(
            f"{row['label']:<50}{row['lines'] ** 2:>8}{row['parameters']:>12,}{row['images_per_second']:>10.1f}"
            f"{row['over_dit']:>10.2f}"
        )
    report = {
        "date": datetime.date.today().isoformat(),
        "device": "cpu",
        "dtype": "float32",
        "torch": torch.__version__,
        "threads": arguments.threads,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "batch": STUDY.batch_size,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
