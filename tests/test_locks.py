"""Locks: the second is told who is at work; a disk without locks stops nobody."""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from gspn_dit import files
from gspn_dit.errors import UserError
from gspn_dit.files import claimed, claimed_file
from tests.launch import ROOT

HOLDER = """
import os, pathlib, signal, sys
from gspn_dit.files import claimed

with claimed(pathlib.Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
WHO = r"is in use by process {} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: wait for it"


def test_the_second_is_told_who_and_since_when(tmp_path):
    who = f"^{tmp_path}/x " + WHO.format(os.getpid())
    for claim in (claimed, claimed_file):
        with claim(tmp_path / "x"), pytest.raises(UserError, match=who), claim(tmp_path / "x"):
            pass
        with claim(tmp_path / "x"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_or_is_filled_stays(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with claimed(tmp_path / name):
            (tmp_path / name / name).touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"old", "new"}
    (tmp_path / "old/old").unlink()
    with claimed(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_killed_holder_is_no_holder(tmp_path):
    """Its note stays, its lock does not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], env=environment)
    assert (tmp_path / ".lock").read_text().startswith("process ")
    with claimed(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_waiting_one_goes_on_when_the_first_is_done(tmp_path, capfd):
    order = []

    def second():
        with claimed_file(tmp_path / "x", wait=True):
            order.append("second")

    with claimed_file(tmp_path / "x"):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for process" not in capfd.readouterr().err:
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_removed_meanwhile_is_not_taken_for_one(tmp_path, monkeypatch):
    """Opened before the first was done, locked after: the name belongs to another file by then."""
    take, opened = files.take, []

    def late(file, what, wait):
        opened.append(file.fileno())
        if len(opened) == 1:
            (tmp_path / ".lock").unlink()
        take(file, what, wait)

    monkeypatch.setattr(files, "take", late)
    with claimed(tmp_path):
        assert len(opened) == 2
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524])
def test_a_disk_without_locks_gets_a_warning(train_run, tmp_path, monkeypatch, capfd, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(tmp_path / "x"), claimed_file(tmp_path / "y", wait=True):
        pass
    warnings = capfd.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert warnings[0].startswith(
        f"{tmp_path}/x: this disk keeps no locks ({os.strerror(number)}): see to it"
    )
