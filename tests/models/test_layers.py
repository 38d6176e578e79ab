"""Layers of the recipe, which belong to no mixer: each by its formula."""

import pytest
import torch
import torch.nn.functional as F

from gspn_dit.models.basics import normalize
from gspn_dit.models.layers import MLP, SwiGLU

from .tiny import double, images, model, moved, tokens


def test_swiglu_by_its_definition():
    module = double(SwiGLU(32, 128))
    x = tokens(2, 3, 3, 32)
    gate, value = (x @ module.hidden.weight.T + module.hidden.bias).split(module.out.in_features, -1)
    expected = (gate * gate.sigmoid() * value) @ module.out.weight.T + module.out.bias
    torch.testing.assert_close(module(x), expected)
    assert module.out.in_features == 88  # 2/3 of 128, to the nearest multiple of 8
    assert isinstance(model("DiT-S/4").blocks[0].mlp, MLP)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("GSPN-S/4", {"local_path": "norm"}),
        ("GSPN-DiT-S/4", {"scan_order": "sequential"}),
        ("DiT-S/4", {}),
    ],
)
def test_rms_norm_replaces_every_norm(name, overrides, monkeypatch):
    network = moved(model(name, norm="rms", **overrides))
    expected = network(*images())

    def refuse(*_, **__):
        raise AssertionError("a LayerNorm is left")

    monkeypatch.setattr(F, "layer_norm", refuse)
    torch.testing.assert_close(network(*images()), expected)
    x = tokens(2, 3, 32)
    torch.testing.assert_close(normalize(x, "rms"), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    with pytest.raises(AssertionError, match="a LayerNorm is left"):
        model(name)(*images())
