"""The page of a run in a headless Chromium, for tests."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NEEDS = "the page's test needs `.venv/bin/pip install 'gradio>=6' playwright` and Debian's chromium"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def opened(make_run) -> Iterator:
    """The page of the run that `make_run()` names, open in the browser; skips the test where one is missing."""
    pytest.importorskip("gradio", reason=NEEDS)
    playwright = pytest.importorskip("playwright.sync_api", reason=NEEDS)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(NEEDS)
    run, port = make_run(), free_port()
    command = [sys.executable, "-m", "gspn_dit.app", str(run), "--port", str(port)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert f"http://127.0.0.1:{port}" in server.stdout.readline()
            with playwright.sync_playwright() as driver:
                chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
                tab = chromium.new_page(viewport={"width": 1200, "height": 800})
                tab.goto(f"http://127.0.0.1:{port}")
                yield tab
                chromium.close()
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 128 + signal.SIGTERM


def draw(page) -> None:
    page.get_by_role("button", name="Draw").click()
