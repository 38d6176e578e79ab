"""The set-up: what it asks of the machine before it downloads, and CUDA after CPU wheels. Nothing is installed."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import setup_env


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository without a virtual environment."""
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup_env, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(setup_env, "STAMP", tmp_path / ".venv" / "installed")
    (tmp_path / "requirements.txt").write_text("torch==2.15.0\ntorchvision==0.29.2\n")
    return tmp_path


def main(monkeypatch, cuda: str) -> int:
    monkeypatch.setattr(sys, "argv", ["setup_env.py", "--cuda", cuda])
    return setup_env.main()


@pytest.mark.parametrize(
    ("version", "compiler", "message"),
    [((3, 10, 4), "g++", "is Python 3.10: 3.11 or later"), ((3, 11, 0), "no-cxx -O2", "no-cxx is not inst")],
)
def test_what_is_missing_is_told_before_the_download(root, monkeypatch, capsys, version, compiler, message):
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setenv("CXX", compiler)
    for step in ("reachable", "room_for", "make_venv"):
        monkeypatch.setattr(setup_env, step, None)
    assert main(monkeypatch, "0") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_disk_is_compared_with_what_is_still_to_come(root, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "SIZES", {"torch": (0.1, 1.5)})
    free = SimpleNamespace(free=2e9)
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda path: free)
    (root / ".venv/lib").mkdir(parents=True)
    assert not setup_env.room_for(["torch"])
    assert "2.0 GB free is too little: 2.5 GB are needed" in capsys.readouterr().err
    with open(root / ".venv/lib/half", "wb") as file:
        file.truncate(6 * 10**8)
    assert setup_env.room_for(["torch"])
    free.free = 1e9
    assert not setup_env.room_for(["torch"])


@pytest.mark.parametrize(
    ("cuda", "installed", "removed"),
    [("1", "2.15.0+cpu", True), ("1", "2.15.0", False), ("1", "", False), ("0", "2.15.0+cpu", False)],
)
def test_cuda_after_cpu_wheels_replaces_torch(root, monkeypatch, cuda, installed, removed):
    commands = []

    def run(command, **settings):
        commands.append(" ".join(command))
        version = installed if "v('torch')" in command[-1] else "13.0"
        return subprocess.CompletedProcess(command, 0, stdout=f"{version}\n" if version else "")

    (root / ".venv").mkdir()
    (root / ".venv" / setup_env.MARK).touch()
    for step, answer in (("reachable", True), ("room_for", True), ("missing", None), ("make_venv", None)):
        monkeypatch.setattr(setup_env, step, lambda *_, answer=answer: answer)
    monkeypatch.setattr(setup_env.subprocess, "run", run)
    assert main(monkeypatch, cuda) == 0
    steps = [
        word for line in commands for word in ("uninstall", "install -", "install --index") if word in line
    ]
    assert ("uninstall" in steps) == removed
    if removed:
        first = next(line for line in commands if " -m pip " in line)
        assert first.endswith("torch torchvision") and " uninstall --yes " in first
    assert " -m compileall " in commands[-1]
    assert setup_env.STAMP.read_text().endswith(f"cuda={cuda}\n")


@pytest.mark.parametrize(("devices", "cuda"), [({"/dev/nvidiactl"}, 1), ({"/dev/dxg"}, 1), (set(), 0)])
def test_the_compiler_comes_where_there_is_a_gpu(root, monkeypatch, devices, cuda):
    """Asked for nothing; a set-up with the compiler, made before, is left as it is."""
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: None if name == "nvidia-smi" else name)
    exists = setup_env.os.path.exists
    monkeypatch.setattr(
        setup_env.os.path, "exists", lambda path: path in devices if "/dev/" in str(path) else exists(path)
    )
    parts = []
    monkeypatch.setattr(setup_env, "reachable", lambda _: False)
    monkeypatch.setattr(setup_env, "room_for", lambda wanted: parts.append(wanted))
    assert main(monkeypatch, "auto") == 1
    assert ("the CUDA compiler" in parts[0]) == cuda
    (root / ".venv").mkdir()
    setup_env.STAMP.write_text(setup_env.fingerprint(True))
    assert main(monkeypatch, "auto") == 0
    assert len(parts) == 1


def test_a_virtual_environment_of_others_is_not_removed(root, monkeypatch, capsys):
    """One without pip, as uv makes them, looks like one that an interruption left broken."""
    (root / ".venv").mkdir()
    for step in ("room_for", "install"):
        monkeypatch.setattr(setup_env, step, None)
    assert main(monkeypatch, "0") == 1
    assert capsys.readouterr().err.endswith("rename or remove it, then `make setup` makes one\n")
    assert (root / ".venv").is_dir()


def test_a_broken_virtual_environment_of_its_own_is_made_anew(root, monkeypatch):
    made = []
    monkeypatch.setattr(setup_env.subprocess, "run", lambda command, **_: made.append(command))
    for left in ((), ("half",)):
        for name in left:
            (root / ".venv" / name).touch()
        setup_env.make_venv()
        assert [path.name for path in (root / ".venv").iterdir()] == [setup_env.MARK]
        assert setup_env.foreign() is None
    assert len(made) == 2
