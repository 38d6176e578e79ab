"""Published DiT and SiT weights as a release: what sample.py, eval_fid.py and train.init_from take.

    python -m gspn_dit.convert SOURCE FOLDER

The network is the same function, to within the rounding of float32; see `layouts` for the names, `stream` for what
changes in the weights, and `release` for what stands beside them.
"""

import importlib

__all__ = ["convert"]


def __getattr__(name: str):
    # Loaded on first use: the command line answers --help and a bad argument without waiting for torch.
    if name == "convert":
        return importlib.import_module(f"{__name__}.release").convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
