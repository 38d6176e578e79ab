"""Settings of the module, the block and the recipe: each changes what it says, by a plain definition of its own."""

import pytest
import torch
import torch.nn.functional as F

from gspn_dit.models import create_model
from gspn_dit.models.line_scan import DIRECTIONS, LineScan, row_stochastic
from gspn_dit.models.mixers import create_mixer
from gspn_dit.models.settings import resolve_settings
from ops import gated_merge, gspn_scan, gspn_scan_reference

from .tiny import TINY, double, images, model, moved, tokens


def mixer(block=0, **overrides):
    torch.manual_seed(0)
    settings = resolve_settings("GSPN-DiT-S/4", **{**TINY, "groups": 4, **overrides})
    module = create_mixer(settings, settings.segment_of(block))
    for part in module.modules():
        if hasattr(part, "initialize_weights"):
            part.initialize_weights()
    return module


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_without_the_keys_a_module_has_the_weights_and_the_bits_that_it_had():
    module, x = moved(mixer()), tokens(2, 5, 6, 32).float()
    names = ["proj_in", "conv_in", "core.bottleneck", "core.to_lam", "core.to_u", "core.to_logits"]
    names += ["proj_mid", "conv_mid", "proj_out"]
    assert set(shapes(module)) == {f"{n}.weight" for n in names} | {"conv_in.bias", "core.merge_weight"}
    core = module.core
    v = module.conv_in(module.proj_in(x))
    z = core.bottleneck(v)
    lam = core.to_lam(z).view(2, 5, 6, 4, 32)
    h = gspn_scan(v, lam, core.to_logits(z).view(2, 5, 6, 4, 3, 4))
    weight = core.to_u.weight.view(4, 32, -1) * core.merge_weight.unsqueeze(2)
    y = gated_merge(h, F.linear(z, weight.flatten(0, 1)).view(2, 5, 6, 4, 32))
    y = module.conv_mid(module.proj_mid(F.layer_norm(y, (32,), eps=1e-6)))
    assert torch.equal(module(x), module.proj_out(y * y.relu()))


def test_without_the_keys_a_block_has_the_weights_and_the_bits_that_it_had():
    network, x = moved(model(mixer="attention", position="none")), tokens(2, 4, 4, 32).float()
    block, condition = network.blocks[0], tokens(2, 32).float()
    a, b, c, d, e, f = block.modulation(condition).view(2, 1, 1, 192).chunk(6, -1)
    norm = lambda x, shift, scale: torch.addcmul(shift, F.layer_norm(x, (32,), eps=1e-6), 1 + scale)  # noqa: E731
    y = torch.addcmul(x, c, block.mixer(norm(x, a, b)))
    y = torch.addcmul(y, f, block.mlp.out(F.gelu(block.mlp.hidden(norm(y, d, e)), approximate="tanh")))
    assert torch.equal(block(x, condition), y)


CHANGES = [
    # overrides, weights of block 0 that go, that come or change shape
    ({"local_path": "norm"}, set(), set()),
    ({"local_path": "modulated", "mlp_ratio": 4.0}, set(), {"modulation.weight", "modulation.bias"}),
    ({"conv_init": "identity"}, set(), set()),
    ({"kernel_sizes": [5, 0]}, {"mixer.conv_mid.weight"}, {"mixer.conv_in.weight"}),
    ({"gate": "merged"}, {"mixer.core.to_u.weight"}, {"mixer.core.to_gate.weight"}),
    ({"gate": "none"}, {"mixer.core.to_u.weight"}, set()),
    ({"merge": "sum"}, {"mixer.core.merge_weight"}, set()),
    ({"gain_groups": 2}, set(), {"mixer.core.to_lam.weight", "mixer.core.to_u.weight"}),
    ({"scan_order": "sequential"}, set(), set()),
    ({"forget": "learned"}, set(), {"mixer.core.to_forget.weight", "mixer.core.to_forget.bias"}),
    ({"scan_blocks": [1]}, {"mixer.core.to_logits.weight"}, set()),
    ({"norm": "rms"}, set(), set()),
    ({"time_frequencies": "closed"}, set(), set()),
    ({"mlp": "swiglu"}, set(), {"mlp.hidden.weight", "mlp.hidden.bias", "mlp.out.weight"}),
    (
        {"block": "inverted_bottleneck"},
        {"mlp.hidden.weight", "mlp.hidden.bias", "mlp.out.weight", "mlp.out.bias"},
        {"modulation.weight", "modulation.bias"}
        | {f"mixer.{name}.weight" for name in ("proj_mid", "conv_mid", "proj_out")},
    ),
]


@pytest.mark.parametrize(
    ("overrides", "gone", "new"), CHANGES, ids=lambda v: str(sorted(v) if isinstance(v, set) else v)
)
def test_a_setting_changes_its_weights_and_its_key_alone(overrides, gone, new):
    base, changed = model(groups=4), model(groups=4, **overrides)
    before, after = (shapes(network.blocks[0]) for network in (base, changed))
    assert set(before) - set(after) == gone
    assert {key for key in after if after[key] != before.get(key)} == new
    differing = {key for key in base.config if base.config[key] != changed.config[key]}
    of_the_mlp = {"mlp", "mlp_ratio", "mlp_norm_eps"}  # which an inverted bottleneck has not
    assert differing - of_the_mlp == set(overrides) - of_the_mlp
    assert not torch.equal(moved(base)(*images()), moved(changed)(*images()))


@pytest.mark.parametrize("name", ["GSPN-DiT-S/4", "GSPN-S/4"])
@pytest.mark.parametrize(
    "overrides", [c[0] for c in CHANGES] + [{"local_path": "norm", "mixer": "conv_attention"}], ids=str
)
def test_every_parameter_of_every_design_learns(name, overrides):
    if name == "GSPN-S/4" and ({"mlp", "block"} & set(overrides) or "mlp_ratio" in overrides):
        pytest.skip("a GSPN has no MLP and no adaLN")
    if overrides.get("mixer") != "conv_attention":
        overrides = {"groups": 4, **overrides}
    network = moved(model(name, **overrides))
    network(*images()).square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("overrides", [c[0] for c in CHANGES], ids=str)
def test_every_design_starts_as_zero(overrides):
    assert model(groups=4, **overrides)(*images()).abs().max() == 0


@pytest.mark.parametrize(
    "overrides",
    [
        {"local_path": "modulated", "mlp": "swiglu", "norm": "rms", "scan_order": "sequential"}
        | {
            "gate": "merged",
            "gain_groups": 4,
            "forget": "learned",
            "kernel_sizes": [5, 0],
            "scan_blocks": [1],
        },
        pytest.param({"block": "inverted_bottleneck", "local_path": "norm"}, marks=pytest.mark.slow),
    ],
    ids=("many", "inverted_bottleneck"),
)
def test_designs_compile_to_one_graph(overrides):
    torch.compiler.reset()  # its limit of recompilations counts those of other tests
    network = moved(model(groups=4, **overrides))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*images()), network(*images()))


def layer_norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize(
    "core", [{}, {"scan": "identity"}, {"mixer": "conv_attention", "groups": None}], ids=str
)
def test_the_local_path_by_its_definition(core):
    a, b = 0.3 * tokens(2, 1, 1, 32), 0.2 * tokens(2, 1, 1, 32) - 0.5
    outputs = {}
    for kind, scales in (("none", ()), ("norm", ()), ("modulated", (a, b))):
        module = double(mixer(local_path=kind, **core))
        x = module.conv_in(module.proj_in(tokens(2, 5, 6, 32)))
        both = layer_norm(module.core(x))
        if kind == "norm":
            both = both + layer_norm(x)
        elif kind == "modulated":
            both = both * (1 + a) + layer_norm(x) * (1 + b)
        g = module.conv_mid(module.proj_mid(both))
        outputs[kind] = module(tokens(2, 5, 6, 32), *scales)
        torch.testing.assert_close(outputs[kind], module.proj_out(g * g.relu()))
    assert not torch.allclose(outputs["none"], outputs["norm"])
    assert not torch.allclose(outputs["modulated"], outputs["norm"])


@pytest.mark.parametrize("name", ["GSPN-DiT-S/4", "GSPN-S/4"])
def test_the_papers_module_has_no_norm_and_a_sixteenth_of_the_width(name):
    network = model(name, module="paper", width=64)
    assert network.settings.bottleneck == 4 and model(name, width=64).settings.bottleneck == 16
    module = double(mixer(module="paper"))
    x = tokens(2, 5, 6, 32)
    core = module.core(module.conv_in(module.proj_in(x)))
    g = module.conv_mid(module.proj_mid(core))
    torch.testing.assert_close(module(x), module.proj_out(g * g.relu()))
    with pytest.raises(ValueError, match="local_path is 'norm'; expected none: it needs a norm"):
        model(name, module="paper", local_path="norm")


def test_a_block_gives_its_mixer_the_last_two_of_eight_modulations():
    block = double(model(local_path="modulated", groups=4)).blocks[0]
    x, condition = tokens(2, 4, 4, 32), tokens(2, 32)
    shift, scale, gate, shift_2, scale_2, gate_2, a, b = (
        block.modulation(condition).view(2, 1, 1, 256).chunk(8, -1)
    )
    y = x + gate * block.mixer(layer_norm(x) * (1 + scale) + shift, a, b)
    y = y + gate_2 * block.mlp(layer_norm(y) * (1 + scale_2) + shift_2)
    torch.testing.assert_close(block(x, condition), y)


def test_modulation_of_the_local_path_starts_at_one():
    plain, modulated = (mixer(local_path=kind) for kind in ("norm", "modulated"))
    zero = torch.zeros(2, 1, 1, 32)
    x = tokens(2, 5, 6, 32).float()
    torch.testing.assert_close(modulated(x, zero, zero), plain(x))
    assert model(local_path="modulated").blocks[0].modulation.weight.abs().max() == 0


def test_the_token_itself_survives_what_the_scan_adds_up():
    """With lam a hundred times larger the token's own value is what it was, in the local path alone."""
    x = tokens(2, 8, 8, 32).float()
    for kind, survives in (("none", False), ("norm", True)):
        module = mixer(local_path=kind)
        module.core.bottleneck.weight.data.zero_()  # the scan says nothing
        assert (module(x).abs().max() > 0) == survives


def test_convolutions_start_as_the_identity_and_a_tenth():
    module = mixer(width=64, conv_init="identity")
    for conv, size in ((module.conv_in, 7), (module.conv_mid, 3)):
        centre = torch.zeros(size, size)
        centre[size // 2, size // 2] = 1
        assert float((conv.weight.detach() - centre).std()) == pytest.approx(0.1 / size, rel=0.1)
    x = torch.randn(2, 16, 16, 64)
    changes = [(m.conv_in(x) - x).detach()[:, 3:-3, 3:-3].std() for m in (module, mixer(width=64))]
    assert float(changes[0]) == pytest.approx(0.1, rel=0.1) and changes[1] > 1
    assert module.conv_in.bias.abs().max() == 0


@pytest.mark.parametrize("sizes", [(5, 7), (0, 3), (3, 0), (0, 0)])
def test_kernels_reach_as_far_as_their_sizes(sizes):
    module = double(mixer(kernel_sizes=sizes, scan="identity"))
    x = tokens(1, 15, 15, 32)
    other = x.clone()
    other[0, 7, 7] += 1
    changed = ((module(other) - module(x)).abs().sum(-1)[0] > 1e-9).nonzero()
    reach = sum(size // 2 for size in sizes)
    assert (changed.min(0).values.tolist(), changed.max(0).values.tolist()) == (
        [7 - reach] * 2,
        [7 + reach] * 2,
    )


def scan(**overrides):
    torch.manual_seed(0)
    settings = resolve_settings("GSPN-DiT-S/4", width=16, depth=2, input_size=32, bottleneck=4, **overrides)
    core = LineScan(settings, 0)
    core.initialize_weights()
    for part in core.children():
        if hasattr(part, "initialize_weights"):
            part.initialize_weights()
    return moved(core, 0.5).double()


def maps(core, x, *names):
    """(B, H, W, K, C) for each name, by multiplication and repetition alone."""
    z = x @ core.bottleneck.weight.T
    found = [(z @ getattr(core, name).weight.T).unflatten(-1, (4, -1)) for name in names]
    return [m.repeat_interleave(16 // m.shape[-1], -1) for m in found]


def logits_of(core, x):
    return (x @ core.bottleneck.weight.T @ core.to_logits.weight.T).unflatten(-1, (4, 3, -1))


@pytest.mark.parametrize("merge", ["scalar", "channel", "linear", "sum"])
@pytest.mark.parametrize("gate", ["directions", "merged", "none"])
@pytest.mark.parametrize("gains", [1, 4, 16])
def test_gates_and_gains_by_their_definition(gate, gains, merge):
    core = scan(gate=gate, gain_groups=gains, groups=4, merge=merge)
    x = tokens(2, 5, 6, 16)
    (lam,) = maps(core, x, "to_lam")
    h = gspn_scan_reference(x, lam, logits_of(core, x))
    if gate == "directions":
        h = h * maps(core, x, "to_u")[0]
    if merge == "linear":
        y = h.flatten(3) @ core.merge_linear.weight.T
    elif merge == "sum":
        y = h.sum(3)
    else:
        y = sum(core.merge_weight[k] * h[:, :, :, k] for k in range(4))
    if gate == "merged":
        u = x @ core.bottleneck.weight.T @ core.to_gate.weight.T
        y = y * u.repeat_interleave(16 // gains, -1)
    torch.testing.assert_close(core(x), y)


def test_two_scans_in_sequence_by_their_definition():
    core = scan(scan_order="sequential", groups=4)
    x = tokens(2, 5, 6, 16)
    lam, u = maps(core, x, "to_lam", "to_u")
    logits, y = logits_of(core, x), x
    for first in (0, 2):
        y = layer_norm(y) if first else y
        part = slice(first, first + 2)
        h = gspn_scan_reference(y, lam[..., part, :], logits[..., part, :, :], DIRECTIONS[part])
        y = (u[..., part, :] * h * core.merge_weight[part]).sum(3)
    torch.testing.assert_close(core(x), y)


@pytest.mark.parametrize("size", [(5, 6), (1, 6), (5, 1)])
def test_row_stochastic_weights_given_are_those_that_the_scan_makes(size):
    x, lam, logits = tokens(2, *size, 8), tokens(2, *size, 4, 8), 3 * tokens(2, *size, 4, 3, 2)
    given = gspn_scan(x, lam, row_stochastic(logits), normalization="none")
    torch.testing.assert_close(given, gspn_scan(x, lam, logits))
    torch.testing.assert_close(
        row_stochastic(logits).sum(-2), torch.ones(2, *size, 4, 2, dtype=torch.float64)
    )


def test_forget_gates_by_their_definition_within_the_bound():
    core = scan(forget="learned", groups=4)
    x = tokens(2, 5, 6, 16)
    z = x @ core.bottleneck.weight.T
    lam, u = maps(core, x, "to_lam", "to_u")
    keep = torch.sigmoid(z @ core.to_forget.weight.T + core.to_forget.bias).view(2, 5, 6, 4, 1, 4)
    h = gspn_scan_reference(x, lam, row_stochastic(logits_of(core, x)) * keep, normalization="none")
    torch.testing.assert_close(core(x), (u * h * core.merge_weight).sum(3))
    assert keep.min() > 0 and keep.max() <= 1
    for k, axis in enumerate((2, 2, 1, 1)):
        bound = (lam * x.unsqueeze(3))[:, :, :, k].abs().amax((1, 2)).max() * x.shape[axis]
        assert h[:, :, :, k].abs().max() <= bound


def test_forget_gates_start_with_a_reach_of_one_to_sixteen_lines():
    gate = mixer(forget="learned", groups=4, width=64).core.to_forget
    keep = gate(torch.zeros(1, 1, 1, 16)).sigmoid().view(4, 4)  # (K, G)
    reach = -1 / keep.log()
    torch.testing.assert_close(reach[0], torch.tensor([1, 2 ** (4 / 3), 2 ** (8 / 3), 16]))
    assert torch.equal(reach, reach[:1].expand(4, -1))


def test_only_the_blocks_named_scan():
    network = model(depth=4, groups=4, scan_blocks=[1, 3])
    assert [block.mixer.core.segment for block in network.blocks] == [None, 0, None, 0]
    left_out = model(depth=4, groups=4, scan="identity")
    assert shapes(network.blocks[0]) == shapes(left_out.blocks[0])
    x = tokens(2, 4, 4, 32).float()
    for other in (left_out, model(depth=4, groups=4)):
        for mine, theirs in zip(network.blocks, other.blocks, strict=True):
            if shapes(mine) == shapes(theirs):
                theirs.load_state_dict(mine.state_dict())
                assert torch.equal(mine.mixer(x), theirs.mixer(x))


def count(name, **overrides):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name, **overrides).parameters())


@pytest.mark.parametrize("local", ["none", "modulated"])
@pytest.mark.parametrize("sizes", [{"width": 64, "depth": 3}, {}])
def test_an_inverted_bottleneck_has_the_parameters_of_module_and_mlp(sizes, local):
    for name in ("GSPN-DiT-S/2", "GSPN-DiT-XL/2"):
        both = [
            count(name, local_path=local, block=block, **sizes)
            for block in ("mixer_mlp", "inverted_bottleneck")
        ]
        assert both[1] == pytest.approx(both[0], rel=0.01)


def test_an_inverted_bottleneck_is_one_branch():
    block = double(model(block="inverted_bottleneck", groups=4)).blocks[0]
    x, condition = tokens(2, 4, 4, 32), tokens(2, 32)
    shift, scale, gate = block.modulation(condition).view(2, 1, 1, 96).chunk(3, -1)
    expected = x + gate * block.mixer(layer_norm(x) * (1 + scale) + shift)
    torch.testing.assert_close(block(x, condition), expected)
    assert block.mlp is None and block.mixer.proj_out.in_features > 5 * 32


@pytest.mark.parametrize("name", ["DiT-S/2", "DiT-B/2", "DiT-L/2", "DiT-XL/2"])
def test_designs_keep_the_size_of_the_dit_of_their_name(name):
    size = count(name)
    for overrides in ({"local_path": "norm"}, {"local_path": "modulated"}, {"mlp": "swiglu", "norm": "rms"}):
        assert count(f"GSPN-{name}", **overrides) == pytest.approx(size, rel=0.03)
    assert count(name, mlp="swiglu", norm="rms") == pytest.approx(size, rel=0.001)


def test_settings_survive_json_and_rebuild_the_model():
    chosen = {"kernel_sizes": (5, 3), "scan_blocks": (1,), "local_path": "modulated", "mlp": "swiglu"}
    network = model(**chosen)
    assert network.config["kernel_sizes"] == [5, 3] and network.config["scan_blocks"] == [1]
    assert create_model(**network.config).config == network.config
    assert network.settings.kernel_sizes == (5, 3)
