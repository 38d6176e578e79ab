"""Make .venv with pinned packages and the CUDA compiler: `make setup`. Needs Python >= 3.11 and nothing else.

Idempotent: a stamp, written last, holds what was installed; without it, or when it differs, the installation is done
again (pip skips what is there). A virtual environment of its own that an interruption left broken is made anew.
"""

from __future__ import annotations  # an older Python must get as far as the message about its version

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed"
MARK = "made-by-setup"
"""A file in .venv that says that it may be made anew: what others made is theirs."""
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# cuobjdump and nvdisasm show the machine code to the tests (benchmarks/sass.py).
CUDA_COMPILER = "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl,cuobjdump,nvdisasm]"

# Gigabytes to download and on the disk, rounded up from a measured installation (Linux, x86-64).
SIZES = {"torch with CUDA": (2.9, 6.1), "the CUDA compiler": (0.2, 0.6), "torch for the CPU": (0.7, 2.2)}


def main() -> int:
    """Install what is missing; exit status 1 with one line when it cannot be done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cuda",
        choices=("auto", "0", "1"),
        default="auto",
        help="0: no CUDA compiler, CPU wheels of torch; auto: 1 where there is an NVIDIA GPU (default)",
    )
    asked = parser.parse_args().cuda
    cuda = asked == "1" or (asked == "auto" and has_gpu())
    wanted = fingerprint(cuda)
    if asked == "auto" and not cuda and not STAMP.exists():
        print(
            "no NVIDIA GPU here: leaving out the CUDA compiler and kernels (`make setup CUDA=1` brings them)"
        )
    if STAMP.exists() and satisfied(STAMP.read_text(), wanted):
        return 0
    problem = missing() or foreign()
    if problem:
        return fail(problem)
    cpu_wheels = not cuda and reachable(CPU_WHEELS)
    if not room_for(
        ["torch for the CPU"] if cpu_wheels else ["torch with CUDA", *["the CUDA compiler"] * cuda]
    ):
        return 1
    try:
        make_venv()
        STAMP.unlink(missing_ok=True)
        if cuda:
            remove_cpu_torch()
        install(cpu_wheels)
        if cuda:
            install_cuda_compiler()
        compile_bytecode()
    except subprocess.CalledProcessError as error:
        return fail(
            f"{' '.join(map(str, error.cmd[:4]))} ... failed: see above; `make setup` takes up where it stopped"
        )
    STAMP.write_text(wanted)
    return 0


def has_gpu() -> bool:
    """Whether an NVIDIA driver is here; /dev/dxg is that of Windows, seen from within it."""
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))) or shutil.which("nvidia-smi") is not None


def fail(message: str) -> int:
    """Say what is wrong in one line."""
    print(f"error: {message}", file=sys.stderr)
    return 1


def missing() -> str | None:
    """What this machine lacks, told before the download; None when it has all."""
    if sys.version_info < (3, 11):  # noqa: UP036 (whatever Python there is runs this script)
        version = ".".join(map(str, sys.version_info[:2]))
        return f"{sys.executable} is Python {version}: 3.11 or later is needed (`make PYTHON=python3.12 ...`)"
    compiler = shlex.split(os.environ.get("CXX") or "g++")[0]
    if not shutil.which(compiler):
        return f"{compiler} is not installed: install a C++17 compiler (Debian: apt-get install g++)"
    return None


def pip_runs() -> bool:
    """Whether there is a virtual environment that packages can be installed into."""
    check = [str(PYTHON), "-m", "pip", "--version"]
    return PYTHON.exists() and subprocess.run(check, capture_output=True).returncode == 0


def foreign() -> str | None:
    """Why .venv is neither of use nor to be removed; None when it is."""
    if not os.path.lexists(VENV) or pip_runs() or (VENV / MARK).exists() or STAMP.exists():
        return None
    return (
        f"{VENV} has no working pip and was not made here: rename or remove it, then `make setup` makes one"
    )


def fingerprint(cuda: bool) -> str:
    """Return what decides an installation."""
    wanted = (ROOT / "requirements.txt").read_bytes() + CUDA_COMPILER.encode()
    pins = hashlib.sha256(wanted).hexdigest()
    return f"{pins} cuda={int(cuda)}\n"


def satisfied(installed: str, wanted: str) -> bool:
    """Whether the installation serves: one with the CUDA compiler serves those who do not ask for it."""
    return installed in (wanted, wanted.replace("cuda=0", "cuda=1"))


def reachable(index: str) -> bool:
    """Whether an index answers: some networks let only PyPI through."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        print(f"{index} does not answer: taking PyPI's torch, which is built with CUDA")
        return False


def room_for(parts: list[str]) -> bool:
    """Tell the download's size and the free disk; whether there is room."""
    download, disk = (sum(SIZES[part][i] for part in parts) for i in (0, 1))
    free = shutil.disk_usage(ROOT).free / 1e9
    print(
        f"installing {' and '.join(parts)} into {VENV.relative_to(ROOT)}: up to {download:.1f} GB to download, ",
        end="",
    )
    print(f"{disk:.1f} GB on the disk ({free:.0f} GB free)", flush=True)
    needed = max(0.0, disk - installed_size()) + 1
    if free < needed:
        fail(
            f"{free:.1f} GB free is too little: {needed:.1f} GB are needed; `make setup CUDA=0` may need less"
        )
        return False
    return True


def installed_size() -> float:
    """Gigabytes that the virtual environment takes already."""
    files = (os.path.join(folder, name) for folder, _, names in os.walk(VENV) for name in names)
    return sum(os.lstat(path).st_size for path in files) / 1e9


def make_venv() -> None:
    """Make the virtual environment, anew when its Python or its pip does not run."""
    if pip_runs():
        return
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    (VENV / MARK).touch()
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)


def pip_install(*arguments: str) -> None:
    """Run pip in the virtual environment; what it would compile on one core `compile_bytecode` does on all."""
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--no-compile",
        "--disable-pip-version-check",
    ]
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    subprocess.run(
        [*command, *quiet, *arguments], check=True, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    )


def compile_bytecode() -> None:
    """Compile what is installed: an import of torch takes half the time, and where Python is told to write no byte
    code (PYTHONDONTWRITEBYTECODE) every process would compile it anew."""
    print("compiling byte code", flush=True)
    packages = subprocess.run(
        [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # Some packages hold templates that are no Python: their errors say nothing of the installation.
    command = [str(PYTHON), "-m", "compileall", "-q", "-j", "0", packages]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def installed_version(package: str) -> str:
    """The version of a package in the virtual environment, "" when it is not there."""
    query = f"from importlib.metadata import version as v; print(v({package!r}))"
    return subprocess.run([str(PYTHON), "-c", query], capture_output=True, text=True).stdout.strip()


def remove_cpu_torch() -> None:
    """Remove CPU wheels: pip takes them for the pinned versions, and would leave CUDA out."""
    if installed_version("torch").endswith("+cpu"):
        subprocess.run(
            [str(PYTHON), "-m", "pip", "uninstall", "--yes", "--quiet", "torch", "torchvision"], check=True
        )


def install(cpu_wheels: bool) -> None:
    """Install the pinned packages."""
    if cpu_wheels:
        pins = (ROOT / "requirements.txt").read_text().splitlines()
        pip_install(
            "--index-url", CPU_WHEELS, *(pin for pin in pins if pin.startswith(("torch==", "torchvision==")))
        )
    pip_install("-r", str(ROOT / "requirements.txt"))


def install_cuda_compiler() -> None:
    """Install the CUDA compiler of torch's own minor version; torch pins the toolkit's parts, so ask it which."""
    toolkit = installed_version("cuda-toolkit")
    if not toolkit:
        print(
            "this torch is built without CUDA (or for another platform): the scan is built for the CPU alone"
        )
        return
    pip_install(f"{CUDA_COMPILER}=={toolkit}")


if __name__ == "__main__":
    sys.exit(main())
