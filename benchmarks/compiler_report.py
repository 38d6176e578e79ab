"""What the CUDA compiler said about each kernel of the operators: registers, spills, stack."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPORT = Path(__file__).resolve().parents[1] / "ops" / "lib" / "ptxas.txt"
ELEMENTS = {"f": "float32", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>sm_\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.S,
)
_NAME = re.compile(
    r"((?:scan|mix|merge)_(?:forward|backward)|sum_parts)_kernel"
    r"I(f|13__nv_bfloat16|6__half)Li(\d+)E(?:Lb(\d)ELb(\d)ELb(\d)E)?"
)
CONV_NAME = re.compile(
    r"(conv_(?:forward|gradient|sum))_kernelI(f|13__nv_bfloat16|6__half)(?:Li(\d+)ELb(\d)E)?"
)


class Kernel(NamedTuple):
    """One kernel for one architecture."""

    architecture: str
    pass_: str  # scan_, mix_ or merge_forward or _backward, or sum_parts
    dtype: str
    vector: int  # channels in a thread
    grouped: bool  # channels share logits
    single: bool  # one position in a thread
    row_stochastic: bool  # not sigmoid or none
    registers: int
    spilled_bytes: int
    stack_bytes: int

    @property
    def resident_warps(self) -> int:
        """Warps that a multiprocessor's registers hold: 4 schedulers of 16,384, given out by 8 a thread."""
        return 4 * (16384 // (32 * -(-self.registers // 8) * 8))


class ConvKernel(NamedTuple):
    """One kernel of the depthwise convolution for one architecture."""

    architecture: str
    pass_: str  # conv_forward, conv_gradient or conv_sum
    dtype: str
    size: int  # of the kernel; 0 of the sum
    usual: bool  # the plan's usual tile, by accesses of 16 bytes
    registers: int
    spilled_bytes: int
    stack_bytes: int


def _entries(path: Path) -> Iterator[tuple[str, str, tuple[int, int, int]]]:
    """Name, architecture, and registers, spilled bytes and stack of each kernel."""
    for entry in _ENTRY.finditer(path.read_text()):
        spilled = int(entry["stores"]) + int(entry["loads"])
        yield entry["name"], entry["architecture"], (int(entry["registers"]), spilled, int(entry["stack"]))


def read_report(path: Path = REPORT) -> list[Kernel]:
    """Return the kernels of `path`, the output of `nvcc -Xptxas=-v` that the build keeps."""
    kernels = []
    for mangled, architecture, numbers in _entries(path):
        name = _NAME.search(mangled)
        if not name:
            continue
        template = (name[1], ELEMENTS[name[2]], int(name[3]), name[4] == "1", name[5] == "1", name[6] == "1")
        kernels.append(Kernel(architecture, *template, *numbers))
    return kernels


def read_conv_report(path: Path = REPORT) -> list[ConvKernel]:
    """Return the depthwise convolution's kernels of `path`."""
    kernels = []
    for mangled, architecture, numbers in _entries(path):
        if name := CONV_NAME.search(mangled):
            template = (name[1], ELEMENTS[name[2]], int(name[3] or 0), name[4] == "1")
            kernels.append(ConvKernel(architecture, *template, *numbers))
    return kernels
