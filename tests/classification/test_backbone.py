"""The backbone: its values, sizes and forms."""

import math
import sys
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gspn_dit.classification import BACKBONE_NAMES, create_backbone
from gspn_dit.classification.backbone import GlobalResponseNorm
from gspn_dit.classification.sizes import resolve_backbone
from tests.classification.plain import plain_backbone
from tests.utils import assert_near

TINY = {"width": 8, "depths": (1, 1, 2, 1), "rank": 3, "num_classes": 5, "drop_path_rate": 0.0}


def build(name="gspn_tiny", **overrides):
    """A narrow network away from its initial state, where the residual branches are zero."""
    torch.manual_seed(0)
    model = create_backbone(name, **{**TINY, **overrides})
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def pictures(height=32, width=40, count=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("overrides", "strides", "size"),
    [
        ({}, (2, 2), (37, 53)),
        ({"stem_stride": 2, "global_stages": (1,)}, (2, 1), (21, 18)),
        ({"stem_stride": 1, "depths": (1, 1, 9, 1), "global_stages": (2,)}, (1, 1), (16, 24)),
        ({"stem_stride": 2, "scan": "identity"}, (2, 1), (16, 16)),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_definition(overrides, strides, size):
    model = build(**overrides).double()
    settings = model.settings
    stages = overrides.get("global_stages", (2, 3))
    x = pictures(*size, dtype=torch.float64).requires_grad_()
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    whole = lambda stage, block: stage in stages and block != 7 and block != 8  # noqa: E731
    other_x = x.detach().clone().requires_grad_()
    expected, maps = plain_backbone(weights, settings.depths, whole, other_x, strides=strides)
    logits = model(x)
    assert_near(logits, expected, "logits")
    direction = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    assert_near(x.grad, other_x.grad, "gradient of the pictures", 1e-10)
    for name, parameter in model.named_parameters():
        assert_near(parameter.grad, weights[name].grad, name, 1e-9)
    features = build(**overrides, features_only=True).double()
    features.load_state_dict({k: v for k, v in model.state_dict().items() if k in features.state_dict()})
    for found, wanted in zip(features(x), maps, strict=True):
        assert_near(found, wanted, "map")


# Parameters in millions and multiply-adds in billions by formula: convolutions and linear layers at 224 px.
FORMULA = {"gspn_tiny": (31.51, 5.23), "gspn_small": (50.77, 11.87), "gspn_base": (93.06, 15.69)}


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_parameters_and_multiply_adds(name):
    with torch.device("meta"), torch.no_grad():
        model = create_backbone(name).eval()
        with FlopCounterMode(display=False) as counter:
            assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for operator, count in counts.items() if not str(operator).startswith("gspn."))
    found = (sum(p.numel() for p in model.parameters()) / 1e6, products / 2e9)
    assert found == pytest.approx(FORMULA[name], rel=1e-3)


def test_blocks_that_scan_whole_lines():
    """Of a stage of 15 the first seven, the 7th of each seven, and in other stages none."""
    settings = resolve_backbone("gspn_base")
    whole = [[settings.segment_of(s, b) == 0 for b in range(d)] for s, d in enumerate(settings.depths)]
    assert whole[:2] == [[False] * 4] * 2 and whole[3] == [True] * 4
    assert [b for b, found in enumerate(whole[2]) if found] == [0, 1, 2, 3, 4, 5, 6, 13]
    settings = resolve_backbone("gspn_small")
    assert not any(settings.segment_of(2, b) == 0 for b in range(10))
    model = build()
    found = [block.mixer.core.segment for stage in model.stages for block in stage.blocks]
    assert found == [2, 2, 0, 0, 0]


def test_four_maps_and_what_they_are():
    model = build(stem_stride=2, features_only=True)
    maps = model(pictures(30, 45))
    assert [tuple(x.shape) for x in maps] == [(2, 8, 15, 23), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]
    info = model.feature_info
    assert info.channels() == [8, 16, 32, 64] and info.reduction() == [2, 4, 8, 16]
    assert info.module_name()[3] == "stages.3" and info[0]["num_chs"] == 8
    assert not hasattr(model, "head")
    some = build(stem_stride=2, features_only=True, out_indices=(1, 3))
    some.load_state_dict(model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(some(pictures(30, 45)), maps[1::2], strict=True))
    first = build(stem_stride=2, features_only=True, out_indices=(0,))
    first.stages[1].down.register_forward_hook(lambda *_: pytest.fail("a stage ran for nothing"))
    assert len(first(pictures(30, 45))) == 1
    assert some.feature_info.channels() == [16, 64] and some.feature_info.module_name()[0] == "stages.1"
    with pytest.raises(ValueError, match="out_indices is \\(4,\\); expected stages from 0 to 3"):
        build(features_only=True, out_indices=(4,))


@pytest.mark.parametrize("size", [(4, 4), (5, 300), (224, 96)])
def test_any_size(size):
    assert build()(pictures(*size)).isfinite().all()


def test_a_fresh_network_s_blocks_are_the_identity_and_every_parameter_learns():
    fresh = create_backbone("gspn_tiny", **TINY)
    x = torch.randn(2, 3, 3, 8)
    for block in fresh.stages[0].blocks:
        assert torch.equal(block(x, None), x)
    model = build()
    model(pictures(64, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_a_silent_channel_has_a_gradient():
    """The root of its sum of squares has none at 0; in half precision large values do not overflow either."""
    norm = GlobalResponseNorm(4)
    torch.nn.init.ones_(norm.gamma)
    x = torch.zeros(2, 3, 3, 4)
    x[..., 1:3] = 300.0
    for dtype in (torch.float32, torch.float16):
        leaf = x.to(dtype, copy=True).requires_grad_()
        y = norm(leaf)
        y.float().sum().backward()
        assert leaf.grad.isfinite().all()
        assert_near(y.float(), x * 3)  # a channel's share is twice the mean, the others' 0


def test_drop_path_leaves_out_whole_branches_of_some_images():
    model = build(drop_path_rate=0.5).train()
    assert model.settings.drop_rates == [0.0, 0.125, 0.25, 0.375, 0.5]
    x = pictures(count=2)
    all_kept = torch.full((2, model.branches), 0.999)
    paths = all_kept.clone()
    paths[1, -2:] = 0.499  # both branches of the last block, of the second picture alone
    with torch.no_grad():
        kept, dropped = model(x, all_kept), model(x, paths)
        assert torch.equal(kept[0], dropped[0]) and not torch.equal(kept[1], dropped[1])
        model.stages[3].blocks = torch.nn.ModuleList()
        assert_near(dropped[1], model(x, all_kept)[1])
    block = build(drop_path_rate=0.5).stages[3].blocks[0]
    x = torch.randn(1, 2, 2, 64)
    assert_near(block(x, torch.tensor([[0.9, 0.1]])), x + 2 * block.mixer(block.norm_mixer(x)))
    model = build(drop_path_rate=0.5)
    torch.manual_seed(3)
    one, two = model(pictures()), model(pictures())
    assert not torch.equal(one, two)
    assert torch.equal(model.eval()(pictures()), model(pictures(), torch.zeros(2, model.branches)))


def test_recomputing_gives_the_same_gradients():
    found = []
    for recompute in (False, True):
        model = build(checkpoint_activations=recompute, drop_path_rate=0.5)
        torch.manual_seed(1)
        model(pictures()).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_the_control_without_a_scan_sees_one_place():
    """Its core; around it the convolutions see 7x7 places, and the response norm each channel's mean square."""
    x = torch.randn(1, 5, 6, 12)
    other = x.clone()
    other[:, 0, 0] += 1
    for scan, places in (("lines", 30), ("identity", 1)):
        core = build(scan=scan).stages[3].blocks[0].mixer.core
        wide = torch.zeros(1, 5, 6, core.width)
        moved = (core(wide + x[..., :1]) - core(wide + other[..., :1])).abs().amax(dim=(0, 3))
        assert int((moved > 0).sum()) == places
    assert not any("to_logits" in name for name, _ in build(scan="identity").named_parameters())


# A trace takes a size of one for a constant: two pictures, and two places in the last grid, are the least.
LEAST = {"batch": 2, "height": 33, "width": 33}


def test_export_for_any_batch_and_size():
    model = build(depths=(1, 1, 1, 1)).eval()
    batch, height, width = (torch.export.Dim(name, min=low) for name, low in LEAST.items())
    shapes = {"x": {0: batch, 2: height, 3: width}}
    exported = torch.export.export(model, (pictures(64, 80),), dynamic_shapes=shapes, strict=False)
    y = pictures(96, 48, count=3)
    assert_near(exported.module()(y), model(y), tolerance=1e-5)


@pytest.mark.slow
def test_compiled():
    model = build(depths=(1, 1, 1, 1), drop_path_rate=0.5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    paths = torch.rand(2, model.branches)
    expected = torch.autograd.grad(model(pictures(), paths).sum(), list(model.parameters()))
    found = torch.autograd.grad(compiled(pictures(), paths).sum(), list(model.parameters()))
    for one, two in zip(found, expected, strict=True):
        assert_near(one, two, tolerance=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "gspn_tyny"}, "backbone name is 'gspn_tyny'; did you mean 'gspn_tiny'?"),
        ({"widht": 8}, "unknown key 'widht'; did you mean 'width'"),
        ({"width": 7}, "width is 7; expected an even number above 0"),
        ({"mlp_ratio": math.inf}, "mlp_ratio is inf; expected a finite number above 0"),
        ({"depths": (2, 2)}, "depths: expected a list of 4, each an integer"),
        ({"global_stages": (4,)}, "global_stages is (4,); expected stages from 0 to 3"),
        ({"stem_stride": 3}, "stem_stride: expected one of 4, 2, 1, got 3"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0; expected in [0, 1)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError) as caught:
        create_backbone(**{"name": "gspn_tiny", **settings})
    assert message in str(caught.value)


def test_bad_pictures():
    for x in (torch.zeros(1, 3, 3, 9), torch.zeros(1, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\) with H and W of 4 or more"):
            build()(x)
    with pytest.raises(ValueError, match="expected a tensor"):
        build()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_settings_build_the_same_network():
    model = build(stem_stride=2, global_stages=(3, 1))
    again = create_backbone(**model.config)
    again.load_state_dict(model.state_dict())
    assert_near(again(pictures()), model(pictures()))
    assert build(num_classes=0)(pictures()).shape == (2, 64)
    model.reset_classifier(7)
    assert model(pictures()).shape == (2, 7) and model.get_classifier().out_features == 7


def test_timm_s_registry(monkeypatch):
    """With the part of timm that registers; timm itself where it is installed is in the test below."""
    registered = {}
    models = ModuleType("timm.models")
    models.register_model = lambda create: registered.setdefault(create.__name__, create)
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.models", models)
    monkeypatch.delitem(sys.modules, "gspn_dit.classification.timm_models", raising=False)
    __import__("gspn_dit.classification.timm_models")
    assert set(registered) == set(BACKBONE_NAMES)
    of_timm = {"pretrained_cfg": None, "pretrained_cfg_overlay": None, "cache_dir": None}
    model = registered["gspn_tiny"](pretrained=False, **of_timm, **TINY)
    assert model(pictures()).shape == (2, 5) and model.pretrained_cfg["input_size"] == (3, 224, 224)
    with pytest.raises(ValueError, match="there are no published weights"):
        registered["gspn_small"](pretrained=True)


def test_timm():
    timm = pytest.importorskip("timm")
    model = timm.create_model("gspn_tiny", features_only=True, **TINY)
    assert [x.shape[1] for x in model(pictures())] == model.feature_info.channels()
    model = timm.create_model("gspn_tiny", features_only=True, out_indices=(1, 3), **TINY)
    assert [x.shape[1] for x in model(pictures())] == model.feature_info.channels() == [16, 64]
    assert timm.create_model("gspn_base", **TINY)(pictures()).shape == (2, 5)
    assert set(BACKBONE_NAMES) <= set(timm.list_models("gspn_*"))
