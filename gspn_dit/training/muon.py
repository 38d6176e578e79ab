"""Muon for a network's matrices and AdamW for the rest, as one optimiser."""

from typing import Any

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW, which step with the groups and the state of this one.

    Muon's step is the momentum with its singular values brought near 1 (K. Jordan, "Muon", 2024), times
    0.2 sqrt(larger side), so that its entries are as large as AdamW's (arXiv 2502.16982, section 2.2): rate and decay
    of the one suit the other.
    """

    def __init__(
        self, matrices: list[nn.Parameter], others: list[dict[str, Any]], *, share: float, **settings: Any
    ) -> None:
        """`share`: rate of the matrices, of that of `others`, groups of parameters; `settings` are AdamW's."""
        rate, decay = settings["lr"], settings["weight_decay"]
        self.muon = torch.optim.Muon(
            matrices, lr=rate * share, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(others, **settings)
        self.muon.param_groups[0]["share"] = share
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._hand_over()

    def _hand_over(self) -> None:
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._hand_over()

    def step(self, closure: None = None) -> None:
        self.muon.step()
        self.adamw.step()
