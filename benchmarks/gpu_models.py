"""The modules around the scan on a GPU: mixers and training steps against attention's; a mixer's profile."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_timing import compile_afresh, median_seconds, rotations
from benchmarks.mixer_cost import DIRECTIONS, WIDTH
from benchmarks.mixer_stages import merge_by_formula, mixer_stages
from benchmarks.scan_cost import model_shapes
from gspn_dit import create_model
from gspn_dit.models.mixers import create_mixer
from gspn_dit.models.settings import resolve_settings

GRIDS = {16: 64, 32: 16, 64: 4, 128: 1, 256: 1}  # tokens on a side: batch
STAGED, PROFILED = (16, 32, 64), (16, 64)  # the grids of these parts
PROFILED_PASSES = 5
STEP_BLOCKS = 4
MIXERS = {
    "attention": ("DiT-XL/2", None),
    "gspn": ("GSPN-DiT-XL/2", 0),
    "gspn, segments of 2": ("GSPN-DiT-XL/2", 2),
}
STEP_MODELS = {"attention": "DiT-XL/2", "gspn": "GSPN-DiT-XL/2"}


def make_mixer(kind: str) -> nn.Module:
    """A mixer of width 1,152 in bfloat16."""
    name, segment = MIXERS[kind]
    with torch.device("cuda"):
        mixer = create_mixer(resolve_settings(name), segment)
    for module in mixer.modules():
        if hasattr(module, "initialize_weights"):
            module.initialize_weights()
    return mixer.to(torch.bfloat16)


def forward_backward(mixer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> None:
    """One forward and one backward pass, gradients of input and weights."""
    torch.autograd.grad(mixer(x), (x, *mixer.parameters()), grad)


def mixer_rows(compiled: bool = True) -> Iterator[dict]:
    """Forward, and forward with backward, of each mixer at each grid; both sides under torch.compile."""
    mixers = {kind: make_mixer(kind) for kind in MIXERS}
    for side, batch in GRIDS.items():
        row = {"pixels": side * 16, "tokens": side * side, "batch": batch, "compiled": compiled}
        for kind, mixer in mixers.items():
            run = compile_afresh(mixer) if compiled else mixer
            x = torch.randn(batch, side, side, WIDTH, device="cuda", dtype=torch.bfloat16)
            with torch.no_grad():
                row[f"{kind}, forward"] = 1e6 * median_seconds(lambda _, args=(run, x): args[0](args[1]))
            x.requires_grad_()
            args = (run, x, torch.randn_like(x))
            row[f"{kind}, forward and backward"] = 1e6 * median_seconds(
                lambda _, args=args: forward_backward(*args)
            )
            row[f"{kind}, weights"] = sum(p.numel() for p in mixer.parameters())
        torch.cuda.empty_cache()
        yield row


def merge_rows(copy_bytes_per_second: float) -> Iterator[dict]:
    """The gated merge at the mixers' shapes, and the formula of one pass each that it replaces."""
    for shape in (s for s in model_shapes() if not s.segment):
        pixels = shape.batch * shape.height * shape.width
        size = (pixels, DIRECTIONS, shape.channels)
        maps = pixels * DIRECTIONS * shape.channels * 2
        for backward in (False, True):
            moved = (4 if backward else 2) * maps + maps // DIRECTIONS
            sets = [
                [torch.randn(size, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
                for _ in range(rotations(moved))
            ]
            row = {
                "shape": shape._asdict(),
                "dtype": "bfloat16",
                "pass": "backward" if backward else "forward",
            }
            for name, merge in (("op", torch.ops.gspn.merge), ("formula", merge_by_formula)):
                row[f"{name}_microseconds"] = 1e6 * time_merge(merge, sets, backward)
            row["moved_bytes"] = moved
            row["share_of_copy"] = moved / (row["op_microseconds"] / 1e6) / copy_bytes_per_second
            row["times_formula"] = row["formula_microseconds"] / row["op_microseconds"]
            del sets
            torch.cuda.empty_cache()
            yield row


def time_merge(merge: Callable[..., torch.Tensor], sets: list[list[torch.Tensor]], backward: bool) -> float:
    """Median seconds of one pass over rotating inputs."""
    if not backward:
        with torch.no_grad():
            return median_seconds(lambda i: merge(*sets[i]), len(sets))
    leaves = [[tensor.detach().requires_grad_() for tensor in maps] for maps in sets]
    outputs = [merge(*maps) for maps in leaves]
    grads = [torch.randn_like(y) for y in outputs]
    run = lambda i: torch.autograd.grad(outputs[i], leaves[i], grads[i], retain_graph=True)  # noqa: E731
    return median_seconds(run, len(sets))


def stage_rows() -> Iterator[dict]:
    """Forward and backward of each stage of GSPN-DiT-XL/2's mixer, alone and in eager mode."""
    for side in STAGED:
        x = torch.randn(GRIDS[side], side, side, WIDTH, device="cuda", dtype=torch.bfloat16)
        row = {"pixels": side * 16, "batch": GRIDS[side], "stages": []}
        for stage in mixer_stages(make_mixer("gspn"), x):
            with torch.no_grad():
                forward = median_seconds(lambda _, stage=stage: stage.run(*stage.inputs))
            outputs = stage.run(*stage.inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            args = (stage, outputs, [torch.randn_like(output) for output in outputs])
            backward = median_seconds(lambda _, args=args: args[0].gradients(*args[1:]))
            row["stages"].append(
                {
                    "stage": stage.name,
                    "forward_microseconds": 1e6 * forward,
                    "backward_microseconds": 1e6 * backward,
                }
            )
        torch.cuda.empty_cache()
        yield row


def make_step(name: str, side: int, batch: int) -> Callable[[int], None]:
    """A training step of a model of STEP_BLOCKS blocks: forward, backward, AdamW, in bfloat16 autocast."""
    with torch.device("cuda"):
        model = create_model(name, input_size=2 * side, depth=STEP_BLOCKS)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(batch, 4, 2 * side, 2 * side, device="cuda")
    t, y = torch.rand(batch, device="cuda") * 999, torch.randint(1000, (batch,), device="cuda")

    def step(_: int) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x, t, y).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_rows() -> Iterator[dict]:
    """The whole training step of GSPN-DiT-XL/2 and DiT-XL/2, four blocks deep."""
    for side, batch in GRIDS.items():
        row = {"pixels": side * 16, "tokens": side * side, "batch": batch, "blocks": STEP_BLOCKS}
        for kind, name in STEP_MODELS.items():
            row[f"{kind}, step"] = 1e6 * median_seconds(make_step(name, side, batch), seconds=0.5)
            torch.cuda.empty_cache()
        yield row


def crossover(rows: list[dict], what: str) -> dict:
    """The first resolution in pixels from which GSPN is faster than attention at every larger one of `rows`.

    Rows may be missing where the time ran out or a grid failed: beside it stands how far they go.
    """
    first = None
    for row in sorted(rows, key=lambda row: row["pixels"], reverse=True):
        if row[f"gspn, {what}"] >= row[f"attention, {what}"]:
            break
        first = row["pixels"]
    measured = max((row["pixels"] for row in rows), default=None)
    return {"faster_from_pixels": first, "measured_to_pixels": measured}


def show_crossover(found: dict) -> str:
    """`crossover` in words."""
    first, measured = found["faster_from_pixels"], found["measured_to_pixels"]
    if measured is None:
        return "not measured"
    said = (
        f"GSPN is faster than attention from {first} pixels"
        if first
        else f"GSPN is not faster than attention at {measured} pixels"
    )
    return said if measured == 16 * max(GRIDS) else f"{said}; not measured beyond {measured} pixels"


def profile_rows() -> Iterator[dict]:
    """Device time of each kernel in GSPN-DiT-XL/2's mixer, forward and backward, eager and compiled."""
    for side in PROFILED:
        for compiled in (False, True):
            mixer = make_mixer("gspn")
            run = compile_afresh(mixer) if compiled else mixer
            shape = (GRIDS[side], side, side, WIDTH)
            x = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            grad = torch.randn_like(x)
            for _ in range(3):
                torch.autograd.grad(run(x), (x, *mixer.parameters()), grad)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
                for _ in range(PROFILED_PASSES):
                    torch.autograd.grad(run(x), (x, *mixer.parameters()), grad)
                torch.cuda.synchronize()
            averages = profiler.key_averages()
            kernels = [event for event in averages if event.device_type == torch.autograd.DeviceType.CUDA]
            kernels.sort(key=lambda event: event.self_device_time_total, reverse=True)
            total = sum(event.self_device_time_total for event in kernels)
            yield {
                "pixels": side * 16,
                "compiled": compiled,
                "microseconds": total / PROFILED_PASSES,
                "kernels": [
                    {
                        "name": event.key[:160],
                        "calls": event.count / PROFILED_PASSES,
                        "microseconds": event.self_device_time_total / PROFILED_PASSES,
                        "share": event.self_device_time_total / total,
                    }
                    for event in kernels[:20]
                ],
            }
