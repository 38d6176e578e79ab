"""Deep supervision: the loss of a network's auxiliary head beside that of its last layer (arXiv 2512.24176)."""

from collections.abc import Callable

import torch
from torch import nn

Terms = dict[str, torch.Tensor]


def check_weight(name: str, weight: float, below: float = float("inf")) -> None:
    """Raise ValueError unless the weight of a term of the loss is 0 (none) or more, and below a limit."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < below:
        limit = "a finite number" if below == float("inf") else f"a number below {below:g}"
        raise ValueError(f"{name} is {weight!r}; expected {limit}, at least 0")


def supervised(
    model: nn.Module,
    x_t: torch.Tensor,
    t: torch.Tensor,
    y: torch.Tensor,
    weight: float,
    terms: Callable[[torch.Tensor], Terms],
) -> Terms:
    """Loss terms of the model's prediction; with a weight, plus weight times the same loss of its auxiliary head.

    `terms` maps a prediction in float32 to terms (B,), "loss" among them. The head's own loss is "auxiliary".
    """
    if not weight:
        return terms(model(x_t, t, y).float())
    last, early = model(x_t, t, y, auxiliary=True)
    losses, auxiliary = terms(last.float()), terms(early.float())["loss"]
    return {**losses, "loss": losses["loss"] + weight * auxiliary, "auxiliary": auxiliary}
