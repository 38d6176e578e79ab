"""Guidance: a network and labels as the `predict` that samplers call."""

from collections.abc import Callable

import torch
from torch import nn

from gspn_dit.checks import check_labels

Predict = Callable[[torch.Tensor, float], torch.Tensor]
"""predict(x (B, C, H, W), t): the raw prediction for one time t of the whole batch."""


def check_guidance(
    scale: float,
    interval: tuple[float, float] | None,
    internal: float = 1.0,
    guide_scale: float | None = None,
) -> None:
    """Raise ValueError for a guidance that cannot be.

    That is a scale below 1 or beyond float32, an interval that ends before it begins, and other guidance beside that
    of a guide, whose `guide_scale` is None where there is none.
    """
    scales = {"cfg_scale": scale, "internal_guidance": internal}
    for name, value in (scales | ({} if guide_scale is None else {"guide_scale": guide_scale})).items():
        if not 1 <= value <= 3e38:  # float32, in which pictures are made, ends soon after
            raise ValueError(f"{name} is {value!r}; expected 1 (no guidance) or more")
    if interval is not None:
        low, high = interval
        if not low <= high:
            raise ValueError(f"cfg_interval is {(low, high)}; expected (t_low, t_high) with t_low <= t_high")
    if guide_scale is None:
        return
    for name, value, none in (*((*item, 1) for item in scales.items()), ("cfg_interval", interval, None)):
        if value != none:
            raise ValueError(
                f"{name} is {value!r}; expected {none} with a guide, which guides alone, for every t, by guide_scale"
            )


def guided(
    model: nn.Module,
    y: torch.Tensor,
    scale: float,
    interval: tuple[float, float] | None = None,
    *,
    internal: float = 1.0,
    guide: nn.Module | None = None,
    guide_scale: float | None = None,
) -> Predict:
    """The predictions of a model for the classes y, guided.

    Classifier-free guidance (arXiv 2207.12598, eq. 6) within an interval of t (arXiv 2404.07724): null + scale
    (class - null), in one model call on the doubled batch, or on the batch itself where nothing is guided.
    Internal guidance (arXiv 2512.24176), in the same call: early + internal (last - early), early being what the
    auxiliary head predicts, for the class and for null, before these are put together.
    Autoguidance (arXiv 2406.02507), of a `guide`, a worse model of the same data: guide + guide_scale (model - guide).

    All latent channels are guided; a learned variance is taken from the model's last layer, for the class alone.
    Raises ValueError for labels that the model does not have, what `check_guidance` refuses, and a model without
    the auxiliary head that internal guidance takes.
    """
    check_labels(y, model.num_classes)
    check_guidance(scale, interval, internal, guide_scale)
    if (guide is None) != (guide_scale is None):
        given, missing = ("guide_scale", "guide") if guide is None else ("guide", "guide_scale")
        raise ValueError(f"{missing} is None; expected one with {given}: they belong together")
    if internal != 1 and getattr(model, "auxiliary", None) is None:
        raise ValueError(
            f"internal_guidance is {internal!r}; expected 1 (none): the model has no auxiliary head"
        )
    null = torch.full_like(y, model.num_classes)

    def denoise(x: torch.Tensor, t: float, labels: torch.Tensor) -> torch.Tensor:
        times = x.new_full((len(x),), t)
        if internal == 1:
            return model(x, times, labels).float()
        last, early = model(x, times, labels, auxiliary=True)
        return away_from(early.float(), last.float(), internal, x.shape[1])

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        if guide is not None:
            weak = guide(x, x.new_full((len(x),), t), y).float()
            return away_from(weak, denoise(x, t, y), guide_scale, x.shape[1])
        if scale == 1 or (interval is not None and not interval[0] <= t <= interval[1]):
            return denoise(x, t, y)
        out = denoise(torch.cat([x, x]), t, torch.cat([y, null]))
        conditional, unconditional = out.chunk(2)
        return away_from(unconditional, conditional, scale, x.shape[1])

    return predict


def away_from(weak: torch.Tensor, strong: torch.Tensor, scale: float, channels: int) -> torch.Tensor:
    """weak + scale (strong - weak) in the first channels (in place, in `strong`), `strong` in the others."""
    strong[:, :channels] = torch.lerp(weak[:, :channels], strong[:, :channels], scale)
    return strong
