"""What is refused of published weights: one line, and nothing written."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from gspn_dit.checkpoint import load_model
from gspn_dit.convert.__main__ import main
from gspn_dit.errors import UserError
from tests.convert.published import (
    CHANNELS,
    DiffusersDiT,
    PublishedDiT,
)

from .test_convert import save_diffusers, save_pt


def broken(change) -> dict[str, torch.Tensor]:
    state = PublishedDiT().state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("blocks.1.mlp.fc2.bias"),
            r"lacks blocks\.1\.mlp\.fc2\.bias, which DiT's layout has",
        ),
        (lambda s: s.update(extra=torch.zeros(1)), r"holds extra, which DiT's layout has not \(1 such"),
        (
            lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(12)}),
            r"holds blocks\.0\.attn\.q_norm\.weight, which DiT's layout has not",
        ),
        (
            lambda s: s.update({"blocks.0.attn.proj.weight": torch.zeros(48, 47)}),
            r"blocks\.0\.attn\.proj\.weight has shape \[48, 47\]; expected \[48, 48\]",
        ),
        (
            lambda s: s.update({"x_embedder.proj.weight": torch.zeros(48, 16)}),
            r"x_embedder\.proj\.weight has shape \[48, 16\]; expected 4 axes",
        ),
        (
            lambda s: s.update(pos_embed=torch.zeros(1, 15, 48)),
            "pos_embed has 15 positions; expected a square",
        ),
        (lambda s: s.update(pos_embed=torch.zeros(1, 16, 48)), "pos_embed is not DiT's table of sines"),
        (lambda s: s["blocks.2.mlp.fc1.weight"].fill_(torch.nan), r"fc1\.weight is not finite numbers"),
        (lambda s: s.pop("x_embedder.proj.weight"), r"is no DiT: of its \d+ tensors none is x_embedder"),
        (lambda s: s.clear() or s.update(weight=torch.zeros(2)), "is no DiT: of its 1 tensors"),
        (lambda s: s.clear() or s.update(step=7), "holds no state dict"),
        (lambda s: s.clear(), "holds no state dict"),
    ],
)
def test_wrong_weights(tmp_path, change, message):
    torch.save(broken(change), tmp_path / "DiT.pt")
    with pytest.raises(UserError, match=message) as error:
        main([str(tmp_path / "DiT.pt"), str(tmp_path / "out"), "--heads", "4"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"has width 48, which is none of DiT's \(384, 768, 1024, 1152\), .* give --heads N"),
        (["--heads", "5"], "heads is 5; expected a divisor of the width 48"),
        (["--heads", "0"], "--heads 0: expected at least 1"),
        (["--heads", "4", "--vae", "no id"], "--vae no id: expected the hub id"),
        (["--kind", "gan"], "invalid choice"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        main([str(save_pt(tmp_path / "DiT.pt", PublishedDiT())), str(tmp_path / "out"), *options])


def test_dit_or_sit_is_asked_for(tmp_path):
    source = save_pt(tmp_path / "weights.pt", PublishedDiT())
    with pytest.raises(UserError, match=r"may be a DiT or a SiT, .* give --kind dit or --kind sit"):
        main([str(source), str(tmp_path / "out"), "--heads", "4"])
    assert main([str(source), str(tmp_path / "out"), "--heads", "4", "--kind", "sit"]) == 0
    assert load_model(tmp_path / "out")[1].diffusion.objective == "flow"


def test_a_dit_without_variance_is_refused(tmp_path):
    source = save_pt(tmp_path / "DiT.pt", PublishedDiT(CHANNELS))
    with pytest.raises(UserError, match="predicts 4 channels of 4; expected 8, noise and variance"):
        main([str(source), str(tmp_path / "out"), "--heads", "4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path_type": "GVP"}, "was trained with path_type GVP; expected Linear"),
        ({"path_type": "Linear", "prediction": "score"}, "with prediction score; expected velocity"),
        ({"model": "DiT-S/2", "num_classes": 6}, "with num_classes 6; expected 5"),
    ],
)
def test_another_objective_is_refused(tmp_path, options, message):
    torch.save({"ema": PublishedDiT().state_dict(), "args": Namespace(**options)}, tmp_path / "1.pt")
    with pytest.raises(UserError, match=message):
        main([str(tmp_path / "1.pt"), str(tmp_path / "out"), "--heads", "4"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn": "geglu"}, "activation_fn is 'geglu' in config.json; expected 'gelu-approximate'"),
        ({"num_layers": 4}, "num_layers is 4 in config.json; expected 3"),
        ({"num_attention_heads": None}, "num_attention_heads is None in config.json; expected a number"),
        ({"attention_head_dim": 13}, "attention_head_dim is 13 in config.json; expected 12"),
        ({"norm_eps": -1}, "mlp_norm_eps is -1; expected a number above 0"),
        ({"sample_size": 9}, "input_size is 9; expected a multiple of 2"),
    ],
)
def test_wrong_diffusers_config(tmp_path, changes, message):
    source = save_diffusers(tmp_path / "pipeline", DiffusersDiT(), **changes)
    with pytest.raises(UserError, match=message):
        main([str(source), str(tmp_path / "out")])


def test_diffusers_blocks_with_embeddings_of_their_own(tmp_path):
    network = DiffusersDiT()
    network.transformer_blocks[2].norm1.emb.timestep_embedder.linear_2.bias.data[0] += 1e-3
    with pytest.raises(UserError, match="block 2 has other embeddings of t and y than block 0"):
        main([str(save_diffusers(tmp_path / "pipeline", network)), str(tmp_path / "out")])


def test_files_that_are_something_else(tmp_path, monkeypatch):
    whole = save_pt(tmp_path / "DiT.pt", PublishedDiT()).read_bytes()
    torch.save(PublishedDiT().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    files = {
        "a.npy": (b"\x93NUMPY\x01\x00", r"SOURCE a\.npy is a \.npy, one array of numpy: expected a \.pt"),
        "cut.pt": (whole[:3000], r"SOURCE cut\.pt is a zip archive that is cut short or damaged"),
        "pickle.pt": (
            (tmp_path / "old.pt").read_bytes()[:3000],
            r"is a pickle that is cut short, or holds more",
        ),
        "code.pt": (
            b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
            r"holds more than tensors, which is not",
        ),
        "page.pt": (b"<!DOCTYPE html>", r"SOURCE page\.pt is a web page"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            main([str(tmp_path / name), str(tmp_path / "out")])
        assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        main([str(tmp_path / "list.pt"), str(tmp_path / "out")])
    assert main([str(tmp_path / "old.pt"), str(tmp_path / "out"), "--heads", "4", "--kind", "dit"]) == 0


def test_places_that_cannot_be(tmp_path):
    source = save_diffusers(tmp_path / "pipeline", DiffusersDiT())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    for out, message in (
        ("taken", r"FOLDER \S+taken exists and is not empty: give a new one"),
        ("pipeline/out", "lies in SOURCE"),
        ("taken/notes.txt/out", "is a text, not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(source), str(tmp_path / out)])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"has no readable config\.json"):
        main([str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert main([str(source), str(tmp_path / "out")]) == 0
    with pytest.raises(UserError, match="is a run or a release of this project"):
        main([str(tmp_path / "out"), str(tmp_path / "out2")])
    with pytest.raises(UserError, match=r"no such SOURCE: missing\.pt; expected a \.pt of DiT's"):
        main(["missing.pt", str(tmp_path / "out2")])


def test_the_command_line_ends_with_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "gspn_dit.convert", str(tmp_path / "no.pt"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no such SOURCE: ") and done.stderr.count("\n") == 1
