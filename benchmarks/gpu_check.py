"""Everything that needs a GPU, in one command and without network: `make gpu-check PYTHON=python3`.

Builds with the toolkit that is there, runs every test with the cuda parameter, compute-sanitizer (memcheck
and racecheck) on small shapes where it is installed, then the benchmark; the outcome of each goes into the
benchmark's results. No step takes more than eight minutes, and `--only` runs some of them: where no command may
take longer, `--only build`, then `--only "tests of the operators"` and so on; outcomes are kept side by side until
the next build. Needs a driver of the CUDA version that builds the library (580 or later for nvcc 13), and a Python
with torch >= 2.10; for the tests pytest, for the models einops, safetensors and yaml too. Exit status 0 when
nothing failed, 1 when something did, 2 when there is no GPU.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZER_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
NO_SANITIZER, NO_PYTEST, NO_MODELS, OUT_OF_TIME = 127, 126, 125, 124
STEP_SECONDS = 480  # a step is ended then
OUTCOMES = {
    0: "passed",
    NO_SANITIZER: "skipped: compute-sanitizer is not installed",
    NO_PYTEST: "skipped: pytest is not installed",
    NO_MODELS: "skipped: the models' packages are not installed",
    OUT_OF_TIME: "FAILED: out of time",
}
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


def has_pytest() -> bool:
    return importlib.util.find_spec("pytest") is not None


def call(command: list[str], seconds: int, **variables: str) -> int:
    """Run a command in the repository; OUT_OF_TIME when it takes longer than `seconds`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4", **variables}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return OUT_OF_TIME


def sanitize(tool: str) -> int:
    """Run compute-sanitizer on small scans; an error that it finds is exit status 3.

    Every tensor has an allocation of its own: an overrun within a segment of torch's cache would not be seen. CUDA
    calls that fail are not reported: torch makes some on purpose, to ask what a device can do.
    """
    sanitizer = shutil.which(
        "compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *SANITIZER_PLACES])
    )
    if sanitizer is None:
        return NO_SANITIZER
    script = str(ROOT / "benchmarks" / "sanitize_scan.py")
    command = [sanitizer, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "3"]
    return call([*command, sys.executable, script], 300, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def first_line(command: list[str]) -> str | None:
    """What a command says first; None where there is no such command or it fails."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.strip().split("\n")[0]


def compiler_version() -> str | None:
    """The nvcc that built the library; None where a build has left no record that can be read.

    Without ops.build, which has a reader of it: to import ops loads the library, the very thing that may be broken.
    """
    try:
        return json.loads((ROOT / "ops" / "lib" / "build.json").read_text())["nvcc"]
    except (OSError, ValueError, KeyError):
        return None


def record(outcomes: dict[str, str], results: Path) -> None:
    """Add the outcomes to those had since the last build, with what they were had with: written aside and renamed."""
    found = json.loads(results.read_text()) if results.exists() else {}
    if "build" not in outcomes:
        outcomes = found.get("check", {}).get("outcomes", {}) | outcomes
    found["check"] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "nvcc": compiler_version(),
        "driver": first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "outcomes": outcomes,
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    partial = results.with_suffix(".tmp")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(results)


def steps(minutes: float, results: Path) -> dict[str, Callable[[], int]]:
    """Name -> what runs it and returns an exit status."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-k", "cuda and not emulation"]

    def test(folders: list[str], skipped: int) -> int:
        return skipped or (call([*pytest, *folders], STEP_SECONDS) if has_pytest() else NO_PYTEST)

    bench = [python, "benchmarks/bench_gpu.py", "--minutes", str(minutes), "--json", str(results)]
    return {
        "build": lambda: call([python, "ops/build.py", "--cuda", "required"], STEP_SECONDS),
        "what was built": lambda: call([python, "-m", "ops"], 60),
        "tests of the operators": lambda: test(["tests/ops"], 0),
        "tests of the models": lambda: test(
            ["tests/models", "tests/diffusion"], NO_MODELS if missing_packages() else 0
        ),
        "memcheck": lambda: sanitize("memcheck"),
        "racecheck": lambda: sanitize("racecheck"),
        "benchmark": lambda: call(bench, int(60 * minutes) + 120),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the steps; one that fails does not stop the others, except the build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="comma-separated steps, such as 'build,tests of the operators'")
    parser.add_argument("--minutes", type=float, default=6, help="for the benchmark (default: %(default)s)")
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
    if not has_pytest():
        print(
            f"without pytest: the tests are skipped, the rest goes on; for them: {sys.executable} -m pip install pytest"
        )
    outcomes = {}
    for name in wanted:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        status = every[name]()
        said = OUTCOMES.get(status, f"FAILED: exit status {status}")
        outcomes[name] = f"{said} ({time.monotonic() - start:.0f} s)"
        if name == "build" and status:
            break
    record(outcomes, arguments.json)
    print("== summary")
    for name, outcome in outcomes.items():
        print(f"{name:20}{outcome}")
    if missing:
        print(f"not done for want of {', '.join(missing)}: tests and times of the models")
    return int(any("FAILED" in outcome for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
