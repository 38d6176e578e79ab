"""The hub's form: a folder that gives the same model back, to the library and to the command lines."""

import json
from pathlib import Path

import pytest
import torch
from httpx2 import Request, Response
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError

from gspn_dit import create_model, hub
from gspn_dit.checkpoint import load_model
from gspn_dit.config import load_config
from gspn_dit.errors import UserError, one_line
from gspn_dit.files import claimed
from gspn_dit.models import GSPN, DiT, weights
from gspn_dit.models.weights import FILES

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "gspn_b2.yaml"
TINY = {"input_size": 8, "in_channels": 1, "num_classes": 3, "width": 16, "depth": 2}


@pytest.mark.parametrize("name", ["GSPN-S/4", "GSPN-DiT-S/4", "DiT-S/4"])
def test_saved_model_comes_back(tmp_path, name):
    model = create_model(name, **TINY)
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    again = type(model).from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert not again.training
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError) as caught:
        create_model("DiT-S/4", **TINY).save_pretrained(tmp_path / "saved")
    assert one_line(caught.value).startswith("no space left on the disk")


def test_class_must_fit(tmp_path):
    create_model("DiT-S/4", **TINY).save_pretrained(tmp_path)
    assert isinstance(hub.from_pretrained(tmp_path), DiT)
    with pytest.raises(ValueError, match="is a DiT; expected a GSPN"):
        GSPN.from_pretrained(tmp_path)


def test_card_names_the_model(tmp_path):
    create_model("GSPN-S/4", **TINY).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0")
    assert "# GSPN-S/4" in text
    assert "3 classes" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "no usable config.json"),
        ("config.json", json.dumps({"name": "Foo"}), "no usable config.json .*model name is 'Foo'"),
        ("model.safetensors", "x", "cannot read weights .*: it is a text; expected a safetensors file"),
    ],
)
def test_broken_folder(tmp_path, name, content, message):
    create_model("DiT-S/4", **TINY).save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        hub.from_pretrained(tmp_path)


def test_released_run_stands_for_the_run(train_run, tmp_path):
    run = train_run("run")
    assert hub.main([str(run), str(tmp_path / "release")]) == 0
    expected, config, info = load_model(run)
    model, found_config, found = load_model(tmp_path / "release")
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(
        hub.from_pretrained(tmp_path / "release").state_dict(), expected.state_dict(), rtol=0, atol=0
    )
    assert found_config == config
    assert (found["step"], found["images_seen"], found["ema"]) == (info["step"], info["images_seen"], True)
    assert "after 10 steps, 80 images" in (tmp_path / "release/README.md").read_text()
    with pytest.raises(UserError, match="EMA weights alone"):
        load_model(tmp_path / "release", ema=False)
    started = train_run("started", f"train.init_from={tmp_path / 'release'}", "train.learning_rate=0")
    torch.testing.assert_close(load_model(started)[0].state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_two_releases_into_one_folder(train_run, tmp_path):
    run = train_run("run")
    who = r"release is in use by process \d+ on \S+ since"
    with claimed(tmp_path / "release"), pytest.raises(UserError, match=who):
        hub.main([str(run), str(tmp_path / "release")])
    hub.main([str(run), str(tmp_path / "release")])
    assert {path.name for path in (tmp_path / "release").iterdir()} == set(FILES)


def test_a_folder_of_other_things_takes_no_release(train_run, tmp_path):
    run = train_run("run")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "private.jpg").touch()
    with pytest.raises(
        UserError, match=r"pictures holds private\.jpg, which is of no release: give a new folder"
    ):
        hub.main([str(run), str(tmp_path / "pictures")])
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["private.jpg"]
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    assert hub.main([str(run), str(tmp_path / "clone")]) == 0


def test_hub_id_is_downloaded(train_run, tmp_path, monkeypatch):
    """The hub itself is out of reach of tests: its client is replaced by a folder."""
    release = hub.release(train_run("run"), tmp_path / "release")
    asked = []
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, timeout: asked.append(name))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: release)
    assert load_model("someone/digits")[2]["step"] == 10
    assert asked == ["someone/digits"]


def test_upload_sends_the_folder(tmp_path, monkeypatch):
    sent = {}

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        sent[repo_id] = sorted(path.name for path in folder_path.iterdir())

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, name, **settings: f"https://hub/{name}"
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    assert create_model("DiT-S/4", **TINY).push_to_hub("someone/digits") == "https://hub/someone/digits"
    assert sent == {"someone/digits": ["README.md", "config.json", "model.safetensors"]}


def test_upload_that_fails_is_one_line(tmp_path, monkeypatch):
    def unreachable(self, name, **settings):
        raise ConnectionError("no route\nat all")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    with pytest.raises(UserError, match=r"^cannot upload to some/thing \(no route\): log in[^\n]+$"):
        create_model("DiT-S/4", **TINY).push_to_hub("some/thing")


def test_unknown_hub_id(monkeypatch):
    def missing(self, name, timeout):
        raise RepositoryNotFoundError(
            "404: not there", response=Response(404, request=Request("GET", "https://hub"))
        )

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", missing)
    with pytest.raises(UserError, match="no such run or checkpoint: some/thing"):
        load_model("some/thing")


def test_hub_out_of_reach(monkeypatch):
    def unreachable(self, name, timeout):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(UserError, match="no such folder, and the hub cannot be reached: no route"):
        load_model("some/thing")


@pytest.mark.parametrize("name", [None, "stabilityai/sd-vae-ft-ema", "/data/vae", "data/vae"])
def test_release_names_no_folder_of_this_machine(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/vae").mkdir(parents=True)
    config = load_config(CONFIG, [f"data.autoencoder={name or 'null'}"])
    released = hub.without_local_autoencoder(config)
    on_the_hub = name == "stabilityai/sd-vae-ft-ema"
    assert released.data.autoencoder == (name if on_the_hub else None)
    assert hub.needs_vae(released) != on_the_hub
