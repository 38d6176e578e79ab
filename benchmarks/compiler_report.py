"""What the CUDA compiler said about each kernel of the scan: registers, spills, stack."""

import re
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


def read_report(path: Path = REPORT) -> list[Kernel]:
    """Return the kernels of `path`, the output of `nvcc -Xptxas=-v` that the build keeps."""
    kernels = []
    for entry in _ENTRY.finditer(path.read_text()):
        name = _NAME.search(entry["name"])
        if not name:
            continue
        spilled = int(entry["stores"]) + int(entry["loads"])
        template = (name[1], ELEMENTS[name[2]], int(name[3]), name[4] == "1", name[5] == "1", name[6] == "1")
        numbers = (int(entry["registers"]), spilled, int(entry["stack"]))
        kernels.append(Kernel(entry["architecture"], *template, *numbers))
    return kernels
