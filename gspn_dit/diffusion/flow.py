"""Flow matching on the linear path (arXiv 2210.02747, arXiv 2209.03003): x_t = (1 - t) x_0 + t noise."""

import torch
from torch import nn

from gspn_dit.checks import check_noising

TIME_DISTRIBUTIONS = ("uniform", "logit_normal")


class Flow:
    """The model predicts the path's velocity, noise - x_0; t = 0 is data and t = 1 is noise."""

    SETTINGS = ("time_distribution", "time_mean", "time_std")
    objective = "flow"
    learn_sigma = False

    def __init__(
        self, time_distribution: str = "uniform", time_mean: float = 0.0, time_std: float = 1.0
    ) -> None:
        """`time_mean` and `time_std`: those of logit(t) in "logit_normal" (arXiv 2403.03206, section 3)."""
        if time_distribution not in TIME_DISTRIBUTIONS:
            raise ValueError(
                f"time_distribution is {time_distribution!r}; expected one of {', '.join(TIME_DISTRIBUTIONS)}"
            )
        if not time_std > 0:
            raise ValueError(f"time_std is {time_std!r}; expected a number above 0")
        self.time_distribution, self.time_mean, self.time_std = time_distribution, time_mean, time_std

    def times(self, u: torch.Tensor) -> torch.Tensor:
        """Map uniform numbers u (B,) in [0, 1) to training times (B,) float32 in [0, 1]."""
        u = u.double()
        if self.time_distribution == "logit_normal":
            u = torch.sigmoid(self.time_mean + self.time_std * torch.special.ndtri(u))
        return u.float()

    def losses(
        self, model: nn.Module, x0: torch.Tensor, t: torch.Tensor, y: torch.Tensor, noise: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Squared error of the velocity of each image: arXiv 2210.02747, eq. 14.

        Args:
            model: called as model(x_t, t, y) -> (B, C, H, W).
            x0, noise: (B, C, H, W) float32; noise is standard normal.
            t: (B,) float32 from `times`; y: (B,) int64 labels.

        Returns:
            "loss" and "mse", the same here: (B,) float32.

        Raises:
            ValueError: x0, noise or t of shapes that do not belong together.
        """
        check_noising(x0, t, noise)
        x_t = torch.lerp(x0, noise, t.view(-1, 1, 1, 1))
        velocity = model(x_t, t, y).float()
        mse = (velocity - (noise - x0)).square().mean(dim=(1, 2, 3))
        return {"loss": mse, "mse": mse}
