"""What cannot end well is refused before the work: nothing is loaded, nothing drawn, and nothing left behind."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import encode_latents
import eval_fid
import sample
from experiments.__main__ import main as experiments_main
from gspn_dit import hub
from gspn_dit.config import load_config
from gspn_dit.errors import UserError
from gspn_dit.files import check_output, check_output_folder, write_json
from gspn_dit.training import run_folder, trainer
from tests.evaluation.conftest import random_images
from tests.latents.conftest import image_folder, save_vae, vae_folder  # noqa: F401 (fixtures)
from tests.sampling.conftest import flow_run, make_run  # noqa: F401 (a fixture)

PLACES = {
    "folder": ("{tmp}/folder.{end}", "it is a folder; give the name of a file"),
    "no such place": ("/proc/none/file.{end}", "cannot be written in /proc: "),
    "below a file": ("{tmp}/text/file.{end}", "text is a text, not a folder"),
    "device": ("/dev/full.{end}", "it is a device, a pipe or a socket"),
    "too long": ("{tmp}/" + "n" * 230 + ".{end}", "File name too long"),
}


@pytest.fixture
def place(request, tmp_path):
    """A place where nothing can be written, by its end, and what is said of it."""
    path, message = PLACES[request.param]
    (tmp_path / "text").write_text("a text")

    def make(end: str) -> tuple[str, str]:
        (tmp_path / f"folder.{end}").mkdir(exist_ok=True)
        return path.format(tmp=tmp_path, end=end), message

    return make


def refused(main, *arguments) -> str:
    """The one line with which a command line ends."""
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        main(list(map(str, arguments)))
    return str(caught.value)


def never(*arguments, **settings):
    pytest.fail("the work was begun")


@pytest.fixture
def no_models(monkeypatch):
    for name in ("sampling.request.load_model", "hub.load_model", "evaluation.scores.create_network"):
        monkeypatch.setattr(f"gspn_dit.{name}", never)


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_outputs_that_cannot_be_written(place, flow_run, tmp_path, no_models, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    np.savez("s.npz", arr_0=random_images(4, 0))
    np.savez("r.npz", arr_0=random_images(4, 1))
    commands = [
        (sample.main, (flow_run, "--out"), "png"),
        (sample.main, (flow_run, "--num", 3, "--npz"), "npz"),
        (eval_fid.main, ("s.npz", "--reference", "r.npz", "--json"), "json"),
        (eval_fid.main, ("s.npz", "--reference", "r.npz", "--save-reference"), "npz"),
    ]
    found = {end: place(end) for _, _, end in commands}
    before = sorted(tmp_path.rglob("*"))
    for main, arguments, end in commands:
        path, message = found[end]
        said = refused(main, *arguments, path)
        in_place = main is eval_fid.main and "its folder does not exist" in said
        assert f"{arguments[-1]} {path}" in said and (message in said or in_place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "there.png").write_text("old")
    check_output("--out", tmp_path / "there.png", in_place=True)
    check_output("--out", tmp_path / "new" / "deep" / "g.png")
    check_output_folder("OUT", tmp_path / "other" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]


def test_samples_begun_otherwise_and_classes_that_are_not_there(flow_run, tmp_path, no_models):  # noqa: F811
    file = tmp_path / "s.npz"
    file.write_bytes(b"")
    write_json(file.with_suffix(".json"), {"steps": 7})
    assert "s.npz was begun with " in refused(sample.main, flow_run, "--num", 5, "--npz", file)
    assert "--classes holds 10" in refused(sample.main, flow_run, "--classes", 10)


def test_a_decoder_of_other_latents(flow_run, vae_folder, no_models):  # noqa: F811
    said = refused(sample.main, flow_run, "--vae", vae_folder, "--out", "never.png")
    assert "is for 4 channels; the model has 1: give another" in said


def test_no_averaged_weights_are_missed_after_the_load(flow_run, tmp_path, monkeypatch):  # noqa: F811
    assert hub.main([str(flow_run), str(tmp_path / "release")]) == 0
    monkeypatch.setattr("gspn_dit.sampling.request.load_model", never)
    options = ("--no-ema", "--num", 3, "--npz", tmp_path / "s.npz")
    assert "a release has the EMA weights alone" in refused(sample.main, tmp_path / "release", *options)


def test_releases(flow_run, tmp_path, no_models):  # noqa: F811
    (tmp_path / "text").write_text("")
    for arguments, message in (
        ((tmp_path / "text",), "text is an empty file; expected a folder"),
        (("/proc/none",), "FOLDER /proc/none cannot be written in /proc"),
        ((tmp_path / "new", "--push", "no id"), "--push no id: expected ORG/NAME"),
        ((tmp_path / "new", "--private"), "--private is for an upload"),
    ):
        assert message in refused(hub.main, flow_run, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_latents_of_other_images(image_folder, vae_folder, tmp_path, monkeypatch):  # noqa: F811
    images, out = image_folder(3), tmp_path / "out"
    options = ("--vae", vae_folder, "--workers", 0)
    assert encode_latents.main([*map(str, (images, out, "--image-size", 32, *options))]) == 0
    monkeypatch.setattr("gspn_dit.latents.autoencoder.create_autoencoder", never)
    said = refused(encode_latents.main, images, out, "--image-size", 64, *options)
    assert "out holds latents with other --image-size" in said
    image_folder(4)
    said = refused(encode_latents.main, images, out, "--image-size", 32, *options)
    assert "out holds latents with other images" in said
    said = refused(encode_latents.main, images, "/proc/none/out", *options)
    assert "OUT /proc/none/out cannot be written in /proc" in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sample.classes=[10]",), "sample.classes: expected classes from 0 to 9, got 10"),
        (("model.width=18", "model.groups=4"), "model: groups is 4; expected a divisor of the width 18"),
        (("train.init_from=nowhere",), "no such run or checkpoint: nowhere"),
        (("train.wandb=project",), "train.wandb needs wandb: pip install wandb"),
        (("eval.samples=1",), "eval.samples: expected at least 2, or 0 for no table, got 1"),
        (("run_dir=/proc/none/run",), "run_dir /proc/none/run cannot be written in /proc"),
        (("run_dir={tmp}/tiny.yaml",), "tiny.yaml is a text; expected a folder"),
    ],
)
def test_trainings(overrides, message, tiny_yaml, tmp_path, monkeypatch):
    for name in ("build_model", "open_decoder", "create_optimizer"):
        monkeypatch.setattr(trainer, name, never)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        trainer.train(load_config(tiny_yaml, [part.format(tmp=tmp_path) for part in overrides]))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.width=18", "model.groups=4"), "model: groups is 4; expected a divisor of the width 18"),
        (("data.size=33",), "model: input_size is 33; expected a multiple of"),
    ],
)
def test_models_of_images_that_are_not_read_yet(overrides, message, tiny_yaml, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "create_dataset", never)
    (tmp_path / "images").mkdir()
    images = ("data.kind=images", f"data.path={tmp_path / 'images'}", "data.size=32")
    with pytest.raises(UserError) as caught:
        trainer.train(load_config(tiny_yaml, [*images, *overrides]))
    assert message in str(caught.value)


def test_trainings_that_are_of_another_run(train_run, monkeypatch):
    run = train_run("run")
    for name in ("build_model", "open_decoder", "create_optimizer"):
        monkeypatch.setattr(trainer, name, never)
    for override, message in (
        ("train.seed=5", "train.seed is 5, but "),
        ("train.steps=7", "is further: raise it"),
    ):
        with pytest.raises(UserError, match=message):
            train_run(run.name, override)


def test_a_decoder_that_does_not_fit_the_data_ends_no_training_later(tiny_yaml, tmp_path, monkeypatch):
    vae = save_vae(tmp_path / "vae")
    with pytest.raises(UserError, match="is for 4 channels; the model has 1: give another"):
        trainer.train(load_config(tiny_yaml, [f"data.autoencoder={vae}"]))


def test_a_disk_without_room_for_checkpoints(train_run, tmp_path, monkeypatch, capsys):
    free = SimpleNamespace(free=10**5)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: free)
    with pytest.raises(
        UserError, match=r"run needs room for 3 more checkpoints of 0.00 GB.*choose another disk"
    ):
        train_run("run")
    free.free = 5 * 10**5
    train_run("other")
    assert "the run will need room for 3 more checkpoints" in capsys.readouterr().out
    free.free = 10**7
    train_run("third")
    assert "need room" not in capsys.readouterr().out


@pytest.mark.parametrize("network", ["pixels", "digit classifier 0123"])
def test_statistics_of_another_network_before_a_run_is_sampled(network, flow_run, tmp_path, no_models):  # noqa: F811
    about = np.frombuffer(json.dumps({"network": network}).encode(), dtype=np.uint8)
    np.savez(tmp_path / "r.npz", mu=np.zeros(64), sigma=np.eye(64), about=about)
    options = ("--reference", tmp_path / "r.npz", "--features", "digits")
    assert f"holds features of {network}, not of digit classifier" in refused(
        eval_fid.main, flow_run, *options
    )
    np.savez(tmp_path / "r.npz", mu=np.zeros(40), sigma=np.eye(40))
    assert "mu is of 40 features; digit classifier" in refused(eval_fid.main, flow_run, *options)
    assert not (flow_run / "evaluation").exists()


def test_images_that_are_no_digits(tmp_path, no_models):
    np.savez(tmp_path / "s.npz", arr_0=random_images(4, 0, size=16))
    np.savez(tmp_path / "d.npz", arr_0=random_images(4, 0))
    for samples, reference in (("s.npz", "mnist"), ("d.npz", tmp_path / "s.npz")):
        said = refused(eval_fid.main, tmp_path / samples, "--reference", reference, "--features", "digits")
        assert "s.npz holds images of 16x16; expected digits of 32x32" in said


def test_experiments(tmp_path):
    (tmp_path / "text").write_text("")
    assert "not a folder" in refused(experiments_main, "--out", tmp_path / "text", "--scale", "mini")
    assert "--workers -1: expected at least 0" in refused(
        experiments_main, "--workers", -1, "--out", tmp_path
    )
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_tilde_is_home_on_every_command_line(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    run = make_run(home / "run")
    assert sample.main(["~/run", "--steps", "1", "--per-class", "1", "--out=~/g.png"]) == 0
    assert hub.main(["~/run", "~/release"]) == 0
    assert (home / "g.png").exists() and (home / "release" / "model.safetensors").exists()
    for main, arguments in (
        (sample.main, ("~nobody9/run",)),
        (eval_fid.main, ("~nobody9/s.npz", "--reference", "mnist")),
        (encode_latents.main, (run, "~nobody9/out")),
        (hub.main, (run, "~nobody9/out")),
        (experiments_main, ("--out", "~nobody9/out")),
    ):
        assert "~nobody9 is nobody's home here" in refused(main, *arguments)
    assert not Path("~").exists() and not Path("~nobody9").exists()
