"""What a run takes of the weights of another network, and what it says of it."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from gspn_dit import hub
from gspn_dit.checkpoint import latest_checkpoint, load_model
from gspn_dit.data.mnist import Digits
from gspn_dit.errors import UserError
from gspn_dit.models import create_model
from gspn_dit.models.weights import read_weights
from gspn_dit.training import trainer
from gspn_dit.training.transfer import begin_from, interpolated
from tests.training.run_state import final_state

FAST = "train.validation_images=0"
DIT = ("model.name=DiT-S/8", "model.depth=2", FAST)
GSPN_DIT = ("model.depth=2", FAST)
STILL = ("train.learning_rate=0", "train.steps=1", FAST)
SHAPE = {"input_size": 32, "in_channels": 1, "num_classes": 10, "learn_sigma": False}


def weights(run, name="ema"):
    return load_file(latest_checkpoint(run) / f"{name}.safetensors")


def started(train_run, name, source, *overrides):
    """The weights of a run that takes those of `source` and does not move; the averaged ones are the same."""
    run = train_run(name, f"train.init_from={source}", *STILL, *overrides)
    found = weights(run)
    torch.testing.assert_close(weights(run, "model"), found, rtol=0, atol=0)
    return found


def name_classes(monkeypatch, names):
    begun = Digits.__init__

    def named(self, *split):
        begun(self, *split)
        self.class_names = names

    monkeypatch.setattr(Digits, "__init__", named)


def equal(found, expected, prefixes, *, but=()):
    names = [n for n in found if n.startswith(prefixes) and not any(part in n for part in but)]
    assert names
    for name in names:
        assert torch.equal(found[name], expected[name]), name


@pytest.fixture
def dit(train_run):
    return train_run("dit", *DIT)


def counted(line):
    """The two counts of the line that says what was taken."""
    found = re.search(r"^taken: ([\d,]+) parameters .*; begun anew: ([\d,]+) parameters ", line, re.MULTILINE)
    return [int(number.replace(",", "")) for number in found.groups()]


def test_gspn_dit_takes_all_of_dit_but_the_mixer(train_run, dit, capsys):
    capsys.readouterr()
    found, source = started(train_run, "other", dit, *GSPN_DIT), weights(dit)
    said = capsys.readouterr().out
    parts = ("embed_", "final", "blocks.0.mlp", "blocks.1.mlp", "blocks.0.modulation", "blocks.1.modulation")
    equal(found, source, parts)
    for block in range(2):
        assert not found[f"blocks.{block}.mixer.proj_out.weight"].any()
        assert found[f"blocks.{block}.mixer.core.to_lam.weight"].any()
    anew = sum(tensor.numel() for name, tensor in found.items() if ".mixer." in name)
    assert counted(said) == [sum(tensor.numel() for tensor in found.values()) - anew, anew]
    names = "blocks.*.mlp, blocks.*.modulation, embed_label, embed_patches, embed_time, final"
    assert f"parameters ({names}); begun anew: {anew:,} parameters (blocks.*.mixer)" in said
    assert "positions: none, the weights are for sincos" in said


def test_it_begins_as_the_network_without_its_mixers(train_run, dit):
    source, _, _ = load_model(dit)
    found = create_model("GSPN-DiT-S/8", width=16, depth=2, position="sincos", **SHAPE)
    with torch.no_grad():
        source_weights = latest_checkpoint(dit)
        begin_from(source_weights, found, Digits(), lambda line: None)
        for block in source.blocks:
            for parameter in block.mixer.proj_out.parameters():
                parameter.zero_()
        x, t = torch.randn(2, 1, 32, 32), torch.tensor([0.2, 0.7])
        torch.testing.assert_close(found(x, t, torch.tensor([1, 10])), source(x, t, torch.tensor([1, 10])))


def test_the_mixer_that_begins_anew_is_trained(train_run, dit):
    run = train_run("other", f"train.init_from={dit}", *GSPN_DIT)
    assert all(weights(run)[f"blocks.{block}.mixer.proj_out.weight"].any() for block in range(2))


def test_what_depends_on_the_mixer_begins_anew(train_run, dit, capsys):
    """A modulated local path: two scales more, and an MLP of another width unless it is asked to be the same."""
    modulated = (*GSPN_DIT, "model.local_path=modulated")
    found, source = started(train_run, "narrow", dit, *modulated), weights(dit)
    said = capsys.readouterr().out
    assert "blocks.*.mixer, blocks.*.mlp, blocks.*.modulation.local_path" in said
    assert "the MLPs are begun anew: model.mlp_ratio=4.0 would take them" in said
    assert not found["blocks.0.mlp.out.weight"].any() and found["blocks.0.mlp.hidden.weight"].any()
    rows = found["blocks.0.modulation.weight"]
    assert torch.equal(rows[: 6 * 16], source["blocks.0.modulation.weight"]) and not rows[6 * 16 :].any()
    found = started(train_run, "equal", dit, *modulated, "model.mlp_ratio=4.0")
    equal(found, source, ("blocks.0.mlp", "blocks.1.mlp"))
    assert "would take them" not in capsys.readouterr().out


def test_a_mixer_that_is_the_same_is_taken_with_its_scales(train_run):
    """Whatever else begins anew; and what has no gate to be taken begins as it always does."""
    first = train_run("first", *GSPN_DIT, "model.local_path=modulated", "model.block=inverted_bottleneck")
    found = started(
        train_run, "found", first, *GSPN_DIT, "model.local_path=modulated", "model.mlp_ratio=3.25"
    )
    assert not found["blocks.0.modulation.weight"][
        3 * 16 :
    ].any()  # the MLP's and, of a new mixer, the local path's
    assert found["blocks.0.mlp.out.weight"].any() and not found["blocks.0.mixer.proj_out.weight"].any()
    second = train_run("second", *GSPN_DIT, "model.local_path=modulated", "model.mlp_ratio=4")
    found = started(train_run, "again", second, *GSPN_DIT, "model.local_path=modulated")
    equal(found, weights(second), ("blocks.0.mixer", "blocks.0.modulation"))


def test_other_classes_begin_the_label_table_anew(train_run, monkeypatch, capsys):
    first = train_run("first", FAST)
    name_classes(monkeypatch, [f"class {number}" for number in range(10)])
    found, source = started(train_run, "named", first), weights(first)
    said = capsys.readouterr().out
    assert "the label table is begun anew: other classes, such as class 0 where the weights have 0" in said
    assert "begun anew: 176 parameters (embed_label)" in said
    equal(found, source, ("embed_patches", "embed_time", "final", "blocks"))
    assert not torch.isclose(found["embed_label.weight"], source["embed_label.weight"]).any()

    name_classes(monkeypatch, ["few"])
    monkeypatch.setattr(Digits, "num_classes", 1)
    original = Digits.draw
    monkeypatch.setattr(
        Digits, "draw", lambda *a: (original(*a)[0], torch.zeros(len(a[1]), dtype=torch.int64))
    )
    found = started(train_run, "fewer", first)
    assert found["embed_label.weight"].shape == (2, 16)
    assert "the label table is begun anew: 1 classes, the weights are for 10" in capsys.readouterr().out


def test_an_equal_network_takes_all_and_says_no_more(train_run, capsys):
    first = train_run("first", FAST)
    capsys.readouterr()
    torch.testing.assert_close(started(train_run, "second", first), weights(first), rtol=0, atol=0)
    said = capsys.readouterr().out
    assert "starting from the EMA weights of" in said
    assert not any(word in said for word in ("taken:", "anew", "positions"))


def of_size(folder, size, tmp_path, **settings):
    """What a network for images of this size takes of the weights in `folder`, and the lines said."""
    model = create_model("GSPN-DiT-S/8", width=16, depth=1, **{**SHAPE, "input_size": size}, **settings)
    said = []
    begin_from(latest_checkpoint(folder), model, Digits(), said.append)
    return model, said


def test_images_of_another_size(train_run, tmp_path):
    plain = train_run("plain", FAST)
    model, said = of_size(plain, 64, tmp_path)
    torch.testing.assert_close(model.state_dict(), weights(plain), rtol=0, atol=0)
    assert len(said) == 1

    waves = train_run("waves", FAST, "model.position=sincos")
    model, said = of_size(waves, 64, tmp_path, position="sincos")
    torch.testing.assert_close(model.state_dict(), weights(waves), rtol=0, atol=0)
    assert said[1:] == ["positions of 8x8 tokens, the weights are for 4x4: begun anew (they are computed)"]

    learned = train_run("learned", FAST, "model.position=learned")
    model, said = of_size(learned, 64, tmp_path, position="learned")
    table = weights(learned)["embed_position.table"]
    assert torch.equal(model.embed_position.table, interpolated(table, 8))
    assert said[-1] == "positions of 8x8 tokens, the weights are for 4x4: interpolated"
    assert counted(said[1])[1] == 0
    _, said = of_size(waves, 32, tmp_path, position="learned")
    assert "begun anew: 256 parameters (embed_position)" in said[1]
    assert said[2] == "positions: learned, the weights are for sincos"


def test_a_table_is_interpolated_between_the_same_corners():
    """Of a plane interpolation gives the plane, nearly (the step is 1 / 16), but for the border."""
    rows = (torch.arange(8.0) + 0.5) / 8
    table = torch.stack([rows[:, None].expand(8, 8), rows[None].expand(8, 8)], dim=2)
    fine = (torch.arange(16.0) + 0.5) / 16
    found = interpolated(table, 16)
    assert found.shape == (16, 16, 2)
    torch.testing.assert_close(found[4:12, 0, 0], fine[4:12], rtol=0, atol=0.01)
    torch.testing.assert_close(found[3, 4:12, 1], fine[4:12], rtol=0, atol=0.01)


def test_a_release_is_a_start_too(train_run, dit, tmp_path):
    release = hub.release(dit, tmp_path / "release")
    found = started(train_run, "other", release, *GSPN_DIT)
    torch.testing.assert_close(found, started(train_run, "run", dit, *GSPN_DIT), rtol=0, atol=0)


def test_a_start_that_differs_is_resumed_to_the_bit(train_run, dit):
    settings = (f"train.init_from={dit}", *GSPN_DIT, "train.schedule=constant")
    straight = train_run("straight", *settings)
    train_run("broken", *settings, "train.steps=4")
    assert final_state(train_run("broken", *settings)) == final_state(straight)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.depth=2",), "are of another model: depth 1, expected 2: give model.depth=1"),
        (("model.width=32",), "are of another model: width 16, expected 32: give model.width=16"),
        (
            ("model.name=GSPN-DiT-S/4",),
            "another model: patch_size 8, expected 4: give a model.name that ends in /8",
        ),
        (
            ("model.name=GSPN-S/4", "model.depth=2"),
            "model.name is GSPN-S/4, but the weights of train.init_from",
        ),
        (("diffusion.objective=ddpm",), "of another model, of objective flow: give diffusion.objective=flow"),
        (("model.norm=rms",), "model.norm is rms, but the weights of"),
        (("model.time_scale=1.0",), "are for 1000.0: give model.time_scale=1000.0"),
        (("model.mlp_norm_eps=1.0e-5",), "are for 1e-06: give model.mlp_norm_eps=1e-06"),
        (("model.module=paper",), "are for normed: give model.module=normed"),
        (("model.local_path=norm",), "are for none: give model.local_path=none"),
        (("model.scan=identity",), "are for lines: give model.scan=lines"),
        (("model.normalization=sigmoid",), "are for row_stochastic: give model.normalization=row_stochastic"),
        (("model.scan_order=sequential",), "are for parallel: give model.scan_order=parallel"),
    ],
)
def test_what_cannot_fit_is_one_line_before_the_work(train_run, monkeypatch, overrides, message):
    first = train_run("first", FAST)
    for name in ("build_model", "open_decoder", "create_optimizer"):
        monkeypatch.setattr(trainer, name, lambda *_: pytest.fail("the work was begun"))
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        train_run("other", f"train.init_from={first}", *overrides)
    assert message in str(caught.value)


def test_how_far_scans_go_may_change_and_is_told(train_run, capsys):
    first = train_run("first", FAST)
    train_run("local", f"train.init_from={first}", "model.global_blocks=0", "model.segment=4", *STILL)
    said = capsys.readouterr().out
    assert "model.global_blocks is 0, the weights are for 1" in said
    assert "model.segment is 4, the weights are for 2" in said


def test_other_channels_and_heads_are_refused(train_run, dit, monkeypatch):
    two_heads = (*DIT, "model.heads=2")
    with pytest.raises(UserError, match=r"model\.heads is 2, but .* are for 1: give model\.heads=1"):
        train_run("heads", f"train.init_from={dit}", *two_heads)
    monkeypatch.setattr(Digits, "channels", 3)
    monkeypatch.setattr(Digits, "autoencoder", "/none")
    with pytest.raises(UserError, match="in_channels 1, expected 3: take other weights, or data of as many"):
        train_run("channels", f"train.init_from={dit}", *DIT)


def test_weights_that_are_not_finite_are_refused(dit):
    file = latest_checkpoint(dit) / "ema.safetensors"
    tensors = load_file(file)
    tensors["final.proj.bias"][0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"final\.proj\.bias is not finite"):
        read_weights(file)
