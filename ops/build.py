"""Compile the scan into ops/lib/libgspn.so: one library, no pybind, only the stable ABI of torch.

    python ops/build.py                      build what has changed; CUDA too where a compiler is found
    python ops/build.py --cuda off           the CPU alone
    python ops/build.py --cuda required      fail without a CUDA compiler

Environment: CUDA_HOME (a toolkit to use), TORCH_CUDA_ARCH_LIST (default "8.0;9.0+PTX"), CXX, MAX_JOBS.
A script on its own: it imports neither torch nor this package, so that a build with nothing to do ends at once.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
LIBRARY_NAME = "libgspn.so"
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
USUAL_COMPILER = "/usr/local/cuda/bin"
STABLE_ABI = "0x020a000000000000"  # torch 2.10: the oldest torch that loads the library

# These are compiled once per instruction set; scan_cpu.cpp chooses at load. What takes longest comes first.
CPU_KERNELS = ("mix_cpu_kernel", "scan_cpu_kernel", "conv_cpu_kernel", "merge_cpu_kernel")
# The entries of the CUDA backend: torch's headers take nvcc three times as long, which sees them once for each pass.
CUDA_ENTRIES = ("scan_cuda", "merge_cuda", "mix_cuda", "conv_cuda")
X86_KERNELS = {"kBaselineKernels": "x86-64", "kAvx2Kernels": "x86-64-v3", "kAvx512Kernels": "x86-64-v4"}


class BuildError(Exception):
    """The build cannot go on: the message says why and what to do."""


def torch_folder() -> Path:
    """Return the folder of the installed torch without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("torch is not installed for this Python: install torch>=2.10 first (`make setup`)")
    return Path(spec.submodule_search_locations[0])


def torch_versions() -> tuple[str, str | None]:
    """Return torch's version and the CUDA version that it was built with (None: a CPU build)."""
    text = (torch_folder() / "version.py").read_text()
    version = re.search(r"^__version__ = '([^']+)'", text, re.M).group(1)
    cuda = re.search(r"^cuda(?:: [^=]+)? = '([^']+)'", text, re.M)
    return version, cuda.group(1) if cuda else None


def find_cuda(scratch: Path) -> Path | None:
    """Return a CUDA toolkit of torch's major version: $CUDA_HOME, PyPI's, the nvcc on PATH, or /usr/local/cuda."""
    _, cuda = torch_versions()
    if cuda is None:
        return None
    if os.environ.get("CUDA_HOME"):
        home = Path(os.environ["CUDA_HOME"])
        if not (home / "bin" / "nvcc").exists():
            raise BuildError(f"CUDA_HOME is {home}, which has no bin/nvcc: unset it or name a CUDA toolkit")
        return home
    wheel = torch_folder().parent / "nvidia" / f"cu{cuda.split('.')[0]}"
    if (wheel / "bin" / "nvcc").exists():
        return arrange_wheel(wheel, scratch / "cuda_home")
    for nvcc in filter(None, (shutil.which("nvcc"), shutil.which("nvcc", path=USUAL_COMPILER))):
        if nvcc_version(Path(nvcc)).split(".")[0] == cuda.split(".")[0]:
            return toolkit_of(Path(nvcc))
    return None


def toolkit_of(nvcc: Path) -> Path:
    """Return the folder of the toolkit behind `nvcc`, which may be a link or a script that calls the compiler."""
    command = [str(nvcc), "--dryrun", "-x", "cu", "-E", os.devnull]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    here = re.search(r"^#\$ _HERE_=(.+)$", text, re.M)
    return (Path(here[1]) if here else nvcc.resolve().parent).resolve().parent


def arrange_wheel(wheel: Path, home: Path) -> Path:
    """Lay links so that PyPI's wheels look like a toolkit: they ship no libcudart.so and no lib64."""
    (home / "lib64").mkdir(parents=True, exist_ok=True)
    runtime = next((wheel / "lib").glob("libcudart.so.*"), None)
    if runtime is None:
        raise BuildError(
            f"{wheel}/lib has no libcudart: reinstall the CUDA compiler with `make setup CUDA=1`"
        )
    links = {
        home / name: wheel / name for name in ("bin", "include", "nvvm", "cccl") if (wheel / name).exists()
    }
    links[home / "lib64" / "libcudart.so"] = runtime
    for archive in ("libcudart_static.a", "libcudadevrt.a"):  # the second for nvcc, where it links itself
        if (wheel / "lib" / archive).exists():
            links[home / "lib64" / archive] = wheel / "lib" / archive
    for link, target in links.items():
        if not link.is_symlink() or link.resolve() != target.resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return home


def nvcc_version(nvcc: Path) -> str:
    """Return for example "13.2"."""
    text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text).group(1)


def architecture_flags(architectures: str) -> list[str]:
    """Translate TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX", to nvcc's flags."""
    flags = []
    for item in re.split(r"[;, ]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", item)
        if not match:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST has {item!r}: expected numbers such as {DEFAULT_ARCHITECTURES}"
            )
        if int(match[1]) < 8:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST has {item}: the kernels' asynchronous copies need 8.0 or later"
            )
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cxx_program(cxx: list[str]) -> str:
    """The compiler in a CXX such as "ccache g++ -m64", which nvcc would take for the name of a program."""
    return next((word for word in reversed(cxx) if not word.startswith("-") and shutil.which(word)), cxx[0])


def compile_commands(cuda_home: Path | None) -> dict[str, list[str]]:
    """Return object name -> compiler command, without the output's name."""
    include = torch_folder() / "include"
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if not shutil.which(cxx[0]):
        raise BuildError(f"{cxx[0]} is not installed: install a C++17 compiler (Debian: apt-get install g++)")
    common = ["-std=c++17", "-O3", f"-DTORCH_TARGET_VERSION={STABLE_ABI}", "-isystem", str(include)]
    host = [*cxx, *common, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-maybe-uninitialized"]
    commands = {}
    if cuda_home:
        architectures = architecture_flags(os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES)
        nvcc = [str(cuda_home / "bin" / "nvcc"), "-ccbin", cxx_program(cxx), *common]
        nvcc += [*architectures, "-DUSE_CUDA"]
        nvcc += ["-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "-isystem", str(cuda_home / "include")]
        for source in sorted(SOURCES.glob("*.cu"), reverse=True):  # the scan's, which take longest, first
            commands[source.stem + ".cu.o"] = [*nvcc, "-c", str(source)]
        for name in CUDA_ENTRIES:
            flags = ["-DUSE_CUDA", "-isystem", str(cuda_home / "include")]
            commands[name + ".o"] = [*host, *flags, "-c", str(SOURCES / f"{name}.cpp")]
    x86 = platform.machine() in ("x86_64", "AMD64")
    tables = X86_KERNELS if x86 else {"kBaselineKernels": ""}
    for name, (table, march) in itertools.product(CPU_KERNELS, tables.items()):
        flags = [f"-DGSPN_KERNELS={table}", f'-DGSPN_KERNELS_NAME="{march or platform.machine()}"']
        flags += [f"-march={march}"] if march else []
        # Processors of the last decade do not use this set, and more than -O1 takes twice as long, -O3 a minute a file.
        flags += ["-O1"] if march == "x86-64" else []
        # Neither errno nor trapped exceptions are used; without them conditional code becomes vector selects.
        flags += ["-fno-math-errno", "-fno-trapping-math"]
        commands[f"{name}.{table}.o"] = [*host, *flags, "-c", str(SOURCES / f"{name}.cpp")]
    for name in ("gspn", "scan_cpu", "merge_cpu", "mix_cpu", "conv_cpu"):
        commands[name + ".o"] = [*host, "-c", str(SOURCES / f"{name}.cpp")]
    return commands


def fingerprint(command: list[str]) -> str:
    """Hash what decides an object: its command, its source and every header."""
    digest = hashlib.sha256(json.dumps([command, torch_versions()]).encode())
    included = (".h", ".cuh") if command[-1].endswith(".cu") else (".h",)
    headers = [path for path in SOURCES.iterdir() if path.suffix in included]
    for path in sorted([Path(command[-1]), *headers]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_object(name: str, command: list[str], folder: Path) -> Path:
    """Compile unless an object of the same fingerprint is there; keep the compiler's report beside it."""
    target = folder / f"{fingerprint(command)}-{name}"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        result = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
        if result.returncode:
            killed = (
                " (out of memory? set MAX_JOBS=1)"
                if result.returncode < 0 or "Killed" in result.stderr
                else ""
            )
            tail = "\n".join((result.stdout + result.stderr).splitlines()[-30:])
            raise BuildError(f"the compiler failed{killed}:\n{shlex.join(command)}\n{tail}")
        target.with_suffix(".log").write_text(result.stdout + result.stderr)
        partial.rename(target)
        for old in folder.glob(f"*-{name}"):
            if old != target:
                old.unlink()
                old.with_suffix(".log").unlink(missing_ok=True)
    return target


def cuda_runtime(cuda_home: Path) -> list[str]:
    """The linker's arguments for CUDA's runtime: its own copy where the toolkit has one to link.

    torch brings the runtime of the CUDA that it was built with, such as libcudart.so.12 or .13, and a library that
    needs one of them would load with those torches alone.
    """
    name = "libcudart_static.a"
    if any((cuda_home / folder / name).exists() for folder in ("lib64", "lib")):
        return [f"-l:{name}", f"-Wl,--exclude-libs,{name}", "-lrt", "-lpthread", "-ldl"]
    return ["-lcudart"]


def link_flags(cuda_home: Path | None) -> list[str]:
    """What the library is linked with."""
    # libtorch.so needs libtorch_cuda.so where there is one: what is taken from that is found through it, and a torch
    # without CUDA loads the library too.
    flags = [f"-L{torch_folder() / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"]
    if cuda_home:
        flags += [f"-L{cuda_home / 'lib64'}", f"-L{cuda_home / 'lib'}", *cuda_runtime(cuda_home)]
    return flags


def link(objects: list[Path], flags: list[str], library: Path) -> None:
    """Link aside and rename, so that an interrupted build leaves no broken library."""
    partial = library.with_suffix(f".{os.getpid()}.tmp")
    command = [*shlex.split(os.environ.get("CXX", "g++")), "-shared", "-o", str(partial)]
    command += [*map(str, objects), *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"linking failed:\n{shlex.join(command)}\n{result.stderr}")
    partial.rename(library)


def read_record(path: Path) -> dict:
    """Return what a build.json says was built; nothing where there is none or it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def build(out: Path, scratch: Path, cuda: str) -> dict:
    """Build the library in `out` and return what was built, as `python -m ops` prints it."""
    cuda_home = None if cuda == "off" else find_cuda(scratch)
    if cuda == "required" and cuda_home is None:
        raise BuildError(
            "no CUDA compiler for this torch: run `make setup CUDA=1`, or set CUDA_HOME to a toolkit"
        )
    commands = compile_commands(cuda_home)
    torch_version, torch_cuda = torch_versions()
    info = {
        "backends": ["cpu", "cuda"] if any(name.endswith(".cu.o") for name in commands) else ["cpu"],
        "architectures": os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
        if cuda_home
        else None,
        "nvcc": nvcc_version(cuda_home / "bin" / "nvcc") if cuda_home else None,
        "cxx": os.environ.get("CXX", "g++"),
        "torch": torch_version,
        "torch_cuda": torch_cuda,
        "objects": {name: fingerprint(command) for name, command in commands.items()},
        "link": link_flags(cuda_home),
    }
    library, record = out / LIBRARY_NAME, out / "build.json"
    if library.exists() and info.items() <= read_record(record).items():
        return info
    out.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    print(f"building the scan for {' and '.join(info['backends'])}: {len(commands)} files", flush=True)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda item: compile_object(*item, scratch), commands.items()))
    record.unlink(missing_ok=True)
    link(objects, info["link"], library)
    reports = [path.with_suffix(".log").read_text() for path in objects if path.name.endswith(".cu.o")]
    (out / "ptxas.txt").write_text("".join(reports))
    seconds = round(time.monotonic() - start, 1)
    partial = record.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps({**info, "seconds": seconds}, indent=1))
    partial.rename(record)
    return info


def main() -> int:
    """Build from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuda", choices=("auto", "off", "required"), default="auto")
    parser.add_argument("--out", type=Path, default=SOURCES.parent / "lib", help="folder of the library")
    parser.add_argument(
        "--scratch", type=Path, default=SOURCES.parent.parent / "build", help="folder of objects"
    )
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.scratch, arguments.cuda)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
