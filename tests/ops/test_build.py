"""The build: every instruction set, the stable ABI, messages, the report of `python -m ops`."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ops import build

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for path in (ROOT / "ops" / "csrc").iterdir() if path.suffix in (".cpp", ".cu", ".h", ".cuh")
)

RUN_ONE_SET = """
import sys, torch, ctypes
from tests.ops.cases import make_inputs
from tests.ops.test_scan import compare
import ops.library
name = ctypes.CDLL(str(ops.library.LIBRARY)).gspn_cpu_instruction_set
name.restype = ctypes.c_char_p
print(name().decode())
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    for groups in (1, 37):
        for normalization in ("row_stochastic", "sigmoid"):
            compare(make_inputs(1, 4, 5, 37, groups, 4, dtype), normalization=normalization)
        compare(make_inputs(1, 4, 5, 37, groups, 4, dtype, scale=100.0))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other processors have one instruction set")
@pytest.mark.parametrize("name", ["x86-64", "x86-64-v3"])
def test_lesser_instruction_sets(name):
    """This processor may have a better set than its users': each one's kernels run here too."""
    result = subprocess.run(
        [sys.executable, "-c", RUN_ONE_SET],
        cwd=ROOT,
        env={**os.environ, "GSPN_CPU_ISA": name, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == [name]


def test_only_the_stable_abi_is_included():
    """One binary for every torch from 2.10 on: an include of ATen or c10 would tie it to one."""
    allowed = re.compile(r"torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/")
    for source in SOURCES:
        for include in re.findall(r'#include [<"]([^>"]+)[>"]', source.read_text()):
            if include.startswith(("torch/", "ATen", "c10", "pybind11", "Python")):
                assert allowed.match(include), f"{source.name} includes {include}"


def test_report(capsys):
    from ops.__main__ import main

    assert main() == 0
    report = capsys.readouterr().out
    assert re.search(r"^torch +2\.", report, re.M)
    assert re.search(r"^built +against torch 2\.\d+.* by ", report, re.M)
    assert re.search(r"^cpu +yes, ", report, re.M)
    assert re.search(r"^cuda +(yes, for \d|no: )", report, re.M)


def test_architecture_list():
    assert build.architecture_flags("8.0;9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert build.architecture_flags("9.0a") == ["-gencode=arch=compute_90a,code=sm_90a"]
    with pytest.raises(build.BuildError, match="'Hopper'"):
        build.architecture_flags("Hopper")


def test_every_source_is_compiled_for_the_oldest_torch_and_the_asked_architectures(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a 12.0+PTX")
    commands = build.compile_commands(tmp_path)
    assert {Path(command[-1]).name for command in commands.values()} == {
        path.name for path in SOURCES if path.suffix in (".cpp", ".cu")
    }
    for command in commands.values():
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in command
        architectures = [flag for flag in command if flag.startswith("-gencode")]
        is_cuda = command[-1].endswith(".cu")
        assert architectures == (build.architecture_flags("9.0a;12.0+PTX") if is_cuda else [])
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    flags = build.architecture_flags(build.DEFAULT_ARCHITECTURES)
    assert set(flags) <= set(build.compile_commands(tmp_path)["scan_cuda_float32.cu.o"])
    assert flags == build.architecture_flags("8.0;9.0+PTX")


def test_nvcc_gets_the_compiler_of_a_cxx_of_several_words(monkeypatch, tmp_path):
    assert build.cxx_program(["g++"]) == "g++"
    assert build.cxx_program(["env", "g++", "-m64"]) == "g++"
    monkeypatch.setenv("CXX", "env g++")
    command = build.compile_commands(tmp_path)["scan_cuda_float32.cu.o"]
    assert command[command.index("-ccbin") + 1] == "g++"


def test_build_takes_its_seconds_down_and_has_nothing_to_do_afterwards(monkeypatch, tmp_path):
    sources = {"empty.o": ["g++", "-fPIC", "-c", str(tmp_path / "empty.cpp")]}
    (tmp_path / "empty.cpp").write_text("")
    monkeypatch.setattr(build, "compile_commands", lambda cuda_home: sources)
    folders = (tmp_path / "lib", tmp_path / "scratch", "off")
    info = build.build(*folders)
    record = tmp_path / "lib" / "build.json"
    assert json.loads(record.read_text())["seconds"] >= 0
    monkeypatch.setattr(build, "link", None)  # a second build would call it
    assert build.build(*folders) == info


def test_missing_compilers_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no-such-compiler is not installed"):
        build.compile_commands(None)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    if build.torch_versions()[1] is not None:
        with pytest.raises(build.BuildError, match=r"CUDA_HOME is .* which has no bin/nvcc"):
            build.find_cuda(tmp_path)
    monkeypatch.setattr(build, "find_cuda", lambda scratch: None)
    with pytest.raises(build.BuildError, match="make setup"):
        build.build(tmp_path / "lib", tmp_path / "scratch", "required")


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def fake_compiler(toolkit, version):
    """Answers as nvcc does, from a toolkit's own folder."""
    return write_script(
        toolkit / "bin" / "nvcc",
        f"""case "$1" in
--version) echo 'release {version}, V{version}';;
*) echo '#$ _HERE_={toolkit}/bin' >&2;;
esac""",
    )


@pytest.fixture
def without_toolkits(monkeypatch, tmp_path):
    """A machine whose torch was built with CUDA 13.0 and which has no CUDA compiler yet."""
    monkeypatch.setattr(build, "torch_versions", lambda: ("2.11.0", "13.0"))
    monkeypatch.setattr(build, "torch_folder", lambda: tmp_path / "site-packages" / "torch")
    monkeypatch.setattr(build, "USUAL_COMPILER", str(tmp_path / "usual" / "bin"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_HOME", raising=False)


def test_toolkit_behind_a_script_on_the_path(without_toolkits, tmp_path):
    """/usr/local/bin/nvcc may be a script that calls the compiler: its own folder has no libraries to link."""
    assert build.find_cuda(tmp_path) is None
    compiler = fake_compiler(tmp_path / "toolkit", "13.0")
    write_script(tmp_path / "path" / "nvcc", f'exec {compiler} "$@"')
    assert build.find_cuda(tmp_path) == tmp_path / "toolkit"


def test_toolkit_in_its_usual_place_and_of_torchs_version(without_toolkits, tmp_path):
    fake_compiler(tmp_path / "usual", "12.8")
    assert build.find_cuda(tmp_path) is None
    fake_compiler(tmp_path / "usual", "13.2")
    write_script(tmp_path / "path" / "nvcc", f'exec {fake_compiler(tmp_path / "older", "12.8")} "$@"')
    assert build.find_cuda(tmp_path) == tmp_path / "usual"


def test_wheels_of_the_compiler_are_arranged_as_a_toolkit(without_toolkits, tmp_path):
    wheel = tmp_path / "site-packages" / "nvidia" / "cu13"
    fake_compiler(wheel, "13.0")
    (wheel / "lib").mkdir()
    with pytest.raises(build.BuildError, match="no libcudart"):
        build.find_cuda(tmp_path)
    for name in ("libcudart.so.13", "libcudart_static.a"):
        (wheel / "lib" / name).touch()
    home = build.find_cuda(tmp_path)
    assert (home / "bin" / "nvcc").resolve() == wheel / "bin" / "nvcc"
    assert (home / "lib64" / "libcudart.so").resolve() == wheel / "lib" / "libcudart.so.13"
    assert build.cuda_runtime(home)[0] == "-l:libcudart_static.a"
    (home / "lib64" / "libcudart_static.a").unlink()
    assert build.cuda_runtime(home) == ["-lcudart"]


def test_compiler_failure_shows_the_command_and_leaves_nothing(tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("int main( {")
    with pytest.raises(build.BuildError, match=r"(?s)the compiler failed:\ng\+\+ -c .*broken.cpp.*expected"):
        build.compile_object("broken.o", ["g++", "-c", str(source)], tmp_path)
    assert not list(tmp_path.glob("*.o*"))


def test_objects_follow_their_sources(tmp_path, monkeypatch):
    """An object is compiled again when its source or a header changes, and not otherwise."""
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "a.h").write_text("#define VALUE 1\n")
    (tmp_path / "a.cpp").write_text('#include "a.h"\nint value() { return VALUE; }\n')
    command = ["g++", "-c", str(tmp_path / "a.cpp")]
    first = build.compile_object("a.o", command, tmp_path)
    stamp = first.stat().st_mtime_ns
    assert build.compile_object("a.o", command, tmp_path).stat().st_mtime_ns == stamp
    (tmp_path / "a.h").write_text("#define VALUE 2\n")
    second = build.compile_object("a.o", command, tmp_path)
    assert second != first and not first.exists()


def test_objects_follow_their_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "a.cpp").touch()
    monkeypatch.setattr(build, "torch_versions", lambda: ("2.10.0", None))
    first = build.fingerprint(["g++", str(tmp_path / "a.cpp")])
    monkeypatch.setattr(build, "torch_versions", lambda: ("2.11.0", None))
    assert build.fingerprint(["g++", str(tmp_path / "a.cpp")]) != first


def value_of(library):
    """Asked in a process of its own: a library that is loaded stays loaded."""
    query = f"import ctypes; print(ctypes.CDLL({str(library)!r}).value())"
    return int(subprocess.run([sys.executable, "-c", query], capture_output=True, check=True).stdout)


@pytest.fixture
def small_build(tmp_path, monkeypatch):
    """A build of one function in place of the kernels; returns what it builds and what that says."""
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    source = tmp_path / "a.cpp"
    monkeypatch.setattr(
        build, "compile_commands", lambda cuda_home: {"a.o": ["g++", "-fPIC", "-c", str(source)]}
    )
    monkeypatch.setattr(build, "link_flags", lambda cuda_home: [])

    def run(value):
        source.write_text(f'extern "C" int value() {{ return {value}; }}')
        build.build(tmp_path / "lib", tmp_path / "scratch", "off")
        library = tmp_path / "lib" / build.LIBRARY_NAME
        return library, value_of(library)

    return run


def test_library_follows_its_sources(small_build):
    library, value = small_build(1)
    stamp = library.stat().st_mtime_ns
    assert value == 1
    assert small_build(1)[0].stat().st_mtime_ns == stamp
    assert small_build(2)[1] == 2


def test_interrupted_build_is_not_taken_for_a_finished_one(small_build, monkeypatch):
    library, _ = small_build(1)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "link", interrupt)
        with pytest.raises(KeyboardInterrupt):
            small_build(2)
    assert value_of(library) == 1
    assert small_build(2)[1] == 2


@pytest.mark.parametrize("content", [b"", b'{"backends": [', b"\0" * 64])
def test_unreadable_record_of_a_build_means_build_again(small_build, content):
    library, _ = small_build(1)
    record, stamp = library.with_name("build.json"), library.stat().st_mtime_ns
    whole = json.loads(record.read_bytes())
    record.write_bytes(content)
    assert small_build(1)[0].stat().st_mtime_ns != stamp
    assert json.loads(record.read_bytes()) | {"seconds": None} == whole | {"seconds": None}
    assert not list(library.parent.glob("*.tmp"))


def test_library_is_linked_again_for_other_flags(small_build, monkeypatch):
    library, _ = small_build(1)
    stamp = library.stat().st_mtime_ns
    monkeypatch.setattr(build, "link_flags", lambda cuda_home: ["-lm"])
    assert small_build(1)[0].stat().st_mtime_ns != stamp


@pytest.mark.parametrize("jobs", [1, 3])
def test_max_jobs_is_honoured(tmp_path, monkeypatch, jobs):
    running, most = [], []

    def compile_object(name, command, folder):
        running.append(name)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(name)
        return folder / name

    monkeypatch.setenv("MAX_JOBS", str(jobs))
    monkeypatch.setattr(
        build, "compile_commands", lambda cuda_home: {f"{i}.o": ["g++", __file__] for i in range(6)}
    )
    monkeypatch.setattr(build, "compile_object", compile_object)
    monkeypatch.setattr(build, "link", lambda *_: None)
    build.build(tmp_path / "lib", tmp_path / "scratch", "off")
    assert max(most) == jobs
