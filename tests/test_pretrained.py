"""Weights in the repository: small, as their hashes say, written by `make pretrained` and drawn by `make sample`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gspn_dit import hub
from gspn_dit.checkpoint import load_model
from gspn_dit.config import load_config
from gspn_dit.errors import UserError
from gspn_dit.files import sha256
from gspn_dit.models.networks import create_model
from gspn_dit.models.weights import FILES, HASHES

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"digits": 4e6}
"""Bytes of a folder's weights; 10 MB for another."""


def listed(folder):
    """The hashes of a release's files, by name."""
    return {name: found for found, name in map(str.split, (folder / HASHES).read_text().splitlines())}


def planned(folder, *arguments):
    """The commands that `make` would run in a folder."""
    shutil.copy(ROOT / "Makefile", folder)
    # `make test` hands its own settings down in the environment.
    environment = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    command = ["make", "-n", *arguments]
    plan = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return plan.stdout


def test_what_is_in_the_repository_is_as_released():
    for folder in (path.parent for path in (ROOT / "pretrained").glob("*/state.json")):
        assert listed(folder) == {name: sha256(folder / name) for name in set(FILES) - {HASHES}}
        assert {path.name for path in folder.iterdir()} == set(FILES)
        assert (folder / "model.safetensors").stat().st_size <= LIMITS.get(folder.name, 10e6)
        assert "averaged (EMA) weights, in float32" in (folder / "README.md").read_text()
        model, config, found = load_model(folder)  # compares the hash of the weights too
        assert found["ema"] and sum(p.numel() for p in model.parameters())
        paths = (config.run_dir, config.data.path, config.data.autoencoder)
        assert not any(Path(path).is_absolute() for path in paths if path)


def test_a_release_lists_the_hashes_of_its_files(train_run, tmp_path):
    assert hub.main([str(train_run("run")), str(tmp_path / "release"), "--limit", "4"]) == 0
    folder = tmp_path / "release"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert listed(folder) == {name: sha256(folder / name) for name in set(FILES) - {HASHES}}
    subprocess.run(["sha256sum", "--check", "--strict", HASHES], cwd=folder, check=True)
    assert "The averaged (EMA) weights, in float32, after 10 steps" in (folder / "README.md").read_text()


def test_weights_over_the_limit_are_refused_in_one_line(train_run, tmp_path):
    run = train_run("run")
    with pytest.raises(
        UserError, match=r"^the EMA weights of \S+ take \d+\.\d MB; expected at most 0\.01 [^\n]+$"
    ):
        hub.main([str(run), str(tmp_path / "release"), "--limit", "0.01"])
    assert not (tmp_path / "release").exists()
    for limit in ("0", "-1", "nan"):
        with pytest.raises(UserError, match=f"--limit {limit}: expected megabytes, more than 0"):
            hub.main([str(run), str(tmp_path / "release"), "--limit", limit])


def test_the_demo_fits():
    config = load_config(ROOT / "configs" / "demo.yaml")
    settings = {key: value for key, value in vars(config.model).items() if value is not None}
    model = create_model(**settings, input_size=32, in_channels=1, num_classes=10, learn_sigma=False)
    hub.check_size(model, "runs/demo", 4)


def test_make_draws_from_what_there_is(tmp_path):
    assert "sample.py runs/demo --seed 1" in planned(tmp_path, "sample", "ARGS=--seed 1")
    (tmp_path / "pretrained" / "digits").mkdir(parents=True)
    assert "sample.py pretrained/digits" in planned(tmp_path, "sample")
    (tmp_path / "runs" / "demo").mkdir(parents=True)  # killed before its first checkpoint
    assert "sample.py pretrained/digits" in planned(tmp_path, "sample")
    assert "sample.py runs/mine" in planned(tmp_path, "sample", "RUN=runs/mine")
    (tmp_path / "runs" / "demo" / "checkpoints" / "step_00000500").mkdir(parents=True)
    assert "sample.py runs/demo" in planned(tmp_path, "sample")


def test_make_releases_with_a_limit(tmp_path):
    assert "gspn_dit.hub runs/demo pretrained/digits --limit 4" in planned(tmp_path, "pretrained")
    cifar10 = planned(tmp_path, "pretrained", "RUN=runs/cifar10_cpu", "NAME=cifar10")
    assert "gspn_dit.hub runs/cifar10_cpu pretrained/cifar10 --limit 10" in cifar10
