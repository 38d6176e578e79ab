"""Latent diffusion with the GSPN line scan in place of attention (arXiv 2501.12381)."""

from gspn_dit import models

__all__ = ["create_model"]


def __getattr__(name: str):
    # Loaded on first use: `--help` and a rejected argument answer without waiting for torch.
    if name in __all__:
        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
