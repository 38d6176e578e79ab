"""Denoising networks: GSPN (arXiv 2501.12381), DiT (arXiv 2212.09748), and DiT with the GSPN module in it."""

import importlib

_PLACES = {
    "networks": ("GSPN", "DiT", "create_model", "from_pretrained"),
    "settings": ("MODEL_NAMES", "ModelConfig", "ModelSettings"),
}
__all__ = ["GSPN", "MODEL_NAMES", "DiT", "ModelConfig", "ModelSettings", "create_model", "from_pretrained"]


def __getattr__(name: str):
    # Loaded on first use: a config is read, and a bad one rejected, without waiting for torch.
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
