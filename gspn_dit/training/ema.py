"""The exponential moving average of the weights, from which samples are drawn."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def decay_at(step: int, decay: float) -> float:
    """Decay of the update that follows `step` others; early on it is small, to forget the start."""
    return min(decay, (1 + step) / (10 + step))


class EMA:
    """Float32 average of a model's parameters; of a sharded model, each process averages its own shards."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average = [parameter.clone() for parameter in self.parameters()]

    def parameters(self) -> list[torch.Tensor]:
        """The local tensors behind the model's parameters, without their graph."""
        parameters = (parameter.detach() for parameter in self.model.parameters())
        return [p.to_local() if isinstance(p, DTensor) else p for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights, in one multi-tensor call."""
        torch._foreach_lerp_(self.average, self.parameters(), 1 - decay_at(step, self.decay))

    @torch.no_grad()
    def copy_from_model(self) -> None:
        """Make the average equal to the weights."""
        torch._foreach_copy_(self.average, self.parameters())

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the context the model holds the average; afterwards its own weights again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a forward without a backward leaves its gathered weights in place
        parameters = self.parameters()
        held = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, self.average)
        self.average = held
