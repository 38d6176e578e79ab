"""Muon and AdamW as one optimiser."""

import copy

import pytest
import torch
from torch import nn

from gspn_dit.training.muon import MuonAdamW
from tests.utils import assert_near

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "fused": True}


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def optimizer_of(network, share=3.0, **settings):
    others = [
        {"params": [network[2].weight]},
        {"params": [network[0].bias, network[2].bias], "weight_decay": 0.0},
    ]
    return MuonAdamW([network[0].weight], others, share=share, **{**SETTINGS, **settings})


def train(network, optimizers, rates, seed=1):
    """Steps at these rates on random data, as gspn_dit/training/loop.py sets them."""
    generator = torch.Generator().manual_seed(seed)
    for rate in rates:
        network(torch.randn(8, 6, generator=generator)).square().mean().backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
            optimizer.step()
            optimizer.zero_grad()


def assert_same(network, other):
    for (name, found), expected in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_each_part_steps_as_torch_s_own(network):
    other = copy.deepcopy(network)
    train(network, [optimizer_of(network)], (0.01, 0.004))
    muon = torch.optim.Muon([other[0].weight], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    muon.param_groups[0]["share"] = 3.0
    groups = [{"params": [other[2].weight]}, {"params": [other[0].bias, other[2].bias], "weight_decay": 0.0}]
    train(other, [muon, torch.optim.AdamW(groups, **SETTINGS)], (0.01, 0.004))
    assert_same(network, other)


def test_a_matrix_moves_alike_in_all_its_directions(network):
    """The step's singular values are near each other, and its entries of a fifth of rate and share."""
    before = network[0].weight.detach().clone()
    train(network, [optimizer_of(network, weight_decay=0.0)], (0.01,))
    step = before - network[0].weight.detach()
    values = torch.linalg.svdvals(step)
    assert values.max() < 2 * values.min()
    assert_near(step.square().mean().sqrt(), torch.tensor(0.2 * 0.03), tolerance=0.25)


def test_a_restored_state_goes_on_alike(network):
    optimizer = optimizer_of(network)
    train(network, [optimizer], (0.01, 0.008))
    other = copy.deepcopy(network)
    restored = optimizer_of(other)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(network, [optimizer], (0.006, 0.004), seed=2)
    train(other, [restored], (0.006, 0.004), seed=2)
    assert_same(network, other)
    assert set(restored.state[other[0].weight]) == {"momentum_buffer"}
    assert set(restored.state[other[2].weight]) == {"step", "exp_avg", "exp_avg_sq"}
