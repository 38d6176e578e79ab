"""Classifier-free guidance: a network and labels as the `predict` that samplers call."""

from collections.abc import Callable

import torch
from torch import nn

from gspn_dit.checks import check_labels

Predict = Callable[[torch.Tensor, float], torch.Tensor]
"""predict(x (B, C, H, W), t): the raw prediction for one time t of the whole batch."""


def check_guidance(scale: float, interval: tuple[float, float] | None) -> None:
    """Raise ValueError for a guidance that cannot be: a scale below 1, an interval that ends before it begins."""
    if not 1 <= scale < float("inf"):
        raise ValueError(f"cfg_scale is {scale!r}; expected 1 (no guidance) or more")
    if interval is not None:
        low, high = interval
        if not low <= high:
            raise ValueError(f"cfg_interval is {(low, high)}; expected (t_low, t_high) with t_low <= t_high")


def guided(
    model: nn.Module, y: torch.Tensor, scale: float, interval: tuple[float, float] | None = None
) -> Predict:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6) within an interval of t (arXiv 2404.07724).

    All latent channels are guided: null + scale (class - null). A learned variance is taken from the class
    alone. One model call on the doubled batch, or on the batch itself where nothing is guided. Raises ValueError
    for labels that the model does not have, or a scale or interval that `check_guidance` refuses.
    """
    check_labels(y, model.num_classes)
    check_guidance(scale, interval)
    null = torch.full_like(y, model.num_classes)

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        times = x.new_full((len(x),), t)
        if scale == 1 or (interval is not None and not interval[0] <= t <= interval[1]):
            return model(x, times, y).float()
        out = model(torch.cat([x, x]), torch.cat([times, times]), torch.cat([y, null])).float()
        conditional, unconditional = out.chunk(2)
        channels = x.shape[1]
        conditional[:, :channels] = torch.lerp(unconditional[:, :channels], conditional[:, :channels], scale)
        return conditional

    return predict
