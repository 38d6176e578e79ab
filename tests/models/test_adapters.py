"""Adapters, hooks and other stand-ins on the linear layers of a model: each takes part in the forward pass."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from gspn_dit import create_model
from gspn_dit.models.basics import is_plain_linear
from gspn_dit.models.mixers import LineScan
from gspn_dit.models.settings import resolve_settings

MODELS = {
    "GSPN-DiT": ("GSPN-DiT-S/4", {}),
    "GSPN": ("GSPN-S/4", {}),
    "DiT": ("DiT-S/4", {}),
    "a skip per direction": ("GSPN-DiT-S/4", {"direction_skip": True, "merge": "channel"}),
    "a linear merge": ("GSPN-DiT-S/4", {"direction_skip": True, "merge": "linear"}),
    "a sum of gated maps": ("GSPN-DiT-S/4", {"merge": "sum", "direction_skip": True, "mlp": "swiglu"}),
    "forget gates, one after the other": ("GSPN-DiT-S/4", {"forget": "learned", "scan_order": "sequential"}),
    "one gate after the merge": ("GSPN-DiT-S/4", {"gate": "merged", "local_path": "modulated"}),
    "inverted bottleneck": ("GSPN-DiT-S/4", {"block": "inverted_bottleneck", "gain_groups": 8}),
}


class LowRank(nn.Module):
    """LoRA (arXiv 2106.09685): W x + B A x, with W, its weight, frozen."""

    def __init__(self, base: nn.Linear, rank: int = 2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def small_model(name, **overrides):
    """A model whose prediction depends on every layer: what starts at zero does not stay there."""
    torch.manual_seed(0)
    model = create_model(name, input_size=16, num_classes=5, width=32, depth=2, **overrides)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.double()


def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64)
    return x, torch.rand(2, generator=generator, dtype=torch.float64), torch.tensor([1, 4])


def adapt(model):
    """Put an adapter in place of every linear layer; return the adapters."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        model.set_submodule(name, LowRank(model.get_submodule(name)).double())
    return {name: model.get_submodule(name) for name in names}


@pytest.mark.parametrize("name, overrides", MODELS.values(), ids=MODELS.keys())
def test_an_adapter_on_any_linear_layer_adds_its_product(name, overrides):
    """All are trained by the loss, and the output is that of a model whose weights hold the adapters."""
    model, merged = small_model(name, **overrides), small_model(name, **overrides)
    adapters = adapt(model)
    assert any(name.endswith("modulation") for name in adapters)
    with torch.no_grad():
        for layer, adapter in adapters.items():
            merged.get_submodule(layer).weight += adapter.up.weight @ adapter.down.weight
    output = model(*batch())
    torch.testing.assert_close(output, merged(*batch()))
    output.square().sum().backward()
    for layer, adapter in adapters.items():
        assert adapter.down.weight.grad.any() and adapter.up.weight.grad.any(), layer


def line_scan(**overrides):
    torch.manual_seed(0)
    scan = LineScan(
        resolve_settings("GSPN-DiT-S/4", width=16, depth=2, direction_skip=True, **overrides), 0
    ).double()
    for parameter in scan.parameters():
        nn.init.normal_(parameter)
    return scan


def scan_input():
    return torch.randn(2, 3, 4, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("layer", ["bottleneck", "to_lam", "to_u", "to_logits", "to_skip"])
@pytest.mark.parametrize("merge", ["scalar", "channel", "linear"])
def test_what_stands_on_a_projection_is_asked(merge, layer):
    """A hook, a parametrization, a bias, a forward of its own: each doubles the layer's output as weights do."""
    expected = line_scan(merge=merge)
    getattr(expected, layer).weight.data *= 2
    expected = expected(scan_input())

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    def replace_forward(linear):
        plain = linear.forward
        linear.forward = lambda x: 2 * plain(x)

    stands = {
        "hook": lambda linear: linear.register_forward_hook(lambda module, args, output: 2 * output),
        "pre-hook": lambda linear: linear.register_forward_pre_hook(lambda module, args: 2 * args[0]),
        "parametrization": lambda linear: parametrize.register_parametrization(linear, "weight", Double()),
        "forward": replace_forward,
    }
    for name, stand in stands.items():
        scan = line_scan(merge=merge)
        stand(getattr(scan, layer))
        torch.testing.assert_close(
            scan(scan_input()), expected, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("merge", ["scalar", "channel"])
def test_plain_projections_carry_the_merge_weights_with_the_same_result(merge):
    scan = line_scan(merge=merge)
    assert is_plain_linear(scan.to_u) and is_plain_linear(scan.to_skip)
    results = []
    for _ in range(2):
        y = scan(scan_input())
        results.append([y, *torch.autograd.grad(y.square().sum(), scan.parameters())])
        scan.to_u.register_forward_hook(lambda module, args, output: None)
        scan.to_skip.register_full_backward_hook(lambda module, grads, outputs: None)
    assert not is_plain_linear(scan.to_u) and not is_plain_linear(scan.to_skip)
    for fast, asked in zip(*results, strict=True):
        torch.testing.assert_close(fast, asked)


def test_a_hook_on_every_module_sees_the_projections():
    scan, seen = line_scan(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        scan(scan_input())
    finally:
        handle.remove()
    for layer in (scan.to_lam, scan.to_u, scan.to_logits, scan.to_skip):
        assert layer in seen


def test_a_projection_with_a_bias_keeps_it():
    scan = line_scan()
    scan.to_u.bias = nn.Parameter(torch.randn(64, dtype=torch.float64))
    y = scan(scan_input())
    (gradient,) = torch.autograd.grad(y.square().sum(), scan.to_u.bias)
    assert gradient.any()


def test_adapters_under_autocast_keep_its_dtype():
    scan = line_scan().float()
    for layer in ("to_u", "to_skip"):
        setattr(scan, layer, LowRank(getattr(scan, layer)))
    with torch.autocast("cpu", torch.bfloat16):
        z = scan.bottleneck(scan_input().float())
        maps = (scan._weighted(scan.to_u, z, slice(None)), scan._skip(z, slice(None)))
        assert {part.dtype for part in maps} == {torch.bfloat16}
