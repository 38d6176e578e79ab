"""Classification with the paper's ImageNet backbone (arXiv 2501.12381): network, training and evaluation.

Importing it makes `timm.create_model("gspn_tiny")` work, where timm is installed.
"""

import importlib
import importlib.util

__all__ = ["BACKBONE_NAMES", "Backbone", "create_backbone"]

if importlib.util.find_spec("timm") is not None:
    importlib.import_module(f"{__name__}.timm_models")


def __getattr__(name: str):
    # Loaded on first use: a config is read, and a bad one rejected, without waiting for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "sizes" if name == "BACKBONE_NAMES" else "backbone"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
