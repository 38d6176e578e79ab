"""Stop signals on a command line: the exit status, what is said, and a second one."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from gspn_dit import signals
from tests.launch import ROOT

PROGRAM = """
import sys, time
from gspn_dit import errors, signals
signals.ECHO = 0.0

def main():
    with signals.noting(lambda: "half of it is kept"):
        try:
            print("at work", flush=True)
            time.sleep(30)
        finally:
            print("a bar that is closed", flush=True)
            time.sleep(30 if "slow" in sys.argv else 0)

errors.run(main)
"""


def start(*arguments: str, **settings) -> subprocess.Popen:
    """The program, once it is at work."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.Popen(command, env=environment, text=True, **streams)


@pytest.mark.parametrize("number", signals.STOPS)
def test_a_signal_gives_its_status_and_says_what_is_kept(number):
    with start() as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert error.strip() == f"stopped by {signals.name_of(number)}; half of it is kept"


def test_a_second_signal_leaves_at_once_and_says_what_is_lost():
    with start("slow") as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "a bar that is closed\n"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 143
    assert error.strip() == "SIGTERM again, left at once: what was in hand is lost"


def test_an_ignored_hangup_stays_ignored():
    """As under nohup."""
    with start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 143


def test_a_reader_of_the_output_that_went_first_changes_no_status():
    """As tee does when Ctrl-C stops it too."""
    with start(stderr=subprocess.STDOUT) as process:
        assert process.stdout.readline() == "at work\n"
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


def test_a_terminal_that_is_closed_is_a_stop():
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
    assert b"at work" in os.read(terminal, 100)
    os.close(terminal)
    limit = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < limit:
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 129


def test_the_same_signal_passed_on_by_a_launcher_is_not_a_second_one(monkeypatch):
    left = []
    monkeypatch.setattr(signals, "leave", lambda number, lost: left.append((number, lost)))
    with signals.handling(lambda number: None, lambda: "all") as request:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert (request.number, left) == (signal.SIGTERM, [])
        monkeypatch.setattr(signals, "ECHO", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
    assert left == [(signal.SIGINT, "all")]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
