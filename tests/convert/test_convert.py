"""Published weights converted: the same function as the layout's own definition, and a release in every respect."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sample
from gspn_dit import hub
from gspn_dit.checkpoint import load_model, read_state
from gspn_dit.config import load_config
from gspn_dit.convert import examine, sources
from gspn_dit.convert.__main__ import main
from gspn_dit.errors import UserError
from gspn_dit.models import create_model
from gspn_dit.models.settings import resolve_settings
from gspn_dit.models.weights import FILES
from tests.convert.published import (
    CHANNELS,
    CLASSES,
    CONFIG,
    DEPTH,
    HEADS,
    SIDE,
    WIDTH,
    DiffusersDiT,
    PublishedDiT,
    images,
    waves,
)
from tests.utils import assert_near


def save_pt(path: Path, network: torch.nn.Module) -> Path:
    torch.save(network.state_dict(), path)
    return path


def save_diffusers(folder: Path, network: torch.nn.Module, **changes) -> Path:
    """A pipeline's folder, as far as it is needed."""
    (folder / "transformer").mkdir(parents=True)
    save_file(network.state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def converted(source: Path, out: Path, *options: str) -> torch.nn.Module:
    assert main([str(source), str(out), *options]) == 0
    return load_model(out)[0]


def assert_same(ours: torch.nn.Module, theirs, t: torch.Tensor) -> None:
    """Values, and the gradients with respect to the input and to the label table, which both have alike."""
    x, y = images()
    weight = torch.randn(theirs(x, t, y).shape, generator=torch.Generator().manual_seed(2))
    results = []
    for model, table in ((ours, ours.embed_label.weight), (theirs, theirs.table)):
        z = x.clone().requires_grad_()
        value = model(z, t, y)
        results.append([value, *torch.autograd.grad((value * weight).sum(), [z, table])])
    for name, found, expected in zip(("value", "gradient of x", "gradient of labels"), *results, strict=True):
        assert_near(found, expected, name, 1e-5)


def of_dit(network: PublishedDiT):
    network.table = network.y_embedder.embedding_table.weight
    return network


class FromNoise(torch.nn.Module):
    """A SiT as a velocity from data to noise, t = 1 being noise."""

    def __init__(self, sit: PublishedDiT) -> None:
        super().__init__()
        self.sit, self.table = sit, sit.y_embedder.embedding_table.weight

    def forward(self, x, t, y):
        return -self.sit(x, 1 - t, y)


class OneEmbedding(torch.nn.Module):
    """diffusers' layout with one embedding table for all blocks, so that it has a gradient to compare."""

    def __init__(self, network: DiffusersDiT) -> None:
        super().__init__()
        self.network = network
        self.table = network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        for block in network.transformer_blocks:
            block.norm1.emb.class_embedder.embedding_table.weight = self.table

    def forward(self, x, t, y):
        return self.network(x, t, y)


@pytest.mark.parametrize("wrapped", [False, True])
def test_dit_is_the_same_function(tmp_path, wrapped):
    network = PublishedDiT()
    content = {"ema": network.state_dict(), "model": {}, "args": Namespace(model="DiT-S/2", vae="mse")}
    torch.save(content if wrapped else network.state_dict(), tmp_path / "DiT-tiny.pt")
    model = converted(tmp_path / "DiT-tiny.pt", tmp_path / "out", "--heads", str(HEADS))
    assert_same(model, of_dit(network), torch.tensor([0.0, 421.0, 999.0]))


@pytest.mark.parametrize("out_channels", [CHANNELS, 2 * CHANNELS])
def test_sit_is_the_same_function_with_time_reversed(tmp_path, out_channels):
    sit = PublishedDiT(out_channels, sit=True)
    source = save_pt(tmp_path / "SiT-tiny.pt", sit)
    model = converted(source, tmp_path / "out", "--heads", str(HEADS))
    assert_same(model, FromNoise(sit), torch.tensor([0.0, 0.3, 1.0]))


@pytest.mark.parametrize("part", ["", "transformer"])
def test_diffusers_dit_is_the_same_function(tmp_path, part):
    network = DiffusersDiT()
    source = save_diffusers(tmp_path / "pipeline", network) / part
    model = converted(source, tmp_path / "out")
    assert_same(model, OneEmbedding(network), torch.tensor([0.0, 421.0, 999.0]))


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_epsilon_of_diffusers_second_norm(tmp_path, eps):
    """In float64, where it shows; at t = 0, whose sinusoids have no rounding."""
    network = DiffusersDiT(eps)
    source = save_diffusers(tmp_path / "pipeline", network, norm_eps=eps)
    model = converted(source, tmp_path / "out").double()
    x, y = images()
    t = torch.zeros(3)
    expected = network.double()(x.double(), t.double(), y)
    assert_near(model(x.double(), t, y), expected, tolerance=1e-7)  # positions are float32 there
    network.eps = 1e-6
    with pytest.raises(AssertionError, match="error"):
        assert_near(model(x.double(), t, y), network(x.double(), t.double(), y), tolerance=1e-7)


@pytest.mark.parametrize(("spacing", "last"), [(None, 128), ("open", 128), ("closed", 127)])
def test_frequencies_of_the_time(spacing, last):
    model = create_model("DiT-S/2", width=16, depth=1, heads=2, time_frequencies=spacing)
    seen = []
    model.embed_time.hidden.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    t = torch.tensor([1.0, 30.0])
    model.embed_time(t)
    assert_near(seen[0], waves(t.double(), last).float(), tolerance=2e-5)


def test_a_model_without_the_new_settings_is_as_before():
    """Their defaults are what was computed without them, to the bit."""
    torch.manual_seed(0)
    model = create_model("DiT-S/2", width=16, depth=2, heads=2, num_classes=3, input_size=8)
    assert (model.config.pop("time_frequencies"), model.config.pop("mlp_norm_eps")) == ("open", 1e-6)
    assert resolve_settings(**model.config).to_dict() == model.settings.to_dict()
    t = torch.tensor([0.0, 1.0, 577.0, 999.0])
    exponents = torch.arange(128) / 128
    angles = t.unsqueeze(1) * torch.exp(-torch.tensor(10_000.0, dtype=torch.float64).log().item() * exponents)
    seen = []
    model.embed_time.hidden.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.embed_time(t)
    assert torch.equal(seen[0], torch.cat([angles.cos(), angles.sin()], dim=1))


# What the result is


def test_a_release_like_any_other(tmp_path, capsys):
    network = PublishedDiT()
    source = save_pt(tmp_path / "DiT-tiny.pt", network)
    model = converted(source, tmp_path / "out", "--heads", str(HEADS))
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        f"DiT, as model DiT-S/2: {DEPTH} blocks of width {WIDTH}, {HEADS} heads of {WIDTH // HEADS}, patches of 2, "
        f"input 4x{SIDE}x{SIDE}, output 8x{SIDE}x{SIDE}, {CLASSES} classes (objective ddpm)"
    )
    _, config, info = load_model(tmp_path / "out")
    assert (info["step"], info["images_seen"], info["ema"]) == (None, None, True)
    assert (config.diffusion.objective, config.sample.sampler, config.sample.steps) == ("ddpm", "ddpm", 250)
    assert config.data.autoencoder == "stabilityai/sd-vae-ft-ema"
    again = hub.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert "not of this project" in card and "CC-BY-NC 4.0" in card and "DiT-tiny.pt" in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "config.yaml").read_text()
    hub.main([str(tmp_path / "out"), str(tmp_path / "again")])  # for --push
    assert (tmp_path / "again" / "README.md").read_text() == card


def test_what_a_flow_is_sampled_with(tmp_path):
    sit = PublishedDiT(sit=True)
    options = Namespace(
        model="SiT-S/2", path_type="Linear", prediction="velocity", num_classes=CLASSES, vae="mse"
    )
    torch.save({"ema": sit.state_dict(), "args": options}, tmp_path / "0400000.pt")
    assert main([str(tmp_path / "0400000.pt"), str(tmp_path / "out"), "--heads", "4"]) == 0
    config = load_config(tmp_path / "out" / "config.yaml")
    assert (config.diffusion.objective, config.sample.sampler) == ("flow", "heun")
    assert config.model.time_scale == 1.0
    assert config.data.autoencoder == "stabilityai/sd-vae-ft-mse"


def test_diffusers_decoder_is_that_of_the_pipeline(tmp_path):
    source = save_diffusers(tmp_path / "pipeline", DiffusersDiT())
    (source / "vae").mkdir()
    (source / "vae" / "config.json").write_text(json.dumps({"_name_or_path": "stabilityai/sd-vae-ft-mse"}))
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert load_config(tmp_path / "out" / "config.yaml").data.autoencoder == "stabilityai/sd-vae-ft-mse"


def test_sampled_and_a_start_for_training(tmp_path, train_run, monkeypatch):
    """On pixels: their decoder is none. The weights start a run only where they mean the same."""
    monkeypatch.setattr("tests.convert.published.CHANNELS", 1)
    monkeypatch.setattr("tests.convert.published.CLASSES", 10)
    monkeypatch.setattr("tests.convert.published.GRID", 16)
    monkeypatch.setattr("tests.convert.published.SIDE", 32)
    source = save_pt(tmp_path / "SiT-tiny.pt", PublishedDiT(1, sit=True))
    model = converted(source, tmp_path / "out", "--heads", "4")
    arguments = ["--classes", "0,3", "--per-class", "1", "--steps", "1", "--out", str(tmp_path / "grid.png")]
    assert sample.main([str(tmp_path / "out"), *arguments]) == 0
    assert (tmp_path / "grid.png").exists()
    told = load_config(tmp_path / "out" / "config.yaml").model
    settings = {"name": told.name, "width": told.width, "depth": told.depth, "heads": told.heads}
    overrides = [f"model.{key}={value}" for key, value in settings.items()]
    overrides += [
        f"train.init_from={tmp_path / 'out'}",
        "train.learning_rate=0",
        "train.steps=1",
        "train.validation_images=0",
    ]
    with pytest.raises(UserError, match=r"model\.time_scale is 1000\.0, .* give model\.time_scale=1\.0"):
        train_run("wrong", *overrides)
    run = train_run("run", *overrides, "model.time_scale=1.0")
    torch.testing.assert_close(load_model(run)[0].state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_named_sizes_are_recognised(tmp_path):
    """XL has 16 heads of 72: by its width, not by a size of a head that all have."""
    for name in ("DiT-S/2", "DiT-B/4", "DiT-L/8", "DiT-XL/2"):
        settings = resolve_settings(name)
        sizes = examine.Sizes(
            settings.width, settings.depth, 4 * settings.width, settings.patch_size, 4, 8, 1000
        )
        source = sources.Source("DiT.pt", tmp_path, {})
        heads = examine.usual_heads(source, sizes)
        assert heads == settings.heads
        found = examine.named(source, examine.Found("dit", sizes, 32, {}), heads)
        assert found.model == {"name": name}


# The hub


@pytest.fixture
def on_the_hub(monkeypatch):
    """The hub itself is out of reach of tests: its client is replaced by a folder; what was asked for is kept."""
    asked = []

    def offer(folder: Path) -> list:
        def snapshot(name, allow_patterns):
            asked.append((name, allow_patterns))
            return folder

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, timeout: None)
        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
        return asked

    return offer


def test_a_folder_on_the_hub(tmp_path, on_the_hub):
    asked = on_the_hub(save_diffusers(tmp_path / "pipeline", DiffusersDiT()))
    assert main(["someone/DiT", str(tmp_path / "out")]) == 0
    assert read_state(tmp_path / "out")["origin"].count("`someone/DiT`") == 1
    ((name, patterns),) = asked
    assert name == "someone/DiT" and "transformer/diffusion_pytorch_model.safetensors" in patterns
    assert not [pattern for pattern in patterns if pattern.endswith(".bin")]


def test_a_file_on_the_hub(tmp_path, on_the_hub):
    (tmp_path / "hub").mkdir()
    save_pt(tmp_path / "hub" / "SiT-tiny.pt", PublishedDiT(sit=True))
    asked = on_the_hub(tmp_path / "hub")
    assert main(["someone/SiTs/SiT-tiny.pt", str(tmp_path / "out"), "--heads", "4"]) == 0
    assert asked == [("someone/SiTs", ["SiT-tiny.pt"])]
    with pytest.raises(UserError, match=r"someone/SiTs holds no other\.pt"):
        main(["someone/SiTs/other.pt", str(tmp_path / "out2")])


def test_a_pickle_of_diffusers_where_there_is_nothing_else(tmp_path, on_the_hub):
    network = DiffusersDiT()
    source = save_diffusers(tmp_path / "pipeline", network) / "transformer"
    (source / "diffusion_pytorch_model.safetensors").unlink()
    save_pt(source / "diffusion_pytorch_model.bin", network)
    asked = on_the_hub(tmp_path / "pipeline")
    assert main(["someone/DiT", str(tmp_path / "out")]) == 0
    assert [any(name.endswith(".bin") for name in patterns) for _, patterns in asked] == [False, True]


# What cannot be
