"""What stands in for a GPU where there is none."""

import torch
from torch.overrides import TorchFunctionMode


class OnTheCPU(TorchFunctionMode):
    """What is asked for on "cuda" is made on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)
