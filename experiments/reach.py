"""What one output token sees: the gradient of its prediction by the noisy image, with the scan and without it.

Measured on the run folders of the mixer's study while they are there; the result is kept as JSON.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.mixers_plan import BOLD, Study, final_kind
from experiments.mixers_run import read_held_out
from experiments.plan import Run
from experiments.train_run import environment, is_measured, write_json
from gspn_dit.checkpoint import load_model
from gspn_dit.random import VALIDATION, generator

TIMES = (0.25, 0.75)
"""Noise levels: details are decided at the first, the layout at the second."""
IMAGES = 64
NAMES = {
    "screening": {"scan": BOLD, "no scan": "bold-no-scan", "attention": "bold-attention", "DiT": "dit"},
    "finals": {"scan": "winner", "no scan": "no-scan", "attention": "attention", "DiT": "dit"},
}
"""What the report calls a network -> its design: those of the finals, and before they are there the screening's."""


def token_gradients(model: nn.Module, x: torch.Tensor, t: float, y: torch.Tensor) -> torch.Tensor:
    """Mean absolute gradient of the middle output token by each input token: (rows, columns), of sum 1.

    Args:
        model: predicts (B, C, H, W) from x (B, C, H, W), a time t and labels y (B,).
    """
    patch = model.settings.patch_size
    rows, columns = (length // patch for length in x.shape[2:])
    top, left = rows // 2 * patch, columns // 2 * patch
    x = x.clone().requires_grad_()
    token = model(x, torch.full((len(x),), t), y)[..., top : top + patch, left : left + patch]
    # A direction at random in place of a sum, in which channels of opposite sign would cancel.
    direction = torch.randn(token.shape, generator=generator(VALIDATION, 0, 1))
    (gradient,) = torch.autograd.grad(token, x, direction)
    sums = gradient.abs().sum(1).unflatten(2, (columns, patch)).unflatten(1, (rows, patch)).sum((2, 4))
    return (sums / sums.sum((1, 2), keepdim=True)).mean(0)


def median_distance(gradients: torch.Tensor) -> float:
    """Tokens from the middle within which half of the gradient lies (the larger of both axes' distances)."""
    rows, columns = gradients.shape
    down, right = torch.arange(rows) - rows // 2, torch.arange(columns) - columns // 2
    distance = torch.maximum(down.abs()[:, None], right.abs()[None])
    within = torch.stack([gradients[distance <= d].sum() for d in range(int(distance.max()) + 1)])
    reached = int((within < 0.5).sum())
    before = float(within[reached - 1]) if reached else 0.0
    return reached - 1 + (0.5 - before) / (float(within[reached]) - before)


def chosen_runs(study: Study, runs: list[Run], results: Path) -> dict[str, Run]:
    """The trainings whose networks are compared, all of the finals or all of the screening; none before those."""
    patch = next(iter(study.grids))
    for kind, names in NAMES.items():
        prefix = final_kind(study, patch) if kind == "finals" else kind
        wanted = {label: f"{prefix}-{name}-seed{study.seeds[0]}" for label, name in names.items()}
        found = {label: run for label, name in wanted.items() for run in runs if run.name == name}
        if all(run.result_path(results).exists() for run in found.values()):
            return found
    return {}


def measure(study: Study, runs: list[Run], results: Path, work: Path) -> dict[str, Any] | None:
    """Write results/reach.json where its networks' run folders are there and it is not yet measured."""
    chosen = chosen_runs(study, runs, results)
    path = results / "reach.json"
    settings = {
        "times": list(TIMES),
        "images": IMAGES,
        "runs": {name: run.key for name, run in chosen.items()},
    }
    folders = {name: work / run.folder for name, run in chosen.items()}
    if not chosen or is_measured(path, settings) or not all(map(Path.is_dir, folders.values())):
        return None
    held_out = read_held_out(next(iter(chosen.values())).data, study.size)
    numbers = np.arange(min(IMAGES, len(held_out)))
    x, y = held_out.draw(numbers, numbers, 0)
    noise = torch.randn(x.shape, generator=generator(VALIDATION, 0, 0))
    rows = []
    for name, folder in folders.items():
        model, _, _ = load_model(folder, device="cpu")
        for t in TIMES:
            gradients = token_gradients(model, torch.lerp(x, noise, t), t, y)
            rows.append(
                {
                    "network": name,
                    "t": t,
                    "median_distance": round(median_distance(gradients), 3),
                    "gradients": [[float(f"{value:.3g}") for value in row] for row in gradients.tolist()],
                }
            )
    record = {"settings": settings, "rows": rows, **environment()}
    write_json(path, record)
    return record
