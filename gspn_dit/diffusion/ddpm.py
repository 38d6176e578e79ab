"""Denoising diffusion with learned variance (arXiv 2006.11239, arXiv 2102.09672).

Notation of the papers: beta_t the schedule, alpha_bar_t the product of 1 - beta up to t, and
q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t).
"""

import math

import torch
from torch import nn

from gspn_dit.checks import check_noising, visible
from gspn_dit.diffusion.auxiliary import Terms, check_weight, supervised

STEPS = 1000
# Half the width of the bins in which an image of 256 levels on [-1, 1] is coded.
HALF_BIN = 1 / 255


class Schedule:
    """The constants of a diffusion process with the given betas, as float64 tables (T,) on the CPU."""

    def __init__(self, betas: torch.Tensor) -> None:
        alpha_bar = (1 - betas).cumprod(0)
        previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        self.betas = betas
        self.signal = alpha_bar.sqrt()
        self.noise = (1 - alpha_bar).sqrt()
        # q(x_{t-1} | x_t, x_0) = N(mean_x0 x_0 + mean_xt x_t, variance): arXiv 2006.11239, eq. 6-7
        self.mean_x0 = betas * previous.sqrt() / (1 - alpha_bar)
        self.mean_xt = (1 - betas).sqrt() * (1 - previous) / (1 - alpha_bar)
        variance = betas * (1 - previous) / (1 - alpha_bar)
        # The variance is 0 at t = 0; the next one stands for it in the logarithm (arXiv 2102.09672).
        self.log_variance = torch.cat([variance[1:2] if len(betas) > 1 else betas, variance[1:]]).log()
        self.log_betas = betas.log()

    def log_sigma2(self, fraction: torch.Tensor, t: int) -> torch.Tensor:
        """Log-variance of the reverse step t from the model's output: arXiv 2102.09672, eq. 15."""
        return interpolate(fraction, float(self.log_betas[t]), float(self.log_variance[t]))


class DDPM:
    """1000 steps, linear schedule, learned variance, hybrid loss: the setting of the published numbers."""

    SETTINGS = ("auxiliary_weight",)
    objective = "ddpm"
    learn_sigma = True
    contrast = None  # a term of flow's loss

    def __init__(self, auxiliary_weight: float = 0.0) -> None:
        """`auxiliary_weight`: that of the auxiliary head's loss, 0 for none; ValueError if it cannot be."""
        check_weight("auxiliary_weight", auxiliary_weight)
        self.auxiliary_weight = auxiliary_weight
        self.schedule = Schedule(torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64))
        self._tables: dict[torch.device, torch.Tensor] = {}

    def times(self, u: torch.Tensor) -> torch.Tensor:
        """Map uniform numbers u (B,) in [0, 1) to time steps 0..999, whole numbers (B,) in float32."""
        return (u.double() * STEPS).floor().clamp(max=STEPS - 1).float()

    def losses(
        self, model: nn.Module, x0: torch.Tensor, t: torch.Tensor, y: torch.Tensor, noise: torch.Tensor
    ) -> Terms:
        """Hybrid loss of each image: arXiv 2102.09672, eq. 16, L_simple + 0.001 L_vlb.

        L_vlb sums T terms of which t draws one: that term (`vb`, in bits per dimension) counts T times, its
        weight is 0.001 T = 1. Through it only the variance learns: the predicted noise is detached.

        Args:
            model: called as model(x_t, t, y) -> (B, 2C, H, W); with an `auxiliary_weight` with auxiliary=True, for
                the predictions of the last layer and of the auxiliary head.
            x0, noise: (B, C, H, W) float32; noise is standard normal.
            t: (B,) float32 from `times`; y: (B,) int64 labels.

        Returns:
            "loss", "mse", "vb": (B,) float32; "auxiliary" too, the head's loss, where it has a weight.

        Raises:
            ValueError: x0, noise or t of shapes that do not belong together, or (on a CPU) a step beyond the schedule.
        """
        check_noising(x0, t, noise)
        values = visible(t)
        if values is not None and values.size and not (values.min() >= 0 and values.max() <= STEPS - 1):
            raise ValueError(
                f"t holds {values.min():g} to {values.max():g}; expected time steps 0 to {STEPS - 1}"
            )
        c = self._coefficients(x0.device)[t.long()].view(-1, 5, 1, 1, 1).unbind(1)
        signal, sigma, log_beta, log_variance, mean_weight = c
        x_t = signal * x0 + sigma * noise
        at_zero = (t == 0).view(-1, 1, 1, 1)

        def terms(prediction: torch.Tensor) -> Terms:
            predicted, fraction = prediction.chunk(2, dim=1)
            mse = (predicted - noise).square().mean(dim=(1, 2, 3))
            # x_0 and the mean of q differ from the model's by the error of its noise, scaled: no need of x_0.
            error = predicted.detach() - noise
            log_sigma2 = interpolate(fraction, log_beta, log_variance)
            kl = gaussian_kl(mean_weight * sigma / signal * error, log_variance, log_sigma2)
            nll = bin_nll(sigma / signal * error, log_sigma2)
            vb = torch.where(at_zero, nll, kl).mean(dim=(1, 2, 3)) / math.log(2)
            return {"loss": mse + vb * (STEPS / 1000), "mse": mse, "vb": vb}

        return supervised(model, x_t, t, y, self.auxiliary_weight, terms)

    def estimate(self, x: torch.Tensor, t: float, prediction: torch.Tensor) -> torch.Tensor:
        """x_0 (B, C, H, W) by a prediction (B, 2C, H, W) at x_t: arXiv 2006.11239, eq. 15."""
        eps, step = prediction[:, : x.shape[1]], int(t)
        return (x - float(self.schedule.noise[step]) * eps) / float(self.schedule.signal[step])

    def interval(self, low: float, high: float) -> tuple[float, float]:
        """The first and the last step at which noise / signal is in (low, high]."""
        ratio = self.schedule.noise / self.schedule.signal
        inside = ((ratio > low) & (ratio <= high)).nonzero()
        return float(inside[0]), float(inside[-1])

    def _coefficients(self, device: torch.device) -> torch.Tensor:
        if device not in self._tables:
            s = self.schedule
            columns = (s.signal, s.noise, s.log_betas, s.log_variance, s.mean_x0)
            self._tables[device] = torch.stack(columns, dim=1).float().to(device)  # (T, 5)
        return self._tables[device]


def interpolate(
    fraction: torch.Tensor, upper: torch.Tensor | float, lower: torch.Tensor | float
) -> torch.Tensor:
    """Between `lower` (at -1) and `upper` (at 1), linear in `fraction`."""
    return 0.5 * ((1 + fraction) * upper + (1 - fraction) * lower)


def gaussian_kl(difference: torch.Tensor, log_var_1: torch.Tensor, log_var_2: torch.Tensor) -> torch.Tensor:
    """KL(N(m, var_1) || N(m + difference, var_2)), elementwise, in nats."""
    spread = torch.expm1(log_var_1 - log_var_2) - (log_var_1 - log_var_2)
    return 0.5 * (spread + difference.square() * torch.exp(-log_var_2))


def bin_nll(difference: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
    """-log of the mass that N(difference, var) puts on the bin around zero: the decoder term, in nats.

    arXiv 2006.11239, eq. 13, with the bins at the ends as wide as the others: latents have no ends.
    """
    scale = torch.exp(-0.5 * log_var)
    centre = difference.abs()
    upper, lower = (-centre + HALF_BIN) * scale, (-centre - HALF_BIN) * scale
    # The bin is mirrored to the left tail, where log_ndtr keeps its precision however small the mass is.
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return -log_upper - torch.log(-torch.expm1(log_lower - log_upper))
