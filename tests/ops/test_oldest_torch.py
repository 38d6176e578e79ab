"""The very library that is built, under the oldest torch that it promises to load in. Needs a package index."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import setup_env
from ops.library import LIBRARY

ROOT = Path(__file__).resolve().parents[2]
OLDEST = "2.10"
ENVIRONMENT = ROOT / "build" / f"torch-{OLDEST}"  # kept: the download is as large as torch's own
PYTHON = ENVIRONMENT / "bin" / "python"

TESTS = ("test_scan.py", "test_merge.py", "test_interface.py", "test_transforms.py")


def pip(*arguments: str) -> subprocess.CompletedProcess:
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def installed_torch() -> str:
    """The version in the environment, "" when there is none or it does not run."""
    if not PYTHON.exists():
        return ""
    query = "from importlib.metadata import version as v; print(v('torch'))"
    return subprocess.run([str(PYTHON), "-c", query], capture_output=True, text=True).stdout.strip()


def install_torch() -> None:
    """Install torch and pytest: CPU wheels where their index answers, otherwise PyPI's CUDA build: 3 GB to download."""
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    wanted = [f"torch=={OLDEST}.*", "numpy", "pytest>=8"]
    if setup_env.reachable(setup_env.CPU_WHEELS):
        part, index = "torch for the CPU", ["--index-url", setup_env.CPU_WHEELS]
    else:
        part, index = "torch with CUDA", []
    found = pip("install", "--dry-run", "--no-deps", *index, wanted[0])
    if "from versions: none" in found.stderr:
        pytest.skip(f"no package index offers any torch: {found.stderr.strip().splitlines()[-1]}")
    assert found.returncode == 0, f"no torch {OLDEST} for this Python:\n{found.stderr[-2000:]}"
    needed, free = setup_env.SIZES[part][1] + 1, shutil.disk_usage(ROOT).free / 1e9
    assert free > needed, f"{free:.1f} GB free is too little for torch {OLDEST}: {needed:.0f} GB are needed"
    done = pip("install", "--no-compile", *index, *wanted)
    assert done.returncode == 0, f"torch {OLDEST} could not be installed:\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_library_passes_its_tests_under_the_oldest_torch():
    """ops/lib/libgspn.so as it is: forward and backward of every dtype against the references, autograd, fakes."""
    assert LIBRARY.exists(), "the scan is not built: run `make build`"
    if not installed_torch().startswith(f"{OLDEST}."):
        install_torch()
    tests = [str(ROOT / "tests" / "ops" / name) for name in TESTS]
    command = [str(PYTHON), "-m", "pytest", "-p", "no:cacheprovider", *tests]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) > 200, result.stdout[-1000:]
