"""Latent diffusion with the GSPN line scan in place of attention (arXiv 2501.12381)."""

import importlib

_PLACES = {"create_model": "gspn_dit.models", "GSPNDiTPipeline": "gspn_dit.sampling.pipeline"}
__all__ = ["GSPNDiTPipeline", "create_model"]


def __getattr__(name: str):
    # Loaded on first use: `--help` and a rejected argument answer without waiting for torch.
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
