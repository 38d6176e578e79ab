"""What the depthwise convolution's machine code does: its loop over the rows, by the parsers of benchmarks/sass.py.

That loop is the smallest one that holds both multiplications (FFMA) and the end of a group of copies (LDGDEPBAR). The
instructions a row are those of the shortest way through it past the copies of one map, a wide store and the values that
go out: without the gate and the second map, which are branches that a warp takes together.
"""

from itertools import pairwise
from typing import NamedTuple

from benchmarks import sass
from benchmarks.compiler_report import CONV_NAME, ELEMENTS

COLUMNS = 8  # kRun of ops/csrc/conv_plan.h: elements of a thread in a row


class ConvKernel(NamedTuple):
    """Which convolution a function is."""

    pass_: str  # conv_forward or conv_gradient
    dtype: str
    size: int
    usual: bool  # 64 channels by 16 columns, accesses of 16 bytes

    def __str__(self) -> str:
        return f"{self.pass_} {self.dtype} {self.size}x{self.size}, {'usual' if self.usual else 'any'} tile"


def kernel_of(name: str) -> ConvKernel | None:
    """The convolution that a mangled name stands for."""
    found = CONV_NAME.search(name)
    if not found or not found[3]:
        return None
    return ConvKernel(found[1], ELEMENTS[found[2]], int(found[3]), found[4] == "1")


def row_loop(function: sass.Function) -> range:
    """The smallest loop that multiplies and closes a group of copies."""
    loops = []
    for end, instruction in enumerate(function.instructions):
        begin = sass.target(function, instruction)
        if begin is not None and begin < end:
            names = {function.instructions[i].name for i in range(begin, end + 1)}
            if {"FFMA", "LDGDEPBAR"} <= names:
                loops.append(range(begin, end + 1))
    return min(loops, key=len)


def steps(function: sass.Function, loop: range, begin: int, end: int) -> int:
    """Instructions from `begin` to before `end` on the shortest way inside of the loop."""
    distance, waiting = {begin: 0}, [begin]
    for i in waiting:
        for j in sass.successors(function, i):
            if j in loop and j > i and j not in distance:
                distance[j] = distance[i] + 1
                waiting.append(j)
    return distance[end]


def instructions_of_a_row(function: sass.Function, loop: range) -> int:
    """Of the shortest way past the first copy, the group's end, the first wide store, the first and the last use."""
    names = {
        name: [i for i in loop if function.instructions[i].name == name] for name in ("LDGSTS", "LDGDEPBAR")
    }
    stores = [i for i in loop if function.instructions[i].name == "STG"]
    outs = [i for i in loop if function.instructions[i].name == "STS"]
    ends = [loop.stop - 1]
    products = [i for i in loop if function.instructions[i].name == "FFMA"]
    places = [
        loop.start,
        names["LDGSTS"][0],
        names["LDGDEPBAR"][0],
        *stores[:1],
        products[0],
        products[-1],
        *outs[-1:],
    ]
    stops = sorted({*places, *ends})
    return sum(steps(function, loop, a, b) for a, b in pairwise(stops)) + 1


def describe(function: sass.Function, kernel: ConvKernel) -> dict:
    """The loop's copies, stores and multiplications."""
    loop = row_loop(function)
    inside = [function.instructions[i] for i in loop]
    codes = [instruction.code for instruction in inside]
    found = {
        "copies": [code for code in codes if code.startswith("LDGSTS")],
        "stores": [code for code in codes if code.startswith("STG")],
        "groups_left": sass.groups_left(function, loop),
        "generic_stores": [code for code in codes if code.split(".")[0] == "ST"],
        "loads": sum(code.startswith("LDG.") for code in codes),
        "spills": sass.spills(function),
        "multiply_adds": sum(code.startswith("FFMA") for code in codes),
        "instructions_outside": len(function.instructions) - len(loop),
    }
    if kernel.usual:
        found["instructions"] = instructions_of_a_row(function, loop)
    return found


def read_library(listed: dict[str, list[str]]) -> dict[tuple[str, ConvKernel], dict]:
    """What each convolution of each architecture does, from the library's `sass.listings`."""
    return {
        (architecture, kernel): describe(function, kernel)
        for architecture, texts in listed.items()
        for text in texts
        for name, function in sass.parse(text).items()
        if (kernel := kernel_of(name))
    }


def table(kernels: dict[tuple[str, ConvKernel], dict]) -> dict:
    """The counts that are kept: the usual kernels in bfloat16 on sm_90."""
    return {
        str(kernel): {key: found[key] for key in ("instructions", "multiply_adds", "instructions_outside")}
        for (architecture, kernel), found in sorted(kernels.items(), key=str)
        if architecture == "sm_90" and kernel.dtype == "bfloat16" and kernel.usual
    }


def show(kernels: dict[tuple[str, ConvKernel], dict]) -> None:
    """Print the table."""
    print(f"{'kernel':46}{'arch':>7} copies left stores     a row  multiplications outside")
    for (architecture, kernel), found in sorted(kernels.items(), key=str):
        print(
            f"{kernel!s:46}{architecture:>7}{len(found['copies']):7}{min(found['groups_left'], default=0):5}"
            f"{len(found['stores']):7}{found.get('instructions', 0):10}{found['multiply_adds']:17}"
            f"{found['instructions_outside']:8}"
        )
