"""Networks small enough for a test, away from their start, and what they are given."""

import torch

from gspn_dit.models import create_model

TINY = {"input_size": 16, "in_channels": 3, "num_classes": 5, "width": 32, "depth": 2}


def moved(module, scale=0.1):
    """A module away from its initial state, where zeros would hide what follows them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def model(name="GSPN-DiT-S/4", **overrides):
    torch.manual_seed(0)
    return create_model(name, **{**TINY, **overrides})


def double(module):
    return moved(module).double()


def tokens(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def images():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([3.0, 700.0]), torch.tensor([0, 5])
