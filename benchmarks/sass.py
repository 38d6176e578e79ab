"""What the kernels' machine code does, read from the compiled library: `python benchmarks/sass.py`.

For every kernel and architecture: whether the copies of its ring are in the loop over the lines and how many groups of
them the wait leaves in flight, instructions an item, wide stores torn apart, spills. Needs cuobjdump and nvdisasm of
the version of the compiler that built the library (`make setup CUDA=1` installs both). `--write` keeps the counts of
benchmarks/results/sass.json, which the tests hold later builds to.

An item is one warp's step over one position. Its instructions are those from the label to the backward branch of the
smallest loop that holds a copy (LDGSTS), less the blocks that are reached only over a vote which some thread has lost,
divided by the items a trip: the groups of copies that it closes (LDGDEPBAR). The depthwise convolution's are described
in benchmarks/sass_conv.py.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.compiler_report import ELEMENTS  # noqa: E402
from gspn_dit.errors import UserError, run  # noqa: E402
from ops import build  # noqa: E402

LIBRARY = ROOT / "ops" / "lib" / build.LIBRARY_NAME
RESULTS = ROOT / "benchmarks" / "results" / "sass.json"

_NAME = re.compile(
    r"(scan|mix)_(forward|backward)_kernelI(f|13__nv_bfloat16|6__half)Li(\d+)ELb(\d)ELb(\d)ELb(\d)E"
)
_SECTION = re.compile(r"^\.text\.(\S+):")
_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\S*)\s*(.*?)\s*;")
_TARGET = re.compile(r"\((\.L_\w+)\)")
_SHARED_OR_GLOBAL = re.compile(r"\[(\w+)(?:\.64)?(?:\+(-?0x[0-9a-f]+))?\]")


class Instruction(NamedTuple):
    """One line of a listing."""

    predicate: str  # such as P0 or !P0; "" when there is none
    code: str  # such as STG.E.EF.64
    operands: str

    @property
    def name(self) -> str:
        return self.code.split(".")[0]


class Function(NamedTuple):
    """A kernel's listing: its instructions, and the number of the one that follows each label."""

    instructions: list[Instruction]
    labels: dict[str, int]


class Kernel(NamedTuple):
    """Which scan a function is."""

    pass_: str  # forward or backward, or, read out on the spot, mix_forward or mix_backward
    dtype: str
    vector: int
    grouped: bool
    single: bool
    row_stochastic: bool

    def __str__(self) -> str:
        normalization = "row_stochastic" if self.row_stochastic else "sigmoid or none"
        logits = "grouped" if self.grouped else "G=C"
        run_ = "one position" if self.single else "a run"
        return f"{self.pass_} {self.dtype} V{self.vector} {logits}, {run_}, {normalization}"


def parse(listing: str) -> dict[str, Function]:
    """The functions of an `nvdisasm -c` listing by their mangled name."""
    functions: dict[str, Function] = {}
    current = None
    for line in listing.splitlines():
        if section := _SECTION.match(line):
            current = functions.setdefault(section[1], Function([], {}))
        elif current is None:
            continue
        elif label := _LABEL.match(line):
            current.labels[label[1]] = len(current.instructions)
        elif found := _INSTRUCTION.match(line):
            current.instructions.append(Instruction(found[1] or "", found[2], found[3]))
    return functions


def kernel_of(name: str) -> Kernel | None:
    """The scan that a mangled name stands for."""
    found = _NAME.search(name)
    if not found:
        return None
    pass_ = found[2] if found[1] == "scan" else f"mix_{found[2]}"
    return Kernel(pass_, ELEMENTS[found[3]], int(found[4]), *(found[i] == "1" for i in (5, 6, 7)))


def target(function: Function, instruction: Instruction) -> int | None:
    """The instruction that a branch goes to."""
    found = _TARGET.search(instruction.operands) if instruction.name == "BRA" else None
    return function.labels.get(found[1]) if found else None


def line_loop(function: Function) -> range | None:
    """The smallest loop that holds a copy."""
    loops = []
    for end, instruction in enumerate(function.instructions):
        begin = target(function, instruction)
        if begin is not None and begin < end:
            body = range(begin, end + 1)
            if any(function.instructions[i].name == "LDGSTS" for i in body) and end in within(function, body):
                loops.append(body)
    return min(loops, key=len, default=None)


def within(function: Function, body: range, lost: set[tuple[int, int]] = frozenset()) -> set[int]:
    """What is reached from the first instruction without leaving `body`, and without the edges `lost`.

    A branch back from code that lies behind the kernel's end, such as a vote's of a warp that has parted, is reached
    from elsewhere, and closes no loop.
    """
    reached, waiting = set(), [body.start]
    while waiting:
        i = waiting.pop()
        if i in reached or i not in body:
            continue
        reached.add(i)
        waiting += [j for j in successors(function, i) if (i, j) not in lost]
    return reached


def lost_votes(function: Function, loop: range) -> set[tuple[int, int]]:
    """The edges that are taken when some thread has voted against, as (branch, what follows)."""
    edges, vote = set(), None
    for i in loop:
        instruction = function.instructions[i]
        if instruction.name == "VOTE" and instruction.operands.startswith("P"):
            vote = (instruction.operands.split(",")[0], "ALL" in instruction.code)
        elif instruction.name == "BRA" and vote and instruction.predicate.lstrip("!") == vote[0]:
            taken_when_true = not instruction.predicate.startswith("!")
            lost_when_true = not vote[1]  # VOTE.ANY asks for a thread that is against
            lost_is_taken = taken_when_true == lost_when_true
            edges.add((i, target(function, instruction) if lost_is_taken else i + 1))
            vote = None
    return edges


def successors(function: Function, i: int) -> list[int]:
    """What may follow instruction i."""
    instruction = function.instructions[i]
    goes_to = target(function, instruction)
    if goes_to is None:
        return [] if instruction.name == "EXIT" and not instruction.predicate else [i + 1]
    if instruction.code == "BRA.DIV":  # taken by a warp that has parted
        return [goes_to, i + 1]
    return [goes_to, i + 1] if instruction.predicate else [goes_to]


def counted(function: Function, loop: range) -> set[int]:
    """The instructions of the loop that are reached without a lost vote."""
    return within(function, loop, lost_votes(function, loop))


def shortest(function: Function, loop: range) -> int:
    """Instructions of the shortest way through the loop: of a line where the pass starts anew."""
    lost, distance, waiting = lost_votes(function, loop), {loop.start: 1}, [loop.start]
    for i in waiting:
        for j in successors(function, i):
            if j in loop and j not in distance and (i, j) not in lost:
                distance[j] = distance[i] + 1
                waiting.append(j)
    return distance[loop.stop - 1]


def torn_stores(function: Function) -> list[str]:
    """Generic stores, and neighbouring stores of 4 bytes to consecutive addresses."""
    torn, last = [], None
    for instruction in function.instructions:
        if instruction.name == "ST":
            torn.append(f"{instruction.code} {instruction.operands}")
        if instruction.name not in ("STG", "STS") or re.search(r"\.(64|128|U16|U8)\b", instruction.code):
            continue
        place = _SHARED_OR_GLOBAL.search(instruction.operands)
        here = (instruction.name, place[1], int(place[2] or "0", 16)) if place else None
        if here and last and here[:2] == last[:2] and abs(here[2] - last[2]) == 4:
            torn.append(f"{instruction.code} {instruction.operands}")
        last = here
    return torn


def groups_left(function: Function, loop: range) -> list[int]:
    """Groups of copies that each wait of the loop leaves in flight."""
    waits = [function.instructions[i] for i in loop if function.instructions[i].code == "DEPBAR.LE"]
    return [int(wait.operands.split(",")[1], 16) for wait in waits]


def spills(function: Function) -> int:
    """Accesses to local memory."""
    return sum(instruction.name in ("LDL", "STL") for instruction in function.instructions)


def describe(function: Function) -> dict:
    """All of the above."""
    loop = line_loop(function)
    found = {"torn_stores": torn_stores(function), "spills": spills(function)}
    if loop is None:
        return found | {"copies": 0, "groups_left": []}
    codes = [function.instructions[i].name for i in loop]
    items = max(1, codes.count("LDGDEPBAR"))
    return found | {
        "copies": codes.count("LDGSTS") // items,
        "groups_left": groups_left(function, loop),
        "instructions": len(counted(function, loop)) / items,
        "instructions_at_a_restart": shortest(function, loop) / items,
        "instructions_outside": len(function.instructions) - len(loop),
    }


def tools() -> tuple[Path, Path]:
    """cuobjdump and nvdisasm of the compiler that built the library; UserError where they are not there."""
    record = build.read_record(LIBRARY.with_name("build.json"))
    if "cuda" not in record.get("backends", []):
        raise UserError("the library has no CUDA kernels: build them with `make setup CUDA=1`")
    bin_ = next(build.torch_folder().parent.glob("nvidia/cu*/bin"), Path("/nowhere"))
    found = (bin_ / "cuobjdump", bin_ / "nvdisasm")
    if not all(tool.exists() for tool in found):
        raise UserError("cuobjdump and nvdisasm are not installed: `make setup CUDA=1` installs them")
    version = build.nvcc_version(found[1])
    if version != record["nvcc"]:
        raise UserError(f"the library is built with nvcc {record['nvcc']}, and nvdisasm is of {version}")
    return found


def listings(library: Path = LIBRARY) -> dict[str, list[str]]:
    """Architecture -> the listings of a library's CUDA code."""
    cuobjdump, nvdisasm = tools()
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [str(cuobjdump), "-xelf", "all", str(library)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        for path in sorted(Path(folder).glob("*.cubin")):
            architecture = re.search(r"sm_\d+\w*", path.name)[0]
            text = subprocess.run(
                [str(nvdisasm), "-c", str(path)], check=True, capture_output=True, text=True
            )
            found.setdefault(architecture, []).append(text.stdout)
    return found


def read_library(listed: dict[str, list[str]] | None = None) -> dict[tuple[str, Kernel], dict]:
    """What each scan kernel of each architecture does; `listed`: the library's `listings`, if they are at hand."""
    return {
        (architecture, kernel): describe(function)
        for architecture, texts in (listed or listings()).items()
        for text in texts
        for name, function in parse(text).items()
        if (kernel := kernel_of(name))
    }


def main(argv: list[str] | None = None) -> int:
    """Print the table, and keep the counts when asked to."""
    from benchmarks import sass_conv  # which reads with this module's parsers

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"keep the counts in {RESULTS.name}")
    arguments = parser.parse_args(argv)
    listed = listings()
    kernels, convolutions = read_library(listed), sass_conv.read_library(listed)
    print(f"{'kernel':66}{'arch':>7} copies left  an item  restart outside")
    for (architecture, kernel), found in sorted(kernels.items(), key=str):
        left = min(found["groups_left"], default=0)
        counts = [found.get(key, 0) for key in ("instructions", "instructions_at_a_restart")]
        print(f"{kernel!s:66}{architecture:>7}{found['copies']:7}{left:5}", end="")
        print(f"{counts[0]:9.0f}{counts[1]:9.0f}{found.get('instructions_outside', 0):8}")
    sass_conv.show(convolutions)
    if arguments.write:
        found = table(kernels) | {"convolutions": sass_conv.table(convolutions)}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written to {RESULTS}")
    return 0


def table(kernels: dict[tuple[str, Kernel], dict]) -> dict:
    """The counts that are kept: bfloat16 and row_stochastic on sm_90."""
    nvcc = build.read_record(LIBRARY.with_name("build.json"))["nvcc"]
    counts = {
        str(kernel): {key: found[key] for key in sorted(found) if key.startswith("instructions")}
        for (architecture, kernel), found in sorted(kernels.items(), key=str)
        if architecture == "sm_90" and kernel.dtype == "bfloat16" and kernel.row_stochastic
    }
    return {"nvcc": nvcc, "architecture": "sm_90", "kernels": counts}


if __name__ == "__main__":
    run(main)
