"""The scan itself on a GPU: share of the copy bandwidth, and what it is compared with."""

import contextlib
import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_timing import compile_afresh, median_seconds, rotations
from benchmarks.scan_cost import WIDE_MAP, Plan, Shape, ideal_bytes, model_shapes, plan_of, scratch_bytes
from ops import build, reference

CODES = [0, 1, 2, 3]
K = len(CODES)


def make_tensors(shape: Shape, dtype: torch.dtype, backward: bool) -> list[torch.Tensor]:
    """Random x, lam, logits; before them grad_h and after them h for the backward pass."""
    pixels = (shape.batch, shape.height, shape.width)
    sizes = [(*pixels, shape.channels), (*pixels, K, shape.channels), (*pixels, K, 3, shape.groups)]
    x, lam, logits = (torch.randn(size, device="cuda", dtype=dtype) for size in sizes)
    if not backward:
        return [x, lam, logits]
    h = torch.ops.gspn.scan(x, lam, logits, CODES, shape.segment, 0)
    return [torch.randn_like(h), x, lam, logits, h]


def time_scan(shape: Shape, dtype: torch.dtype, backward: bool) -> float:
    """Median seconds of the op on rotating inputs."""
    bytes_of_a_set = ideal_bytes(shape, dtype, backward)
    sets = [make_tensors(shape, dtype, backward) for _ in range(rotations(bytes_of_a_set))]
    operator = torch.ops.gspn.scan_backward if backward else torch.ops.gspn.scan
    return median_seconds(lambda i: operator(*sets[i], CODES, shape.segment, 0), len(sets))


def device_plan(shape: Shape, dtype: torch.dtype, backward: bool) -> Plan:
    """The plan on this device."""
    properties = torch.cuda.get_device_properties(0)
    shared = properties.shared_memory_per_block_optin
    return plan_of(shape, dtype, backward, properties.multi_processor_count, shared)


def scan_rows(copy_bytes_per_second: float) -> Iterator[dict]:
    """Every listed shape, forward and backward."""
    cases = [(shape, torch.bfloat16) for shape in [*model_shapes(), WIDE_MAP]]
    cases += [(WIDE_MAP, torch.float32), (model_shapes()[0], torch.float32)]
    for shape, dtype in cases:
        for backward in (False, True):
            plan = device_plan(shape, dtype, backward)
            ideal = ideal_bytes(shape, dtype, backward)
            moved = ideal + scratch_bytes(shape, backward, plan)
            seconds = time_scan(shape, dtype, backward)
            torch.cuda.empty_cache()
            yield {
                "shape": shape._asdict(),
                "dtype": str(dtype).removeprefix("torch."),
                "pass": "backward" if backward else "forward",
                "microseconds": seconds * 1e6,
                "moved_bytes": moved,
                "ideal_bytes": ideal,
                "share_of_copy": moved / seconds / copy_bytes_per_second,
                "share_of_ideal": ideal / seconds / copy_bytes_per_second,
                "plan": plan._asdict(),
            }


def compile_baselines(folder: Path, architecture: str) -> ctypes.CDLL:
    """Compile baseline_scan.cu for a device's architecture, such as "sm_90"."""
    home = build.find_cuda(folder)
    if home is None:
        raise RuntimeError("no CUDA compiler for the baselines")
    source = Path(__file__).with_name("baseline_scan.cu")
    library = folder / "libbaseline.so"
    command = [str(home / "bin" / "nvcc"), "-std=c++17", "-O3", f"-arch={architecture}", "-shared"]
    command += ["-Xcompiler=-fPIC", str(source), "-o", str(library)]
    # nvcc 13.0 looks for its libraries where PyPI's wheels have none, not in what build.py has laid out for it.
    command += [f"-L{home / name}" for name in ("lib64", "lib")]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the baselines do not compile:\n{result.stdout}{result.stderr}")
    return ctypes.CDLL(str(library))


def run_baseline(
    library: ctypes.CDLL,
    shape: Shape,
    tensors: list,
    channels_last: bool,
    backward: bool,
    directions: int = K,
) -> None:
    """All launches of one pass on the current stream; G = C, tensors as baseline_scan.cu wants them."""
    _, batch, height, width, channels, _, segment = shape
    sizes = (ctypes.c_int64 * 6)(batch, height, width, channels, directions, segment)
    pointers = (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
    is_bfloat16 = int(tensors[0].dtype == torch.bfloat16)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    error = library.baseline_scan(sizes, is_bfloat16, int(channels_last), int(backward), pointers, stream)
    if error:
        raise RuntimeError(f"the baseline failed with CUDA error {error}")


def baseline_tensors(shape: Shape, dtype: torch.dtype, backward: bool) -> list[torch.Tensor]:
    """The op's inputs, with logits for every channel, followed by what the baseline writes."""
    tensors = make_tensors(shape._replace(groups=shape.channels), dtype, backward)
    return [*tensors, *baseline_outputs(tensors, backward)]


def baseline_outputs(tensors: list[torch.Tensor], backward: bool) -> list[torch.Tensor]:
    """h; or the float32 state, dx (float32, summed into), dlam and dlogits."""
    if not backward:
        return [torch.empty_like(tensors[1])]
    _, x, lam, logits, _ = tensors
    state, dx = torch.empty_like(lam, dtype=torch.float32), torch.zeros_like(x, dtype=torch.float32)
    return [state, dx, torch.empty_like(lam), torch.empty_like(logits)]


def channels_first(tensor: torch.Tensor) -> torch.Tensor:
    """(B, H, W, ..., C) -> (B, ..., C, H, W): what the uncoalesced baseline reads for the direction "right"."""
    return tensor.movedim((1, 2), (-2, -1)).contiguous()


def check_baselines(library: ctypes.CDLL) -> None:
    """Both compute the scan's own function: the coalesced in all directions, the uncoalesced in one."""
    shape = Shape("check", 2, 7, 5, 6, 6, 3)
    for channels_last, codes in ((True, CODES), (False, CODES[:1])):
        grad_h, x, lam, logits, _ = make_tensors(shape, torch.float32, True)
        maps = [tensor[:, :, :, : len(codes)].contiguous() for tensor in (grad_h, lam, logits)]
        inputs = [x, *maps[1:]]
        h = torch.ops.gspn.scan(*inputs, codes, shape.segment, 0)
        tensors = [maps[0], *inputs, h]
        wanted = [h, *torch.ops.gspn.scan_backward(*tensors, codes, shape.segment, 0)]
        layout = (lambda tensor: tensor) if channels_last else channels_first
        tensors = [layout(tensor) for tensor in tensors]
        forward, backward = baseline_outputs(tensors[1:4], False), baseline_outputs(tensors, True)
        settings = (channels_last, False, len(codes)), (channels_last, True, len(codes))
        run_baseline(library, shape, [*tensors[1:4], *forward], *settings[0])
        run_baseline(library, shape, [*tensors, *backward], *settings[1])
        for actual, expected in zip([*forward, *backward[1:]], wanted, strict=True):
            torch.testing.assert_close(actual, layout(expected), rtol=1e-4, atol=1e-4)


def baseline_rows() -> Iterator[dict]:
    """One launch for each line, uncoalesced and coalesced, against the op, in bfloat16.

    As published they have logits for every channel; the op has the groups of its shape.
    """
    with tempfile.TemporaryDirectory() as folder:
        major, minor = torch.cuda.get_device_capability()
        library = compile_baselines(Path(folder), f"sm_{major}{minor}")
        check_baselines(library)
        for shape in (WIDE_MAP, *(s for s in model_shapes() if not s.segment)):
            for backward in (False, True):
                row = {
                    "shape": shape._asdict(),
                    "pass": "backward" if backward else "forward",
                    "dtype": "bfloat16",
                }
                row["op_microseconds"] = time_scan(shape, torch.bfloat16, backward) * 1e6
                tensors = baseline_tensors(shape, torch.bfloat16, backward)
                for name, channels_last in (("uncoalesced", False), ("coalesced", True)):
                    settings = (library, shape, tensors, channels_last, backward)
                    seconds = median_seconds(lambda _, settings=settings: run_baseline(*settings))
                    row[f"{name}_microseconds"] = seconds * 1e6
                    row[f"times_{name}"] = seconds * 1e6 / row["op_microseconds"]
                del tensors
                torch.cuda.empty_cache()
                yield row


def attention_rows(width: int = 1152, heads: int = 16) -> Iterator[dict]:
    """Flash attention at equal tokens and width, against the scans of GSPN-DiT-XL/2."""
    for shape in (s for s in model_shapes() if s.channels == width):
        tokens = shape.height * shape.width
        q, k, v = (
            torch.randn(shape.batch, heads, tokens, width // heads, device="cuda", dtype=torch.bfloat16)
            for _ in range(3)
        )
        row = {"shape": shape._asdict(), "tokens": tokens}
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            row["attention_forward_microseconds"] = 1e6 * median_seconds(
                lambda _, qkv=(q, k, v): F.scaled_dot_product_attention(*qkv)
            )
            leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
            out = F.scaled_dot_product_attention(*leaves)
            grad = torch.randn_like(out)
            row["attention_backward_microseconds"] = 1e6 * median_seconds(
                lambda _, args=(out, leaves, grad): torch.autograd.grad(*args, retain_graph=True)
            )
        for name, backward in (("forward", False), ("backward", True)):
            row[f"scan_{name}_microseconds"] = 1e6 * time_scan(shape, torch.bfloat16, backward)
            row[f"attention_over_scan_{name}"] = (
                row[f"attention_{name}_microseconds"] / row[f"scan_{name}_microseconds"]
            )
        torch.cuda.empty_cache()
        yield row


@contextlib.contextmanager
def compiled_reference(as_one: bool) -> Iterator[Callable[..., torch.Tensor]]:
    """The reference, compiled as one graph or in the step from a line to the next."""
    if as_one:
        yield compile_afresh(reference.gspn_scan_reference)
        return
    step = compile_afresh(reference.cross_line)
    # One compilation for each layout of the lines, by direction and by whether gradients are wanted.
    with torch._dynamo.config.patch(recompile_limit=64), mock.patch.object(reference, "cross_line", step):
        yield reference.gspn_scan_reference


def time_reference(run: Callable[..., torch.Tensor], shape: Shape) -> dict[str, float]:
    """Microseconds forward and backward, in bfloat16."""
    inputs = [t.requires_grad_() for t in make_tensors(shape, torch.bfloat16, False)]
    with torch.no_grad():
        forward = median_seconds(lambda _: run(*inputs))
    # A compiled graph gives its buffers away to the backward pass, which could not be repeated.
    with torch._functorch.config.patch(donated_buffer=False):
        h = run(*inputs)
        grad = torch.randn_like(h)
        backward = median_seconds(lambda _: torch.autograd.grad(h, inputs, grad, retain_graph=True))
    return {
        "reference_forward_microseconds": 1e6 * forward,
        "reference_backward_microseconds": 1e6 * backward,
    }


def compiled_reference_rows() -> Iterator[dict]:
    """The plain PyTorch scan under torch.compile: as one graph at the 256-pixel grid, else line by line.

    A graph grows with the lines that it unrolls: past 16 it takes minutes to compile, so there the step from a line to
    the next is compiled, and what is left around it runs eagerly.
    """
    for shape in (s for s in model_shapes() if not s.segment):
        as_one = shape.height == 16
        row = {"shape": shape._asdict(), "dtype": "bfloat16", "compiled": "scan" if as_one else "line"}
        with compiled_reference(as_one) as run:
            row |= time_reference(run, shape)
        torch.cuda.empty_cache()
        for name, backward in (("forward", False), ("backward", True)):
            op = 1e6 * time_scan(shape, torch.bfloat16, backward)
            row[f"times_reference_{name}"] = row[f"reference_{name}_microseconds"] / op
        yield row
