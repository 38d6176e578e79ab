"""The registry: published sizes, overrides and what it refuses."""

import pytest
import torch
import yaml

import gspn_dit
from gspn_dit.models import MODEL_NAMES, create_model

TINY = {"input_size": 16, "num_classes": 3, "width": 32, "depth": 2}
FAMILIES = ("GSPN-S/4", "GSPN-DiT-S/4", "DiT-S/4")

# Parameters in millions: arXiv 2501.12381, table 3, and arXiv 2212.09748, table 4.
GSPN_PUBLISHED = {"GSPN-B/2": 137, "GSPN-L/2": 443, "GSPN-XL/2": 690}
DIT_PUBLISHED = {"DiT-S/2": 33, "DiT-B/2": 130, "DiT-L/2": 458, "DiT-XL/2": 675}


def parameters(name: str, **overrides) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, **overrides).parameters())


@pytest.mark.parametrize(("name", "millions"), [*GSPN_PUBLISHED.items(), *DIT_PUBLISHED.items()])
def test_published_parameter_counts(name, millions):
    assert parameters(name) == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("dit", DIT_PUBLISHED)
def test_gspn_dit_is_as_large_as_its_dit(dit):
    assert parameters(f"GSPN-{dit}") == pytest.approx(parameters(dit), rel=0.03)


def test_registry_holds_every_size_of_every_family():
    sizes = {family: [n for n in MODEL_NAMES if n.rsplit("-", 1)[0] == family] for family in ("GSPN", "DiT")}
    assert sizes["GSPN"] == [f"GSPN-{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4)]
    assert sizes["DiT"] == [f"DiT-{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (1, 2, 4, 8)]
    assert len(MODEL_NAMES) == 8 + 16 + 16


def test_direction_skip_adds_the_five_percent_that_published_counts_leave_out():
    assert parameters("GSPN-B/2", direction_skip=True) / parameters("GSPN-B/2") == pytest.approx(
        1.05, abs=0.01
    )


def test_create_model_is_the_packages_own_name():
    assert gspn_dit.create_model is create_model
    with pytest.raises(AttributeError, match="create_modle"):
        _ = gspn_dit.create_modle


@pytest.mark.parametrize("name", FAMILIES)
def test_config_survives_yaml_and_rebuilds_the_model(name):
    model = create_model(name, **TINY, learn_sigma=False, position="learned", in_channels=2)
    config = yaml.safe_load(yaml.safe_dump(model.config))
    rebuilt = create_model(**config)
    assert rebuilt.config == model.config
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert (rebuilt.num_classes, rebuilt.in_channels, rebuilt.input_size) == (3, 2, 16)


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name.startswith("GSPN") and "/2" in name])
def test_gspn_models_have_no_positional_embedding(name):
    with torch.device("meta"):
        model = create_model(name)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert model.embed_position is None
    assert not [key for key in tensors if "position" in key]


def segments(name: str, **overrides) -> list[int]:
    with torch.device("meta"):
        model = create_model(name, **overrides)
    return [module.segment for module in model.modules() if hasattr(module, "segment")]


def test_local_and_global_blocks():
    assert segments("GSPN-B/2") == [2] * 29 + [0] * 2
    assert segments("GSPN-DiT-B/2") == [0] * 12
    assert segments("GSPN-DiT-B/2", global_blocks=3, segment=4) == [4] * 9 + [0] * 3
    assert segments("GSPN-S/2", global_blocks=0) == [2] * 25
    assert segments("DiT-S/2") == []


def test_scans_are_row_stochastic_unless_asked():
    with torch.device("meta"):
        assert create_model("GSPN-DiT-B/2").config["normalization"] == "row_stochastic"
        assert create_model("GSPN-S/4", normalization="sigmoid").config["normalization"] == "sigmoid"
        assert create_model("DiT-S/4").config["normalization"] is None


def test_groups_follow_the_family():
    with torch.device("meta"):
        assert create_model("GSPN-B/2").config["groups"] == 900
        assert create_model("GSPN-DiT-B/2").config["groups"] == 768 // 16


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("DiT-Q/2", {}, r"model name is 'DiT-Q/2'; expected one of GSPN-S/2, .*DiT-XL/8"),
        ("DiT-S/2", {"widht": 8}, "'widht' is unknown; expected one of name, label_std"),
        ("DiT-S/8", {"input_size": 30}, "input_size is 30; expected a multiple of 8"),
        ("DiT-S/2", {"width": 0}, "width is 0; expected an integer of 1 or more"),
        ("DiT-S/2", {"width": 64.0}, "width is 64.0; expected an integer"),
        ("DiT-S/2", {"depth": True}, "depth is True; expected an integer"),
        ("DiT-S/2", {"mlp_ratio": -1}, "mlp_ratio is -1; expected a number above 0"),
        ("DiT-S/2", {"mlp_ratio": float("inf")}, "mlp_ratio is inf; expected a number above 0"),
        ("DiT-S/2", {"label_std": float("nan")}, "label_std is nan; expected a number above 0"),
        ("DiT-S/2", {"learn_sigma": 1}, "learn_sigma is 1; expected true or false"),
        ("DiT-S/2", {"position": "rope"}, "position is 'rope'; expected one of none, sincos, learned"),
        ("DiT-S/2", {"heads": 7}, "heads is 7; expected a divisor of the width 384"),
        ("DiT-S/2", {"groups": 4}, "groups is 4; expected none: mixer 'attention' has no use for it"),
        ("DiT-S/2", {"position": "sincos", "width": 66, "heads": 1}, "width is 66; expected a multiple of 4"),
        ("GSPN-DiT-S/2", {"heads": 6}, "heads is 6; expected none: mixer 'gspn' has no use for it"),
        ("GSPN-DiT-S/2", {"groups": 5}, "groups is 5; expected a divisor of the width 384"),
        ("GSPN-DiT-S/2", {"segment": -1}, "segment is -1; expected an integer of 0 or more"),
        ("GSPN-DiT-S/2", {"merge": "mean"}, "merge is 'mean'; expected one of scalar, channel, linear, sum"),
        ("GSPN-DiT-S/2", {"scan": "rows"}, "scan is 'rows'; expected one of lines, identity"),
        (
            "GSPN-DiT-S/2",
            {"normalization": "softmax"},
            "normalization is 'softmax'; expected one of row_stochastic, sigmoid, none",
        ),
        ("DiT-S/2", {"normalization": "sigmoid"}, "normalization is 'sigmoid'; expected none"),
        ("GSPN-DiT-S/2", {"mixer": "mamba"}, "mixer is 'mamba'; expected one of gspn, attention"),
        ("GSPN-DiT-S/2", {"global_blocks": 13}, "global_blocks is 13; expected at most 12"),
        ("GSPN-S/2", {"depth": 3}, "depth is 3; expected an even number"),
        ("GSPN-S/2", {"mlp_ratio": 4.0}, "mlp_ratio is 4.0; expected none: GSPN-S/2 has no MLP"),
        ("DiT-S/2", {"mlp_norm_eps": 0}, "mlp_norm_eps is 0; expected a number above 0"),
        (
            "DiT-S/2",
            {"time_frequencies": "i/127"},
            "time_frequencies is 'i/127'; expected one of open, closed",
        ),
        ("GSPN-S/2", {"mlp_norm_eps": 1e-5}, "mlp_norm_eps is 1e-05; expected none: GSPN-S/2 has no MLP"),
        (
            "GSPN-DiT-S/2",
            {"block": "inverted_bottleneck", "mlp_norm_eps": 1e-5},
            "mlp_norm_eps is 1e-05; expected none: block 'inverted_bottleneck' has no MLP",
        ),
        ("GSPN-S/2", {"mlp": "swiglu"}, "mlp is 'swiglu'; expected none: GSPN-S/2 has no MLP"),
        ("GSPN-S/2", {"block": "inverted_bottleneck"}, "block is 'inverted_bottleneck'; expected none"),
        (
            "GSPN-S/2",
            {"local_path": "modulated"},
            "local_path is 'modulated'; expected none or norm: GSPN-S/2",
        ),
        (
            "GSPN-DiT-S/2",
            {"local_path": "gate"},
            "local_path is 'gate'; expected one of none, norm, modulated",
        ),
        ("GSPN-DiT-S/2", {"norm": "batch"}, "norm is 'batch'; expected one of layer, rms"),
        ("GSPN-DiT-S/2", {"conv_init": "zero"}, "conv_init is 'zero'; expected one of random, identity"),
        (
            "GSPN-DiT-S/2",
            {"kernel_sizes": [7, 4]},
            r"kernel_sizes is \(7, 4\); expected two of 7, 5, 3 and 0",
        ),
        ("GSPN-DiT-S/2", {"kernel_sizes": [7]}, r"kernel_sizes is \(7,\); expected two of 7, 5, 3 and 0"),
        ("GSPN-DiT-S/2", {"kernel_sizes": 7}, "kernel_sizes is 7; expected two of 7, 5, 3 and 0"),
        ("GSPN-DiT-S/2", {"gate": "one"}, "gate is 'one'; expected one of directions, merged, none"),
        ("GSPN-DiT-S/2", {"gain_groups": 5}, "gain_groups is 5; expected a divisor of the width 384"),
        ("GSPN-DiT-S/2", {"scan_blocks": [12]}, r"scan_blocks is \[12\]; expected blocks from 0 to 11"),
        (
            "GSPN-DiT-S/2",
            {"scan_blocks": ["last"]},
            r"scan_blocks is \('last',\); expected a list of integers",
        ),
        (
            "GSPN-DiT-S/2",
            {"scan_order": "sequential", "merge": "linear"},
            "scan_order is 'sequential'; expected parallel with merge 'linear' or direction_skip",
        ),
        (
            "GSPN-DiT-S/2",
            {"scan_order": "sequential", "direction_skip": True},
            "scan_order is 'sequential'; expected parallel",
        ),
        (
            "GSPN-DiT-S/2",
            {"forget": "learned", "normalization": "sigmoid"},
            "forget is 'learned'; expected none with normalization 'sigmoid'",
        ),
        (
            "GSPN-DiT-S/2",
            {"forget": "learned", "scan": "identity"},
            "forget is 'learned'; expected none: scan 'identity' has no weights",
        ),
        (
            "GSPN-DiT-S/2",
            {"forget": "learned", "groups": 1},
            "forget is 'learned'; expected none with groups 1",
        ),
        (
            "GSPN-DiT-S/2",
            {"block": "inverted_bottleneck", "mlp": "swiglu"},
            "mlp is 'swiglu'; expected none: block 'inverted_bottleneck' has no MLP",
        ),
        ("DiT-S/2", {"local_path": "norm"}, "local_path is 'norm'; expected none: mixer 'attention'"),
        ("DiT-S/2", {"block": "inverted_bottleneck"}, "block is 'inverted_bottleneck'; expected none: mixer"),
        ("DiT-S/2", {"mixer": "conv_attention", "gate": "merged"}, "gate is 'merged'; expected none: mixer"),
    ],
)
def test_bad_settings_are_named(name, overrides, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model(name, **overrides)
