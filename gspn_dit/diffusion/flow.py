"""Flow matching on the linear path (arXiv 2210.02747, arXiv 2209.03003): x_t = (1 - t) x_0 + t noise."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from gspn_dit.checks import check_images, check_noising
from gspn_dit.diffusion.auxiliary import Terms, check_weight, supervised

TIME_DISTRIBUTIONS = ("uniform", "logit_normal")
SHORTEST = 0.01
"""Shorter vectors count as this long in a cosine: a fresh network predicts zero, where its gradient has no bound."""


class Flow:
    """The model predicts the path's velocity, noise - x_0; t = 0 is data and t = 1 is noise."""

    SETTINGS = (
        *("time_distribution", "time_mean", "time_std"),
        *("cosine_weight", "contrastive_weight", "auxiliary_weight"),
    )
    objective = "flow"
    learn_sigma = False

    def __init__(
        self,
        time_distribution: str = "uniform",
        time_mean: float = 0.0,
        time_std: float = 1.0,
        cosine_weight: float = 0.0,
        contrastive_weight: float = 0.0,
        auxiliary_weight: float = 0.0,
    ) -> None:
        """`time_mean` and `time_std`: those of logit(t) in "logit_normal" (arXiv 2403.03206, section 3).

        The weights are those of terms of the loss, 0 for none: see `losses`. With an `auxiliary_weight` the model
        must have an auxiliary head. Raises ValueError for a setting that cannot be.
        """
        if time_distribution not in TIME_DISTRIBUTIONS:
            raise ValueError(
                f"time_distribution is {time_distribution!r}; expected one of {', '.join(TIME_DISTRIBUTIONS)}"
            )
        if not math.isfinite(time_mean):
            raise ValueError(f"time_mean is {time_mean!r}; expected a finite number")
        if not 0 < time_std < math.inf:
            raise ValueError(f"time_std is {time_std!r}; expected a number above 0")
        check_weight("cosine_weight", cosine_weight)
        check_weight("contrastive_weight", contrastive_weight, below=1)  # of 1 the loss has no minimum
        check_weight("auxiliary_weight", auxiliary_weight)
        self.time_distribution, self.time_mean, self.time_std = time_distribution, time_mean, time_std
        self.cosine_weight, self.contrastive_weight = cosine_weight, contrastive_weight
        self.auxiliary_weight = auxiliary_weight

    @property
    def contrast(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """The velocity of other images from their x_0 and noise, where `losses` asks for it."""
        return velocity if self.contrastive_weight else None

    def times(self, u: torch.Tensor) -> torch.Tensor:
        """Map uniform numbers u (B,) in [0, 1) to training times (B,) float32 in [0, 1]."""
        u = u.double()
        if self.time_distribution == "logit_normal":
            u = torch.sigmoid(self.time_mean + self.time_std * torch.special.ndtri(u))
        return u.float()

    def losses(
        self,
        model: nn.Module,
        x0: torch.Tensor,
        t: torch.Tensor,
        y: torch.Tensor,
        noise: torch.Tensor,
        contrast: torch.Tensor | None = None,
    ) -> Terms:
        """Squared error of the velocity of each image (arXiv 2210.02747, eq. 14), and what the weights add to it.

        For a predicted velocity u and the true one v, means over channels and places:

            mse          |u - v|^2
            cosine       1 - cos(u, v), the angle between vectors over the channels of a place, its mean over the
                         places (LightningDiT, arXiv 2501.01423, with weight 1). Of one channel it is a sign,
                         without a gradient.
            contrastive  |u - w|^2, w the velocity of another image of the batch (arXiv 2506.05350, with
                         weight 0.05): its weight is subtracted. The best u is then (v - weight w) / (1 - weight) in
                         the mean, and the plain error of a trained network is above that of one without the term.
            auxiliary    the sum of the above for the auxiliary head (arXiv 2512.24176, with weight 0.5).

        Args:
            model: called as model(x_t, t, y) -> (B, C, H, W); with an `auxiliary_weight` with auxiliary=True, for
                the predictions of the last layer and of the auxiliary head.
            x0, noise: (B, C, H, W) float32; noise is standard normal.
            t: (B,) float32 from `times`; y: (B,) int64 labels.
            contrast: w (B, C, H, W) float32, with a `contrastive_weight`.

        Returns:
            "loss", "mse" (the same without weights), and the terms that have a weight: (B,) float32.

        Raises:
            ValueError: x0, noise, t or contrast of shapes that do not belong together, or no contrast.
        """
        check_noising(x0, t, noise)
        if self.contrastive_weight:
            check_images("contrast", contrast, x0.shape)
        x_t = torch.lerp(x0, noise, t.view(-1, 1, 1, 1))
        target = velocity(x0, noise)

        def terms(predicted: torch.Tensor) -> Terms:
            return self._terms(predicted, target, contrast)

        return supervised(model, x_t, t, y, self.auxiliary_weight, terms)

    def _terms(self, predicted: torch.Tensor, target: torch.Tensor, contrast: torch.Tensor | None) -> Terms:
        mse = loss = squared_error(predicted, target)
        terms = {}
        if self.cosine_weight:
            cosine = F.cosine_similarity(predicted, target, dim=1, eps=SHORTEST)  # (B, H, W)
            terms["cosine"] = (1 - cosine).mean(dim=(1, 2))
            loss = loss + self.cosine_weight * terms["cosine"]
        if self.contrastive_weight:
            terms["contrastive"] = squared_error(predicted, contrast)
            loss = loss - self.contrastive_weight * terms["contrastive"]
        return {"loss": loss, "mse": mse, **terms}

    def estimate(self, x: torch.Tensor, t: float, prediction: torch.Tensor) -> torch.Tensor:
        """x_0 by a prediction at x_t, both (B, C, H, W): where its straight path ends."""
        return x - t * prediction

    def interval(self, low: float, high: float) -> tuple[float, float]:
        """The times t at which noise / signal, t / (1 - t), is between `low` and `high`."""
        return round(low / (1 + low), 6), round(high / (1 + high), 6)


def velocity(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """That of the path from x_0 to noise, both (B, C, H, W): dx_t / dt."""
    return noise - x0


def squared_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of (B, C, H, W), the mean of each image (B,)."""
    return (a - b).square().mean(dim=(1, 2, 3))
