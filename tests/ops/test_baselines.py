"""The benchmark's launch-per-line baselines compute the scan: their source run on the CPU, a thread at a time."""

import ctypes
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_scans
from tests.stand_ins import OnTheCPU

SOURCE = Path(gpu_scans.__file__).with_name("baseline_scan.cu")
RUNTIME = """
#pragma once
#include <cmath>
#define __global__
#define __device__
struct Index { int x; };
inline Index threadIdx, blockIdx, blockDim{256};
using cudaStream_t = void*;
inline int cudaGetLastError() { return 0; }

template <typename Kernel>
void launch_threads(int blocks, Kernel kernel) {
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) kernel();
}
"""
BFLOAT16 = """
#pragma once
#include <cstdint>
#include <cstring>
struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 from) {
  const uint32_t bits = uint32_t{from.bits} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float from) {
  uint32_t bits;
  std::memcpy(&bits, &from, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
"""


def compile_for_cpu(folder: Path, source: str) -> ctypes.CDLL:
    """The source with each launch as a loop over its threads, which have neither barriers nor shared memory."""
    (folder / "cuda_runtime.h").write_text(RUNTIME)
    (folder / "cuda_bf16.h").write_text(BFLOAT16)
    launch = re.compile(r"(\w+<T, ChannelsLast>)<<<blocks, 256, 0, stream>>>\((.*?)\);\n", re.S)
    text, launches = launch.subn(r"launch_threads(blocks, [&] { \1(\2); });\n", source)
    assert launches == 2
    (folder / "baseline.cpp").write_text(text)
    library = folder / "libbaseline.so"
    command = ["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", f"-I{folder}"]
    subprocess.run([*command, str(folder / "baseline.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture
def check(tmp_path, monkeypatch):
    """check(source) compares a source's results, forward and backward, with the op's, as the benchmark does."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))

    def compare(source: str) -> None:
        library = compile_for_cpu(tmp_path, source)
        with OnTheCPU():
            gpu_scans.check_baselines(library)

    return compare


def test_both_baselines_compute_the_scan(check):
    check(SOURCE.read_text())


@pytest.mark.parametrize(
    "old, new",
    [
        ("value += w[1] * load(past);", "value += w[1] * load(past + 1);"),
        ("value += w[d] * g[at + s.map_line", "value += w[2 - d] * g[at + s.map_line"),
        ("s.map_position = s.position, s.map_line", "s.map_position = s.line, s.map_line"),
    ],
)
def test_a_wrong_baseline_is_noticed(old, new, check):
    source = SOURCE.read_text()
    assert source.count(old) == 1
    with pytest.raises(AssertionError, match="not close"):
        check(source.replace(old, new))
