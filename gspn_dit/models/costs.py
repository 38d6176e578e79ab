"""What a model costs: parameters, FLOPs, and the memory of its activations, without a number being computed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import ops.flops  # noqa: F401 (makes the counter know the scan)
from gspn_dit.models.networks import create_model


@dataclass(frozen=True)
class Costs:
    """The costs of one image."""

    parameters: int
    flops: int
    """Of one forward, a multiplication and an addition being two: matrix products, convolutions, attention, scan."""
    scan_flops: int
    """Of these, those of the scan and of its gated merge."""
    activation_bytes: int
    """What autograd keeps of one more image in a batch, under autocast to bf16."""


def model_costs(name: str, **overrides: Any) -> Costs:
    """The costs of a named model; ValueError as `create_model` raises it."""
    with FakeTensorMode():
        model = create_model(name, **overrides)
        # One after the other: the counter's hooks on modules keep the GSPN module from its shorter ways.
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*zeros(model, 1))
        # The difference leaves out what a batch keeps once, such as weights in bf16.
        activations = saved_bytes(model, 2) - saved_bytes(model, 1)
    counts = counter.get_flop_counts()["Global"]
    of_scan = [name for name in map(str, counts) if name.startswith("gspn.") and "conv" not in name]
    scan = sum(count for operator, count in counts.items() if str(operator) in of_scan)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Costs(parameters, sum(counts.values()), scan, activations)


def saved_bytes(model: nn.Module, batch: int) -> int:
    """Bytes that autograd keeps of a forward in training, besides the parameters; a storage counts once."""
    storages: dict[int, int] = {}
    kept = []  # so that no storage is freed and its number given to another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)
        storages[storage._cdata] = storage.nbytes()
        return tensor

    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    with torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(keep, lambda tensor: tensor):
        kept.append(model(*zeros(model, batch)))
    return sum(count for storage, count in storages.items() if storage not in own)


def zeros(model: nn.Module, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a model takes: x (B, C, H, W), t (B,), y (B,)."""
    x = torch.zeros(batch, model.in_channels, model.input_size, model.input_size)
    return x, torch.zeros(batch), torch.zeros(batch, dtype=torch.int64)
