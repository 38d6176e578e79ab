"""Everything that needs a GPU, in one command and without network: `make gpu-check PYTHON=python3`.

Builds with the toolkit that is there, runs every test with the cuda parameter, compute-sanitizer (memcheck
and racecheck) on small shapes where it is installed, then the benchmark. Needs a Python with torch >= 2.10
and pytest; for the models, einops, safetensors and yaml too.
Exit status 0 when all passed, 1 when something failed, 2 when there is no GPU.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZER_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
NO_SANITIZER = 127
MODEL_PACKAGES = ("einops", "safetensors", "yaml")


def gpu_problem() -> str | None:
    """Why no GPU can be used, in one line; None if one can."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch: name a Python that has it, make gpu-check PYTHON=python3"
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} of {sys.executable} is built without CUDA: name another with PYTHON="
        )
    if not torch.cuda.is_available():
        return (
            "no GPU visible: run this on a machine with an NVIDIA GPU and its driver (nvidia-smi must see it)"
        )
    return None


def missing_packages() -> list[str]:
    """What the models import and this Python does not have: then the operators alone are tested and timed."""
    return [name for name in MODEL_PACKAGES if importlib.util.find_spec(name) is None]


def call(command: list[str], seconds: int) -> int:
    """Run a command in the repository; 124 when it takes longer than `seconds`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4"}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return 124


def sanitize(tool: str) -> int:
    """Run compute-sanitizer on small scans; an error that it finds is exit status 3."""
    sanitizer = shutil.which(
        "compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *SANITIZER_PLACES])
    )
    if sanitizer is None:
        return NO_SANITIZER
    script = str(ROOT / "benchmarks" / "sanitize_scan.py")
    return call([sanitizer, "--tool", tool, "--error-exitcode", "3", sys.executable, script], 300)


def steps(minutes: float, results: Path) -> dict[str, Callable[[], int]]:
    """Name -> what runs it and returns an exit status."""
    python = sys.executable
    folders = ["tests/ops"] if missing_packages() else ["tests/ops", "tests/models"]
    tests = [python, "-m", "pytest", "-k", "cuda and not emulation", *folders]
    bench = [python, "benchmarks/bench_gpu.py", "--minutes", str(minutes), "--json", str(results)]
    return {
        "build": lambda: call([python, "ops/build.py", "--cuda", "required"], 600),
        "what was built": lambda: call([python, "-m", "ops"], 60),
        "tests on the GPU": lambda: call(tests, 600),
        "memcheck": lambda: sanitize("memcheck"),
        "racecheck": lambda: sanitize("racecheck"),
        "benchmark": lambda: call(bench, int(60 * minutes) + 180),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the steps; one that fails does not stop the others, except the build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="comma-separated steps, such as 'build,tests on the GPU'")
    parser.add_argument("--minutes", type=float, default=7.5, help="for the benchmark (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    arguments = parser.parse_args(argv)
    problem = gpu_problem()
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    every = steps(arguments.minutes, arguments.json)
    wanted = arguments.only.split(",") if arguments.only else list(every)
    unknown = sorted(set(wanted) - set(every))
    if unknown:
        print(f"error: no step {unknown[0]!r}; there are {', '.join(every)}", file=sys.stderr)
        return 2
    if missing := missing_packages():
        print(f"without {', '.join(missing)}: the models are neither tested nor timed, the operators are")
    outcomes = {}
    for name in wanted:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        status = every[name]()
        said = {
            0: "passed",
            NO_SANITIZER: "skipped: compute-sanitizer is not installed",
            124: "FAILED: out of time",
        }
        outcomes[name] = (
            f"{said.get(status, f'FAILED: exit status {status}')} ({time.monotonic() - start:.0f} s)"
        )
        if name == "build" and status:
            break
    print("== summary")
    for name, outcome in outcomes.items():
        print(f"{name:20}{outcome}")
    if missing:
        print(f"not done for want of {', '.join(missing)}: tests and times of the models")
    return int(any("FAILED" in outcome for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
