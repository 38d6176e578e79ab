"""Norm and weight initialisation that every part of the models uses."""

import torch
import torch.nn.functional as F
from torch import nn


def normalize(x: torch.Tensor) -> torch.Tensor:
    """LayerNorm over channels, without learned scale and shift; the statistics are float32 in any dtype."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x * (1 + scale) + shift in one pass over x."""
    return torch.addcmul(shift, x, 1 + scale)


def fan_in_normal_(weight: torch.Tensor, gain: float = 1.0) -> None:
    """Normal weights that keep the variance of a unit-variance input, times gain^2."""
    nn.init.normal_(weight, std=gain * weight[0].numel() ** -0.5)


def xavier_(linear: nn.Linear) -> None:
    """Xavier-uniform weight and zero bias, as in DiT."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
