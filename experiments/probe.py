"""Does a token know where it is? Ridge regression from tokens to their row and column, on images never fitted."""

from typing import Any

import torch
from torch import nn

from gspn_dit.data.mnist import load_digits
from gspn_dit.diffusion import create_diffusion
from gspn_dit.models.line_scan import LineScan
from gspn_dit.models.mixers import SelfAttention, create_mixer
from gspn_dit.models.settings import resolve_settings

RIDGE = 1e-3
"""Penalty on the weights, in units of the features' variance (which is one)."""
INPUTS = {"digits": 0.5, "noise": 1.0}
"""Share of the time axis: half-noised digits, whose content also tells of the place; noise, which tells nothing."""


def probe_model(model: nn.Module, objective: str, images: int) -> dict[str, Any]:
    """R^2 of row and column (their mean) from the tokens of a model's middle block.

    Half of `2 * images` held-out digits (one after another of all classes) fit the regression, half judge it.
    Of each kind of input, "linear" is the tokens', "squares" adds their squares.
    """
    x0, y = held_out(2 * images)
    device = next(model.parameters()).device
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(x0.shape, generator=rng)
    return {
        kind: scores(middle_tokens(model, *noised(objective, x0, noise, share), y, device))
        for kind, share in INPUTS.items()
    }


def held_out(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out digits (n, 1, 32, 32) in [-1, 1] and labels (n,), shuffled alike on every call."""
    images, labels = load_digits("heldout")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
    return torch.from_numpy(images)[order].unsqueeze(1).float() / 127.5 - 1, torch.from_numpy(labels)[order]


def noised(objective: str, x0: torch.Tensor, noise: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
    """x_t and its t at a share of the time axis."""
    if objective == "flow":
        return torch.lerp(x0, noise, share), share
    schedule = create_diffusion("ddpm").schedule
    t = round(share * (len(schedule.signal) - 1))
    return float(schedule.signal[t]) * x0 + float(schedule.noise[t]) * noise, float(t)


@torch.no_grad()
def middle_tokens(
    model: nn.Module, x: torch.Tensor, t: float, y: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Output of the block in the middle (n, H, W, C), float64 on the CPU."""
    kept = []
    block = model.blocks[len(model.blocks) // 2 - 1]
    handle = block.register_forward_hook(lambda module, inputs, output: kept.append(output.double().cpu()))
    try:
        for part, labels in zip(x.split(250), y.split(250), strict=True):
            model(part.to(device), torch.full((len(part),), t, device=device), labels.to(device))
    finally:
        handle.remove()
    return torch.cat(kept)


def scores(tokens: torch.Tensor) -> dict[str, float]:
    """R^2 on the second half of the images, of a fit on the first; tokens (n, H, W, C) float64."""
    return {
        "linear": fit_position(tokens),
        "squares": fit_position(torch.cat([tokens, tokens.square()], dim=-1)),
    }


def fit_position(features: torch.Tensor) -> float:
    """Mean of the R^2 of row and of column, ridge regression from features (n, H, W, F) float64."""
    images, height, width, _ = features.shape
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=features.dtype), torch.arange(width, dtype=features.dtype), indexing="ij"
    )
    place = torch.stack([rows - rows.mean(), columns - columns.mean()], dim=-1)  # (H, W, 2)
    half = images // 2
    fitted, judged = features[:half].flatten(0, 2), features[half:].flatten(0, 2)
    mean, std = fitted.mean(0), fitted.std(0) + 1e-12
    fitted, judged = (fitted - mean) / std, (judged - mean) / std
    target = place.expand(half, -1, -1, -1).reshape(-1, 2)
    gram = fitted.T @ fitted / len(fitted) + RIDGE * torch.eye(fitted.shape[1], dtype=fitted.dtype)
    weights = torch.linalg.solve(gram, fitted.T @ target / len(fitted))
    truth = place.expand(images - half, -1, -1, -1).reshape(-1, 2)
    error = (judged @ weights - truth).square().mean(0)
    return float((1 - error / truth.square().mean(0)).mean())


def probe_untrained(images: int, size: int = 8, width: int = 64, draws: int = 3) -> list[dict[str, Any]]:
    """The same of untrained parts on white noise: the scan, the convolutions, attention; a row for each draw."""
    rows = []
    for seed in range(draws):
        torch.manual_seed(seed)
        tokens = torch.randn(2 * images, size, size, width)
        for name, part in untrained_parts(width).items():
            with torch.no_grad():
                out = part(tokens).double()
            rows.append({"part": name, "seed": seed, **scores(out)})
    return rows


def untrained_parts(width: int) -> dict[str, nn.Module]:
    """What surrounds a token in the GSPN module and in DiT, each alone, with its initial weights."""
    settings = resolve_settings("GSPN-DiT-S/4", width=width)
    identity = resolve_settings("GSPN-DiT-S/4", width=width, scan="identity")
    parts = {
        "scan alone": LineScan(settings, 0),
        "module, scan left out": create_mixer(identity, 0),
        "module": create_mixer(settings, 0),
        "attention alone": SelfAttention(width, 1),
    }
    for part in parts.values():
        for module in part.modules():
            if hasattr(module, "initialize_weights"):
                module.initialize_weights()
    return parts
