"""What a machine may lack: a home, a package, what a link points to; and who may read what is written."""

import os
import stat
import subprocess
import sys

import pytest
import torch

import sample
from gspn_dit import errors, hub
from gspn_dit.errors import UserError
from gspn_dit.evaluation.extractors import find_weights
from gspn_dit.files import cache_folder
from gspn_dit.latents.autoencoder import create_autoencoder
from gspn_dit.models.weights import download
from gspn_dit.training.trainer import Trainer
from tests.launch import ROOT

CACHES = ("HOME", "GSPN_DIT_CACHE", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME")


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """A user of a container: no HOME, no entry in the list of users, and no cache named."""
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    monkeypatch.chdir(tmp_path)


def test_a_cache_without_a_home_is_asked_for_by_its_variable(no_home, tmp_path, monkeypatch):
    for ask, variable in (
        (cache_folder, "GSPN_DIT_CACHE"),
        (lambda: download("someone/digits"), "HF_HOME"),
        (lambda: create_autoencoder("someone/vae", "cpu"), "HF_HOME"),
        (lambda: find_weights(None), "TORCH_HOME"),
    ):
        with pytest.raises(UserError, match=f"^this user has no home folder for a cache: set {variable} to"):
            ask()
    monkeypatch.setenv("GSPN_DIT_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"


def test_what_a_run_needs_at_its_end_is_asked_for_before_it(no_home, train_run, monkeypatch):
    monkeypatch.setattr(Trainer, "__init__", None)
    with pytest.raises(UserError, match="set GSPN_DIT_CACHE"):
        train_run("run", "eval.samples=4")


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("matplotlib", ()),
        ("diffusers", ("sample.sampler=dpm-solver++",)),
        ("torch_fidelity", ("eval.samples=4",)),
    ],
)
def test_a_package_that_is_missing_is_named_before_the_run(train_run, monkeypatch, package, settings):
    monkeypatch.setattr(Trainer, "__init__", None)
    found = "importlib.util.find_spec"
    monkeypatch.setattr(found, lambda name: None if name == package else name)
    with pytest.raises(UserError, match=f"^the package {package} is not installed: run `make setup`"):
        train_run("run", *settings)


def test_tensorboard_that_is_not_installed_is_named(train_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UserError, match=r"train\.tensorboard needs tensorboard: pip install tensorboard, or set"
    ):
        train_run("run", "train.tensorboard=true")


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        (
            "import no_such_package.part",
            "error: the package no_such_package is not installed: run `make setup`",
        ),
        ("import gspn_dit.no_such", None),
        ("import torch; torch.empty(10**15)", "error: out of memory: a smaller batch (train.micro_batch or"),
        ("bytearray(10**18)", "error: out of memory: a smaller batch (train.micro_batch or"),
        ("raise RuntimeError('a fault')", None),
        ("open('link')", "error: link is a link to nowhere, which is not there"),
        (
            "import pathlib; pathlib.Path('link').mkdir(exist_ok=True)",
            "error: link is a link to nowhere, which",
        ),
    ],
)
def test_what_is_not_there_is_one_line_unless_it_is_a_fault_of_the_program(tmp_path, statement, line):
    (tmp_path / "link").symlink_to("nowhere")
    program = f"from gspn_dit import errors\n\ndef main():\n    {statement}\n\nerrors.run(main)\n"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if line is None:
        assert result.returncode == 1 and "Traceback" in result.stderr
    else:
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(line)


def test_a_gpu_s_lack_of_memory_is_one_line():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 79.10 GiB in all"
    )
    line = errors.one_line(error)
    assert line.startswith("out of memory: a smaller batch") and line.endswith(
        "(Tried to allocate 20.00 GiB)"
    )


def test_files_have_the_permissions_that_the_user_asked_for(train_run, tmp_path):
    """Weights too, that a colleague or another user of a container may sample from."""
    before = os.umask(0o027)
    try:
        run_dir = train_run("run", "train.tensorboard=true", "train.steps=4")
        hub.main([str(run_dir), str(tmp_path / "release")])
        sample.main([str(run_dir), "--num", "3", "--npz", str(tmp_path / "s.npz"), "--steps", "1"])
        sample.main([str(run_dir), "--out", str(tmp_path / "grid.png"), "--steps", "1"])
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.name != "tiny.yaml"]
    assert len(made) > 20
    for path in made:
        expected = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
