"""Checkpoints: whole or absent, kept as many as asked, and passed over when damaged."""

import errno
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gspn_dit import checkpoint
from gspn_dit.checkpoint import damage, latest_checkpoint, load_model, rotate
from gspn_dit.errors import UserError
from gspn_dit.training import state
from gspn_dit.training.log import MetricsLog
from tests.training.run_state import final_state


@pytest.fixture
def run_dir(train_run):
    return train_run("run")


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def newest(run_dir):
    return max((run_dir / "checkpoints").glob("step_*"))


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("model.safetensors", cut, "model.safetensors has"),
        ("ema.safetensors", flip, "ema.safetensors does not have the hash"),
        ("optimizer.safetensors", lambda path: path.unlink(), "optimizer.safetensors is missing"),
        ("state.json", cut, "state.json is missing or cut short"),
        ("config.yaml", flip, "config.yaml does not have the hash"),
    ],
)
def test_damaged_checkpoint_is_reported_and_the_one_before_used(
    train_run, run_dir, capsys, name, harm, message
):
    whole = final_state(run_dir)
    harm(newest(run_dir) / name)
    train_run("run")
    output = capsys.readouterr().out
    assert f"step_00000010 is damaged ({message}" in output
    assert (run_dir / "checkpoints/damaged_step_00000010").is_dir()
    assert f"continuing from {run_dir}/checkpoints/step_00000008" in output
    assert final_state(run_dir) == whole


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(train_run, run_dir):
    folders = sorted((run_dir / "checkpoints").iterdir())
    for folder in folders:
        cut(folder / "ema.safetensors")
    with pytest.raises(
        UserError, match=r"/checkpoints is whole \(step_00000010: ema.safetensors has .* anew$"
    ):
        train_run("run")
    assert sorted((run_dir / "checkpoints").iterdir()) == folders


def test_latest_checkpoint_passes_over_half_written_ones(run_dir):
    cut(newest(run_dir) / "model.safetensors")
    shutil.copytree(run_dir / "checkpoints/step_00000008", run_dir / "checkpoints/.tmp-step_00000012")
    assert latest_checkpoint(run_dir).name == "step_00000008"


def test_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def test_leftovers_of_a_killed_save_are_cleared(train_run, run_dir):
    leftover = run_dir / "checkpoints/.tmp-step_00000012"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    train_run("run", "train.steps=12")
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))


def test_keep_last_rotates(train_run):
    run_dir = train_run("run", "train.checkpoint_every=1", "train.keep_last=2")
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "step_00000009",
        "step_00000010",
    ]


def test_damaged_checkpoints_are_not_among_those_kept(run_dir):
    folders = run_dir / "checkpoints"
    cut(folders / "step_00000010/model.safetensors")
    flip(folders / "step_00000008/model.safetensors")  # as long as it was: only its hash tells
    rotate(run_dir, keep_last=1, step=4)
    assert {path.name for path in folders.iterdir()} == {f"step_{step:08d}" for step in (4, 8, 10)}
    rotate(run_dir, keep_last=1, step=8)
    assert {path.name for path in folders.iterdir()} == {f"step_{step:08d}" for step in (8, 10)}


@pytest.mark.parametrize("failing", ["model", "optimizer", "ema"])
def test_full_disk_is_reported_and_the_last_good_checkpoint_kept(train_run, monkeypatch, tmp_path, failing):
    def full(tensors, path):
        if path.name == f"{failing}.safetensors" and "00000008" in path.parent.name:
            path.write_bytes(b"as much as fits")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(state, "save_tensors", full)
    expected = (
        r"step 8: no checkpoint written \(.*No space left on device.*last good checkpoint is .*step_00000004"
    )
    with pytest.raises(UserError, match=expected):
        train_run("run")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000004"]
    monkeypatch.undo()
    assert final_state(train_run("run")) == final_state(train_run("straight"))


def test_full_disk_is_reported_whatever_was_written(train_run, monkeypatch):
    def full(self, row):
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(MetricsLog, "write", full)
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        train_run("run")


def test_load_model_gives_the_averaged_weights(run_dir):
    model, config, info = load_model(run_dir)
    folder = newest(run_dir)
    torch.testing.assert_close(model.state_dict(), load_file(folder / "ema.safetensors"), rtol=0, atol=0)
    assert not model.training
    assert config.model.width == 16
    assert (info["step"], info["images_seen"], info["ema"], info["path"]) == (10, 80, True, str(folder))
    assert info["hash"] == checkpoint.sha256(folder / "ema.safetensors")
    raw, _, info = load_model(folder, ema=False)
    torch.testing.assert_close(raw.state_dict(), load_file(folder / "model.safetensors"), rtol=0, atol=0)
    assert not info["ema"]


def test_load_model_of_an_older_checkpoint(run_dir):
    assert load_model(run_dir / "checkpoints/step_00000004")[2]["step"] == 4


def test_load_model_refuses_what_is_no_checkpoint(run_dir, tmp_path):
    with pytest.raises(UserError, match="no such run or checkpoint"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        load_model(run_dir / "samples")
    flip(newest(run_dir) / "ema.safetensors")
    with pytest.raises(UserError, match="is damaged"):
        load_model(newest(run_dir))


def test_damaged_weights_of_a_run_are_refused(train_run, run_dir):
    """A run's newest checkpoint is chosen by the lengths of its files: only the weights that are used are hashed."""
    flip(newest(run_dir) / "ema.safetensors")
    for use in (lambda: load_model(run_dir), lambda: train_run("other", f"train.init_from={run_dir}")):
        with pytest.raises(UserError, match=r"00010/ema.safetensors is damaged .* give another checkpoint"):
            use()
    assert load_model(run_dir, ema=False)[2]["step"] == 10


def test_a_cut_newest_checkpoint_is_passed_over_with_a_word(run_dir, capsys):
    cut(newest(run_dir) / "model.safetensors")
    assert load_model(run_dir)[2]["step"] == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert "step_00000010 is damaged (model.safetensors has" in line
    assert line.endswith("using step_00000008")


def test_weights_of_another_model_are_refused(train_run, run_dir):
    with pytest.raises(UserError, match="of another model: width 16, expected 32"):
        train_run("other", f"train.init_from={run_dir}", "model.width=32")


def test_saving_twice_replaces(train_run, run_dir):
    flip(newest(run_dir) / "model.safetensors")
    train_run("run")
    assert damage(newest(run_dir)) is None
