"""The CUDA compiler's report of the last build: no spills, and registers within the plan's bound."""

import itertools
import json
import re
import subprocess

import pytest

from benchmarks.compiler_report import REPORT, Kernel, read_conv_report, read_report
from benchmarks.gpu_scans import compile_baselines
from ops import build
from ops.library import LIBRARY

INFO = json.loads(LIBRARY.with_name("build.json").read_text()) if LIBRARY.exists() else {"backends": []}
pytestmark = pytest.mark.skipif(
    "cuda" not in INFO["backends"], reason="the library was built without a CUDA compiler (make CUDA=0)"
)


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return read_report(REPORT)


def test_every_architecture_has_every_kernel(kernels):
    numbers = re.findall(r"\d+\.\d+[af]?", INFO["architectures"])
    architectures = {"sm_" + number.replace(".", "") for number in numbers}
    assert {kernel.architecture for kernel in kernels} == architectures
    for architecture in architectures:
        built = {kernel[1:7] for kernel in kernels if kernel.architecture == architecture}
        for dtype, vectors in (("float32", (1, 4)), ("bfloat16", (1, 4, 8)), ("float16", (1, 4, 8))):
            for vector in vectors:
                for grouped in (False, True):
                    for single, row_stochastic in itertools.product((False, True), repeat=2):
                        kernel = (dtype, vector, grouped, single, row_stochastic)
                        assert ("scan_forward", *kernel) in built
                        if vector < 8 or (grouped and single):
                            assert ("scan_backward", *kernel) in built
                if vector > 1:
                    for grouped in (False, True):
                        kernel = (dtype, vector, grouped, True, True)
                        assert ("mix_forward", *kernel) in built
                        assert ("mix_backward", *kernel) in built or (vector == 8 and not grouped)
            assert {("sum_parts", dtype, vector, False, False, False) for vector in (1, 4)} <= built
            for pass_ in ("merge_forward", "merge_backward"):
                assert {(pass_, dtype, vector, False, False, False) for vector in (2, *vectors)} <= built


@pytest.fixture(scope="module")
def conv_kernels():
    return read_conv_report(REPORT)


def test_every_architecture_has_every_convolution(kernels, conv_kernels):
    expected = {("conv_sum", 0, False)} | set(
        itertools.product(("conv_forward", "conv_gradient"), (3, 5, 7), (False, True))
    )
    found = {kernel[:5] for kernel in conv_kernels}
    for architecture in {kernel.architecture for kernel in kernels}:
        for dtype in ("float32", "bfloat16", "float16"):
            for pass_, *kernel in expected:
                assert (architecture, pass_, dtype, *kernel) in found


def test_registers_of_the_convolutions_leave_room_for_the_blocks_planned(conv_kernels):
    """resident_blocks of conv_plan.h, of 128 threads each; registers are given out by eight a thread."""
    resident = {0: 8, 3: 6, 5: 4, 7: 3}
    for kernel in conv_kernels:
        assert kernel.registers <= 65536 // (128 * resident[kernel.size]) // 8 * 8, kernel


def test_nothing_spills(kernels, conv_kernels):
    assert kernels and conv_kernels
    for kernel in [*kernels, *conv_kernels]:
        assert kernel.spilled_bytes == 0 and kernel.stack_bytes == 0, kernel


def test_registers_are_as_the_plan_believes(kernels):
    """register_limit of scan_plan.h: more would leave fewer resident blocks than planned."""
    for kernel in kernels:
        wide = kernel.vector * (4 if kernel.dtype == "float32" else 2) == 16
        if kernel.pass_.startswith("merge"):
            limit = 64  # four blocks of 256 threads on a multiprocessor, 128 bytes in flight in each
        elif kernel.vector == 1 or kernel.pass_ == "sum_parts":
            limit = 80 if kernel.pass_ == "scan_backward" else 64
        elif kernel.pass_.endswith("backward"):
            limit = 128
        elif wide and not kernel.grouped:
            limit = 80
        else:
            limit = 72 if wide and kernel.pass_ == "mix_forward" else 64
        assert kernel.registers <= limit, kernel


def test_baselines_of_the_benchmark_compile(tmp_path):
    if build.find_cuda(tmp_path) is None:
        pytest.skip("the CUDA compiler that built the library is not here")
    library = compile_baselines(tmp_path, "sm_90")
    assert library.baseline_scan


def test_library_needs_no_particular_cuda():
    """torch brings the CUDA runtime that it was built with, libcudart.so.12 or .13: a library linked to one of them
    loads with those torches alone, and one linked to libtorch_cuda.so with none that is built for the CPU."""
    command = ["readelf", "--dynamic", str(LIBRARY)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name]
