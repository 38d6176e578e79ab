"""Diffusion objectives and samplers: `ddpm` (learned variance) and `flow` (velocity on a linear path)."""

from gspn_dit.diffusion.ddpm import DDPM
from gspn_dit.diffusion.flow import Flow
from gspn_dit.diffusion.samplers import (
    SAMPLERS,
    NoiseSource,
    check_sampling,
    default_sampler,
    keyed_noise,
    sample,
)

Diffusion = DDPM | Flow

_OBJECTIVES = {"ddpm": DDPM, "flow": Flow}

__all__ = [
    "DDPM",
    "SAMPLERS",
    "Diffusion",
    "Flow",
    "NoiseSource",
    "check_sampling",
    "create_diffusion",
    "default_sampler",
    "keyed_noise",
    "sample",
]


def create_diffusion(objective: str, **settings) -> Diffusion:
    """The objective of this name, "ddpm" or "flow", with its settings; ValueError if either is unknown."""
    if objective not in _OBJECTIVES:
        raise ValueError(f"diffusion objective is {objective!r}; expected one of {', '.join(_OBJECTIVES)}")
    known = _OBJECTIVES[objective].SETTINGS
    for key in settings:
        if key not in known:
            expected = ", ".join(known) or "none"
            raise ValueError(f"diffusion setting {key!r} is unknown to {objective}; expected {expected}")
    return _OBJECTIVES[objective](**settings)
