"""The Stability-Context Condition without training: products of line matrices, h, gradients and reach.

Up to 512 lines, float64. The weights come from random logits of several standard deviations (0: an even
spread), and for "row sums" row-stochastic weights times a factor, given as they are.
"""

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.train_run import environment, is_measured, write_json
from ops import gspn_scan
from ops.reference import normalize

SETTINGS = {
    "cpu": {"positions": 192, "lines": [8, 16, 32, 64, 128, 256, 512], "seeds": [0, 1, 2]},
    "mini": {"positions": 16, "lines": [4, 8], "seeds": [0, 1]},
}
SETTINGS["gpu"] = SETTINGS["cpu"]
CASES = (
    ("row_stochastic", 0.0, 1.0),
    ("row_stochastic", 1.0, 1.0),
    ("row_stochastic", 4.0, 1.0),
    ("sigmoid", 0.0, 1.0),
    ("sigmoid", 1.0, 1.0),
    ("sigmoid", 4.0, 1.0),
    *(("none", 1.0, row_sum) for row_sum in (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)),
)
"""Normalisation, standard deviation of the logits, sum of a row (for "none" alone)."""


def run(scale: str, path: Path) -> None:
    """Compute, unless the result is there; some seconds to a minute."""
    settings = SETTINGS[scale]
    if is_measured(path, settings):
        return
    rows = []
    for normalization, spread, row_sum in tqdm(CASES, desc="line matrices", unit="case"):
        for seed in settings["seeds"]:
            weights = line_weights(normalization, spread, row_sum, seed, settings)
            case = {"normalization": normalization, "logit_std": spread, "row_sum": row_sum, "seed": seed}
            rows += [case | row for row in follow(weights, settings["lines"])]
    write_json(path, {"settings": settings, "dtype": "float64", "rows": rows, **environment()})


def line_weights(
    normalization: str, spread: float, row_sum: float, seed: int, settings: dict[str, Any]
) -> torch.Tensor:
    """Weights (T, N, 3) float64 that lead from each line to the next."""
    rng = torch.Generator().manual_seed(seed)
    shape = (max(settings["lines"]), settings["positions"], 3, 1)
    logits = spread * torch.randn(shape, generator=rng, dtype=torch.float64)
    stochastic = "row_stochastic" if normalization == "none" else normalization
    return row_sum * normalize(logits, stochastic).squeeze(-1)


def follow(weights: torch.Tensor, lines: list[int]) -> list[dict[str, float]]:
    """A row of norms and reach for each number of lines crossed."""
    positions = weights.shape[1]
    states, gradients = scan_norms(weights)
    product = torch.eye(positions, dtype=weights.dtype)
    rows = []
    for t in range(1, max(lines) + 1):
        product = cross(weights[t - 1], product)
        if t in lines:
            rows.append(
                {
                    "lines": t,
                    "max_norm": float(torch.linalg.matrix_norm(product, torch.inf)),
                    "one_norm": float(torch.linalg.matrix_norm(product, 1)),
                    "spectral_norm": float(torch.linalg.matrix_norm(product, 2)),
                    "h": states[t - 1],
                    "gradient": gradients[t - 1],
                    **reach(product[:, positions // 2], "impulse"),
                    **reach(product[positions // 2], "view"),
                }
            )
    return rows


def cross(weights: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """One line matrix, weights (N, 3), times columns (N, M)."""
    padded = torch.nn.functional.pad(columns, (0, 0, 1, 1))  # (N + 2, M): position n sits at n + 1
    return sum(weights[:, d : d + 1] * padded[d : d + len(columns)] for d in range(3))


def reach(weights: torch.Tensor, name: str) -> dict[str, float]:
    """How far (N,) non-negative weights are spread: standard deviation, and width at 1 % of the peak.

    "impulse": a column of the product, what becomes of a unit impulse; "view": a row, what an output is made of.
    """
    places = torch.arange(len(weights), dtype=weights.dtype)
    share = weights / weights.sum()
    mean = (share * places).sum()
    deviation = (share * (places - mean).square()).sum().sqrt()
    return {
        f"{name}_std": float(deviation),
        f"{name}_width": int((weights >= 0.01 * weights.max()).sum()),
    }


def scan_norms(weights: torch.Tensor) -> tuple[list[float], list[float]]:
    """Max-norm of h after t lines of noise, and 1-norm of the gradient that t lines take back, by the compiled scan.

    x is uniform in [-1, 1] with lam = 1; the gradient starts as an even one of 1-norm 1 on the last line.
    """
    total, positions = weights.shape[:2]
    rng = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(1, total + 1, positions, 1, generator=rng, dtype=weights.dtype) - 1
    x.requires_grad_()
    first = torch.zeros_like(weights[:1])  # the first line has no line before it
    logits = torch.cat([first, weights]).reshape(1, total + 1, positions, 1, 3, 1)
    lam = torch.ones(1, total + 1, positions, 1, 1, dtype=weights.dtype)
    h = gspn_scan(x, lam, logits, directions=("down",), normalization="none")
    (gradient,) = torch.autograd.grad(h[0, -1].sum() / positions, x)
    states = h.detach()[0, :, :, 0, 0].abs().amax(1)  # (T + 1,)
    taken_back = gradient[0, :, :, 0].abs().sum(1).flip(0)  # (T + 1,): after 0, 1, ... lines
    return states[1:].tolist(), taken_back[1:].tolist()
