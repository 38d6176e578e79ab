"""Text-to-image UNets of diffusers with the line scan in place of self-attention (arXiv 2501.12381)."""

import importlib

_PLACES = {"replace_self_attention": "replacement", "GSPNUNet2DConditionModel": "replacement"}
__all__ = ["GSPNUNet2DConditionModel", "replace_self_attention"]


def __getattr__(name: str):
    # Loaded on first use: `--help` and a rejected argument answer without waiting for torch and diffusers.
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
