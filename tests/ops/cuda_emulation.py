"""Run the CUDA kernels' source on the CPU, in the emulation of tests/ops/emulation."""

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from ops.arguments import DIRECTIONS, NORMALIZATIONS
from tests.ops.cases import make_inputs

SOURCES = Path(__file__).resolve().parents[2] / "ops" / "csrc"
EMULATION = Path(__file__).resolve().parent / "emulation"
COMPILER = ["g++", "-std=c++17", "-fPIC", "-Wno-unknown-pragmas"]
SCRATCH = tempfile.TemporaryDirectory(prefix="emulation-")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Scan(NamedTuple):
    """A scan's shape and settings."""

    batch: int
    height: int
    width: int
    channels: int
    groups: int
    directions: tuple[str, ...] = DIRECTIONS
    segment: int = 0
    normalization: str = "row_stochastic"
    reads_out: bool = False

    def numbers(self) -> ctypes.Array:
        """The order of shape_of in emulate_scan.cpp."""
        codes = [DIRECTIONS.index(direction) for direction in self.directions]
        sizes = [self.batch, self.height, self.width, len(codes), self.channels, self.groups, self.segment]
        codes += [0] * (4 - len(codes))
        settings = (NORMALIZATIONS.index(self.normalization), *codes, self.reads_out)
        return (ctypes.c_int64 * 13)(*sizes, *settings)

    def inputs(self, dtype: torch.dtype, scale: float = 2.0, seed: int = 0) -> list[torch.Tensor]:
        """Random x, lam, logits."""
        sizes = self[:5]
        return [t.detach() for t in make_inputs(*sizes, len(self.directions), dtype, scale=scale, seed=seed)]


class Plan(NamedTuple):
    """How the scan is laid out; all zero: as the op itself would."""

    vector: int = 0
    lanes: int = 0
    run: int = 0
    tiled: bool = False
    segments: int = 1  # of a task


AS_PLANNED = Plan()


class PlanReport(NamedTuple):
    """What plan_scan fills in."""

    vector: int
    lanes: int
    rows: int
    run: int
    tiled: int
    group_lanes: int
    parts: int
    shared_bytes: int
    blocks: int
    task_lines: int

    @property
    def threads(self) -> int:
        return self.lanes * self.rows * (4 if self.tiled else 1)


class Mutation(NamedTuple):
    """A mistake in the source and what must be said about it."""

    file: str
    old: str
    new: str
    noticed: str


VECTORS_OF_4 = (
    Mutation(
        "scan_dispatch.cuh",
        "if (vector == 4) return body(Constant<4>());\n  body(Constant<1>());",
        "body(Constant<4>());",
        "",
    ),
    Mutation("scan_dispatch.cuh", "  body(Constant<false>());\n", "", ""),
)
"""Not mistakes: they leave out the scan's kernels of one channel a thread and of other weights than row-stochastic."""


def mutated(mutations: Iterable[Mutation]) -> Callable[[str, str], str]:
    """The `edit` of `compile_emulation` that makes these mistakes."""

    def edit(name: str, text: str) -> str:
        for mutation in mutations:
            if mutation.file == name:
                assert mutation.old in text, f"{name} has no {mutation.old!r}: adapt the test"
                text = text.replace(mutation.old, mutation.new)
        return text

    return edit


def compile_emulation(
    folder: Path,
    edit: Callable[[str, str], str] | None = None,
    level: str = "-O1",
    kernels: tuple[str, ...] = ("scan", "merge"),
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> ctypes.CDLL:
    """Compile kernels for the host; `edit` (file name, text) -> text changes the source on its way.

    Scans and convolutions of other than `dtypes` are left out, which halves the time of a build for one.
    """
    sources = folder / "csrc"
    sources.mkdir(parents=True, exist_ok=True)  # after one that failed
    for path in [*SOURCES.glob("*.cuh"), *SOURCES.glob("*.h")]:
        text = path.read_text()
        (sources / path.name).write_text(edit(path.name, text) if edit else text)
    library = folder / "libemulation.so"
    command = [*COMPILER, level, "-shared", "-DGSPN_HOST_EMULATION", f"-I{sources}", f"-I{EMULATION}"]
    command += [f"-DGSPN_EMULATED_TYPES={sum(1 << DTYPES.index(dtype) for dtype in dtypes)}"]
    command += [*(str(EMULATION / f"emulate_{name}.cpp") for name in kernels), str(emulator())]
    subprocess.run([*command, "-o", str(library)], check=True, capture_output=True, text=True)
    return load_emulation(folder, kernels)


def load_emulation(folder: Path, kernels: tuple[str, ...]) -> ctypes.CDLL:
    """What `compile_emulation` left in a folder."""
    loaded = ctypes.CDLL(str(folder / "libemulation.so"))
    for name in kernels:
        getattr(loaded, f"emulate_{name}").restype = ctypes.c_char_p
    return loaded


@functools.cache
def emulator() -> Path:
    """The emulation itself, which has no kernel: compiled once for all libraries of a process."""
    target = Path(SCRATCH.name) / "emulation.o"
    command = [*COMPILER, "-O1", f"-I{SOURCES}", f"-I{EMULATION}", "-c", str(EMULATION / "emulation.cpp")]
    subprocess.run([*command, "-o", str(target)], check=True, capture_output=True, text=True)
    return target


def make_plan(
    library: ctypes.CDLL,
    scan: Scan,
    backward: bool,
    dtype: torch.dtype,
    *,
    alignment: int = 16,
    multiprocessors: int = 132,
    shared_per_block: int = 227 * 1024,
    plan: Plan = AS_PLANNED,
) -> PlanReport:
    """Return the plan of the op for a device, or `plan` completed."""
    out = (ctypes.c_int64 * 10)()
    wanted = (ctypes.c_int * 5)(*plan)
    limits = (ctypes.c_int64(alignment), multiprocessors, shared_per_block)
    library.plan_scan(scan.numbers(), int(backward), dtype.itemsize, *limits, wanted, out)
    return PlanReport(*out)


def run_forward(
    library: ctypes.CDLL,
    scan: Scan,
    inputs: list[torch.Tensor],
    plan: Plan = AS_PLANNED,
    seed: int = 0,
    first_image: int = 0,
) -> torch.Tensor:
    """Return h as the CUDA kernel computes it; raises AssertionError with what the emulation saw go wrong.

    All tensors begin with image `first_image` of the scan's batch; those before are not computed.
    """
    h = torch.full_like(inputs[1], torch.nan)
    _run(library, scan, False, [*inputs, h], plan, seed, first_image)
    return h


def run_backward(
    library: ctypes.CDLL,
    scan: Scan,
    inputs: list[torch.Tensor],
    plan: Plan = AS_PLANNED,
    seed: int = 0,
    first_image: int = 0,
) -> list[torch.Tensor]:
    """Return dx, dlam, dlogits for inputs grad_h, x, lam, logits, h."""
    outputs = [torch.full_like(tensor, torch.nan) for tensor in inputs[1:4]]
    _run(library, scan, True, [*inputs, *outputs], plan, seed, first_image)
    return outputs


def run_mix(
    library: ctypes.CDLL,
    scan: Scan,
    inputs: list[torch.Tensor | None],
    plan: Plan = AS_PLANNED,
    seed: int = 0,
    first_image: int = 0,
    states: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return y, and h if `states`, for x, lam, logits and u (or None)."""
    x, lam, logits, u = inputs
    h, y = torch.full_like(lam, torch.nan) if states else None, torch.full_like(x, torch.nan)
    _run(library, scan._replace(reads_out=True), False, [x, lam, logits, h, u, y], plan, seed, first_image)
    return y, h


def run_mix_backward(
    library: ctypes.CDLL,
    scan: Scan,
    inputs: list[torch.Tensor | None],
    plan: Plan = AS_PLANNED,
    seed: int = 0,
    first_image: int = 0,
) -> list[torch.Tensor]:
    """Return dx, dlam, dlogits, and du if there is a u, for grad_y, x, lam, logits, u (or None) and h."""
    grad_y, x, lam, logits, u, h = inputs
    outputs = [torch.full_like(tensor, torch.nan) for tensor in (x, lam, logits)]
    du = None if u is None else torch.full_like(u, torch.nan)
    tensors = [grad_y, x, lam, logits, h, *outputs, u, du]
    _run(library, scan._replace(reads_out=True), True, tensors, plan, seed, first_image)
    return outputs if u is None else [*outputs, du]


def _run(library, scan, backward, tensors, plan, seed, first_image):
    dtype = DTYPES.index(tensors[0].dtype)
    wanted = (ctypes.c_int * 5)(*plan)
    settings = (int(backward), dtype, ctypes.c_int64(16), wanted, ctypes.c_int64(first_image), seed)
    error = library.emulate_scan(scan.numbers(), *settings, _pointers(tensors))
    assert not error, error.decode()


def run_merge(
    library: ctypes.CDLL, tensors: list[torch.Tensor], vector: int, seed: int = 0, first_pixel: int = 0
) -> list[torch.Tensor]:
    """Return [y] for h and u (P, K, C), or [dh, du] for grad_y (P, C), h and u, as the CUDA kernel computes them.

    Without gates u is None, and so is du. All tensors begin with pixel `first_pixel`; those before are not computed.
    """
    backward = len(tensors) == 3
    pixels, directions, channels = tensors[-2].shape
    like = tensors[1:] if backward else [tensors[0][:, 0]]
    outputs = [None if t is None else torch.full_like(t, torch.nan) for t in like]
    shape = (ctypes.c_int64 * 3)(first_pixel + pixels, directions, channels)
    settings = (int(backward), DTYPES.index(tensors[0].dtype), vector, ctypes.c_int64(first_pixel), seed)
    error = library.emulate_merge(shape, *settings, _pointers([*tensors, *outputs]))
    assert not error, error.decode()
    return outputs


class ConvPlan(NamedTuple):
    """How a depthwise convolution is laid out; all zero: as the op itself would."""

    lanes: int = 0
    access: int = 0  # bytes
    rows: int = 0  # of a task, and its images
    images: int = 0


class ConvPlanReport(NamedTuple):
    """What plan_conv fills in."""

    lanes: int
    access: int
    rows: int
    images: int
    shared_bytes: int
    blocks: int
    parts: int


def make_conv_plan(
    library: ctypes.CDLL,
    shape: tuple[int, ...],
    size: int,
    dtype: torch.dtype,
    *,
    gradient: bool = False,
    maps: int = 0,
    alignment: int = 16,
    multiprocessors: int = 132,
    shared_per_block: int = 227 * 1024,
) -> ConvPlanReport:
    """Return the plan of the op for x (B, H, W, C); `maps`: 2 with a gate, 4 with a second map that goes out."""
    out, numbers = (ctypes.c_int64 * 7)(), (ctypes.c_int64 * 5)(*shape, size)
    limits = (ctypes.c_int64(alignment), multiprocessors, shared_per_block)
    library.plan_conv(numbers, int(gradient) + maps, dtype.itemsize, *limits, out)
    return ConvPlanReport(*out)


def run_conv(
    library: ctypes.CDLL,
    tensors: list[torch.Tensor | None],
    plan: ConvPlan = ConvPlan(),  # noqa: B008
    *,
    turned: bool = False,
    square: bool = False,
    keep: bool = False,
    seed: int = 0,
    first_image: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return y, and relu if `keep`, as the CUDA kernel computes them for x, positive, weight and bias, or None of them.

    The maps begin with image `first_image` of a batch; those before are not computed.
    """
    x, _, weight, _ = tensors
    y = torch.full_like(x, torch.nan)
    relu = torch.full_like(x, torch.nan) if keep else None
    settings = (False, plan, turned, square, first_image, seed)
    _run_conv(library, x, weight.shape[-1], [*tensors, y, relu], *settings)
    return y, relu


def run_conv_gradient(
    library: ctypes.CDLL,
    tensors: list[torch.Tensor | None],
    size: int,
    plan: ConvPlan = ConvPlan(),  # noqa: B008
    *,
    bias: bool = True,
    seed: int = 0,
    first_image: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return dweight, and dbias if `bias`, for grad_y, positive (or None) and x.

    With a `first_image` the images from it on are one task of the plan, whose sums in float32 are returned.
    """
    x, channels = tensors[2], tensors[2].shape[3]
    dtype = torch.float32 if first_image else x.dtype
    both = torch.full((channels * (size * size + 1),), torch.nan, dtype=dtype)
    dweight, dbias = both[: channels * size * size], both[channels * size * size :]
    outputs = [dweight, dbias if bias else None]
    _run_conv(library, x, size, [*tensors, *outputs], True, plan, False, False, first_image, seed)
    return dweight.view(channels, 1, size, size), dbias if bias else None


def _run_conv(library, x, size, tensors, gradient, plan, turned, square, first_image, seed):
    batch, *sizes = x.shape
    shape = (ctypes.c_int64 * 5)(first_image + batch, *sizes, size)
    wanted = (ctypes.c_int * 4)(*plan)
    flags = (int(turned), int(square), ctypes.c_int64(first_image), seed)
    settings = (int(gradient), DTYPES.index(x.dtype), wanted)
    error = library.emulate_conv(shape, *settings, *flags, _pointers(tensors))
    assert not error, error.decode()


def _pointers(tensors):
    """Addresses; of None none."""
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])
