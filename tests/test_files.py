"""What is read is never written over: an output that is an input, or lies in one, is refused before any work."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import encode_latents
import eval_fid
import sample
from gspn_dit import create_model, hub
from gspn_dit.checkpoint import latest_checkpoint
from gspn_dit.errors import UserError
from gspn_dit.files import refuse_inputs, replacing
from gspn_dit.latents.store import LatentStore
from gspn_dit.training.trainer import Trainer
from tests.evaluation.conftest import random_images
from tests.sampling.conftest import make_run

NEWEST = "checkpoints/step_00000001"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def refused(tmp_path):
    """refused(command, match, ...): the command is refused in one line and leaves every file as it was."""

    def check(command, match, *arguments):
        before = contents(tmp_path)
        with pytest.raises(UserError, match=match) as caught:
            command([str(argument) for argument in arguments])
        assert "\n" not in str(caught.value)
        assert contents(tmp_path) == before

    return check


def test_inputs_are_known_by_any_of_their_names(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in/a").write_text("a")
    os.link(tmp_path / "in/a", tmp_path / "hard")
    inputs = [("IN", tmp_path / "in"), ("A", tmp_path / "in/a"), ("HUB", "some/thing")]
    for output, message in (
        ("in", "IN itself"),
        ("link", "IN itself"),
        ("link/x/y", "lies in IN"),
        ("hard", "A itself"),
    ):
        with pytest.raises(UserError, match=message):
            refuse_inputs("OUT", tmp_path / output, inputs)
    refuse_inputs("OUT", tmp_path / "inside", inputs)
    refuse_inputs("OUT", tmp_path, inputs)


def test_a_sample_file_or_grid_over_the_run(run, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("gspn_dit.checkpoint.load_weights", None)  # nothing may be loaded before
    (run / "samples").mkdir()
    for name in ("loss.png", "samples/final.png", "samples/step_00000001.png"):
        (run / name).touch()
        refused(sample.main, "is a record of the run itself", run, "--out", run / name)
    refused(sample.main, "lies in the run's checkpoints", run, "--out", run / NEWEST / "grid.png")
    refused(
        sample.main,
        "lies in the run's checkpoints",
        run / NEWEST,
        "--num",
        2,
        "--npz",
        run / NEWEST / "s.npz",
    )
    (run / "scores.json").touch()
    refused(sample.main, "is a record of the run itself", run, "--num", 2, "--npz", run / "scores.npz")
    (tmp_path / "vae").mkdir()
    refused(sample.main, "lies in --vae", run, "--vae", tmp_path / "vae", "--out", tmp_path / "vae/grid.png")


@pytest.mark.parametrize("content", ["[1, 2]", "not JSON", '{"mine": 1}'])
def test_a_json_of_the_user_beside_a_sample_file_is_kept(run, tmp_path, refused, content):
    (tmp_path / "s.json").write_text(content)
    refused(
        sample.main, "give (it )?.*another name", run, "--num", 2, "--npz", tmp_path / "s.npz", "--steps", 1
    )


def test_files_of_the_user_in_the_folder_of_shards_stay(run, tmp_path):
    parts = tmp_path / "s.npz.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    assert sample.main([str(run), "--num", "2", "--npz", str(tmp_path / "s.npz"), "--steps", "1"]) == 0
    assert contents(parts) == {"mine.txt": b"mine"}


def test_shards_of_unknown_settings_are_not_joined(run, tmp_path, refused):
    (tmp_path / "s.npz.parts").mkdir()
    (tmp_path / "s.npz.parts/000000-002.npz").touch()
    refused(sample.main, "holds no settings", run, "--num", 2, "--npz", tmp_path / "s.npz", "--steps", 1)


def test_scores_over_what_is_scored(run, tmp_path, refused):
    samples, reference = tmp_path / "s.npz", tmp_path / "r.npz"
    for file, seed in ((samples, 0), (reference, 1)):
        np.savez(file, random_images(3, seed))
    (tmp_path / "s.json").write_text("{}")
    scores = [samples, "--reference", reference, "--features", "digits"]
    refused(eval_fid.main, "--json .* is SAMPLES itself", *scores, "--json", samples)
    refused(eval_fid.main, "the settings of SAMPLES itself", *scores, "--json", tmp_path / "s.json")
    refused(eval_fid.main, "is --reference itself", *scores, "--json", reference)
    refused(eval_fid.main, "is SAMPLES itself", *scores, "--save-reference", samples)
    refused(eval_fid.main, "is --reference itself", *scores, "--save-reference", reference)
    refused(
        eval_fid.main,
        "does not end in .npz",
        *scores,
        "--json",
        tmp_path / "x.npz",
        "--save-reference",
        tmp_path / "x.npz",
    )
    (tmp_path / "leaderboard.json").write_text("[]")
    board = ["--results", tmp_path, "--json", tmp_path / "leaderboard.json"]
    refused(eval_fid.main, "is the leaderboard itself", *scores, *board)
    of_run = [run, "--reference", reference, "--features", "digits"]
    (run / "config.yaml").touch()
    refused(eval_fid.main, "a record of the run itself", *of_run, "--json", run / "config.yaml")
    refused(eval_fid.main, "lies in the run's checkpoints", *of_run, "--json", run / NEWEST / "state.json")


def test_latents_in_the_images_or_around_them(tmp_path, refused):
    images = tmp_path / "all/images"
    (images / "a").mkdir(parents=True)
    refused(encode_latents.main, "OUT .* lies in IMAGE_FOLDER", images, images / "latents")
    refused(encode_latents.main, "OUT .* is IMAGE_FOLDER itself", images, images)
    refused(encode_latents.main, "IMAGE_FOLDER .* lies in OUT", images, tmp_path / "all")
    refused(encode_latents.main, "lies in --vae", images, tmp_path / "vae/out", "--vae", vae(tmp_path))


def vae(tmp_path: Path) -> Path:
    (tmp_path / "vae").mkdir()
    return tmp_path / "vae"


def test_only_half_written_files_of_its_own_are_cleared_from_latents(tmp_path):
    (tmp_path / ".tmp-notes").touch()
    with pytest.raises(UserError, match="is not empty and holds no latents"):
        LatentStore(tmp_path)


def test_a_release_over_a_run_a_checkpoint_or_a_file(run, tmp_path, refused):
    refused(hub.main, "FOLDER .* is RUN itself", run, run)
    refused(hub.main, "lies in RUN", run, run / NEWEST)
    refused(hub.main, "is RUN itself", run / NEWEST, run / NEWEST)
    refused(hub.main, "lies in the run", run / NEWEST, run / "release")
    other = make_run(tmp_path / "other")
    refused(hub.main, "holds a checkpoint", run, other / NEWEST)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    refused(hub.main, "holds README.md, which a release would overwrite", run, tmp_path / "mine")
    for _ in range(2):  # a release may be made anew
        assert hub.main([str(run), str(tmp_path / "release")]) == 0
    assert not list(tmp_path.glob(".tmp*"))


def test_a_model_is_not_saved_over_a_checkpoint(run):
    model = create_model("DiT-S/4", input_size=8, in_channels=1, num_classes=3, width=16, depth=1)
    before = contents(run)
    with pytest.raises(UserError, match=r"holds a checkpoint or a release \(state.json\)"):
        model.save_pretrained(run / NEWEST)
    assert contents(run) == before


def test_a_link_that_is_written_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("file")
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("place", "override", "message"),
    [
        ("release", "", "holds a released model or a checkpoint"),
        ("release/run", "train.init_from={release}", "lies in train.init_from"),
        ("first", "train.init_from={first}", "is train.init_from itself"),
        ("first/checkpoints/step_00000010", "", "holds a released model or a checkpoint"),
        ("first/checkpoints/x", "train.init_from={first}", "lies in train.init_from"),
        ("data", "data.path={data}", "run_dir .* is data.path itself"),
        ("data/run", "data.path={data}", "lies in data.path"),
        ("data", "", r"holds latents \(manifest.json\)"),
        ("mine", "", "holds config.yaml and no run: training would overwrite it"),
        ("pictures", "", "holds samples/final.png and no run"),
    ],
)
def test_a_run_over_what_it_reads_or_what_is_no_run(
    train_run, tmp_path, monkeypatch, place, override, message
):
    train_run("first")
    hub.release(tmp_path / "first", tmp_path / "release")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    shutil.copy(tmp_path / "tiny.yaml", tmp_path / "mine/config.yaml")
    (tmp_path / "pictures/samples").mkdir(parents=True)
    (tmp_path / "pictures/samples/final.png").touch()
    before = contents(tmp_path)
    monkeypatch.setattr(Trainer, "__init__", None)
    with pytest.raises(UserError, match=message):
        train_run(
            place,
            *filter(
                None, [override.format(**{name: tmp_path / name for name in ("release", "first", "data")})]
            ),
        )
    assert contents(tmp_path) == before


def test_a_run_killed_before_its_first_row_goes_on(train_run, tmp_path):
    finished = train_run("run")
    (tmp_path / "killed").mkdir()
    text = (finished / "config.yaml").read_text().replace(str(finished), str(tmp_path / "killed"))
    (tmp_path / "killed/config.yaml").write_text(text)
    train_run("killed")


def test_only_what_the_program_named_is_a_checkpoint(train_run, tmp_path):
    """A copy under a name of the user's own is neither rotated away, nor read, nor called damaged."""
    folder = train_run("run", "train.schedule=constant") / "checkpoints"
    own = [
        "step_00000010_best",
        "step_best",
        "step_00000010.tar",
        ".tmp-mine",
        "step_000000010",
        "damaged_step_00000010",
    ]
    for name in own:
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("mine")
    (folder / "step_00000010/ema.safetensors").write_text("damaged")
    train_run(
        "run", "train.schedule=constant", "train.steps=14", "train.checkpoint_every=1", "train.keep_last=1"
    )
    assert latest_checkpoint(folder.parent).name == "step_00000014"
    left = {path.name for path in folder.iterdir()}
    assert left == {*own, "step_00000014", "damaged_step_00000010_2"}
    assert all((folder / name / "model.safetensors").read_text() == "mine" for name in own)


def test_a_linked_checkpoint_is_rotated_without_what_it_links_to(train_run, tmp_path):
    folder = train_run("run", "train.schedule=constant") / "checkpoints"
    shutil.move(folder / "step_00000004", tmp_path / "elsewhere")
    (folder / "step_00000004").symlink_to(tmp_path / "elsewhere")
    train_run("run", "train.schedule=constant", "train.steps=11", "train.keep_last=1")
    assert [path.name for path in folder.iterdir()] == ["step_00000011"]
    assert (tmp_path / "elsewhere/model.safetensors").exists()
