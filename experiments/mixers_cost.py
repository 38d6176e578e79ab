"""What a layer of each design costs for one token, by formula: bytes that must move and operations, forward.

Every stage reads its inputs and writes its outputs once, in bfloat16, and the scan and the merge take each map at its
own size: so the GSPN module as it is costs what benchmarks/mixer_cost.py says of it ("eager"). What a layer does once
for an image (adaLN's projection) is not counted, and of operations only those of products and convolutions.
"""

from typing import NamedTuple

from experiments.mixers_plan import Design, equal_mlp_ratio, parameters, resolved
from gspn_dit.models.settings import ModelSettings, resolve_settings

BYTES = 2
DIRECTIONS = 4
TOKENS = 256
"""Of a 256-pixel image in patches of 2 latent pixels: what attention's operations go by."""
WIDTH, DEPTH = 1152, 28


class Cost(NamedTuple):
    """Elements read and written, and multiply-adds times two, for one token."""

    elements: float = 0
    operations: float = 0


def add(parts: list[Cost]) -> Cost:
    return Cost(sum(part.elements for part in parts), sum(part.operations for part in parts))


def dense(inputs: float, outputs: float) -> Cost:
    return Cost(inputs + outputs, 2 * inputs * outputs)


def convolution(channels: int, size: int) -> Cost:
    return Cost(2 * channels, 2 * size**2 * channels) if size else Cost()


def scan_cost(s: ModelSettings, block: int) -> Cost:
    """The core of the GSPN module: maps from the bottleneck, the scan, gates and merge."""
    c, r, k, gains = s.width, s.bottleneck, DIRECTIONS, s.gain_groups
    scans = s.scan == "lines" and s.segment_of(block) is not None
    weights = k * 3 * s.groups if scans else 0
    forget = k * s.groups if scans and s.forget == "learned" else 0
    u = {"directions": k * gains, "merged": gains, "none": 0}[s.gate]
    skip = k * c if s.direction_skip else 0
    maps = [k * gains, u, weights, forget, skip]
    projections = [Cost(r + size, 2 * r * size) for size in maps if size]
    scan = Cost((1 + k) * c + k * gains + weights + forget)
    merge = Cost(k * c + u + c + (skip + c if skip else 0))
    if s.merge == "linear":
        merge = add([merge, dense(k * c, c), Cost(k * c - c)])  # the gated maps are written and read
    sequence = Cost(5 * c) if s.scan_order == "sequential" else Cost()  # x again, a sum more, and the norm
    return add([dense(c, r), *projections, scan, merge, sequence])


def mixer_cost(s: ModelSettings, block: int) -> Cost:
    """The mixer of a block."""
    c, wide = s.width, s.module_width
    attention = [dense(c, 3 * c), Cost(4 * c, 4 * TOKENS * c)]
    if s.mixer == "attention":
        return add([*attention, dense(c, c)])
    core = add(attention) if s.mixer == "conv_attention" else scan_cost(s, block)
    norm = {"none": 2 * c, "norm": 3 * c, "modulated": 3 * c}[
        s.local_path
    ]  # one pass over both and their sum
    first, second = s.kernel_sizes
    before = [dense(c, c), convolution(c, first)]
    after = [Cost(norm), dense(c, wide), convolution(wide, second), Cost(4 * wide), dense(wide, c)]
    return add([*before, core, *after])


def layer_cost(s: ModelSettings, block: int) -> Cost:
    """A whole DiT block: its mixer, its MLP, and the modulated norm and gated sum of each."""
    c = s.width
    branch = Cost(4 * c + 3 * c)
    if s.mlp is None:
        return add([mixer_cost(s, block), branch])
    hidden = int(c * s.mlp_ratio)
    mlp = [dense(c, hidden), Cost(2 * hidden), dense(hidden, c)]
    if s.mlp == "swiglu":
        hidden = hidden * 2 / 3
        mlp = [dense(c, 2 * hidden), Cost(3 * hidden), dense(hidden, c)]
    return add([mixer_cost(s, block), *mlp, branch, branch])


def cost_at_xl(design: Design) -> tuple[float, float]:
    """Bytes and operations for one token and layer, the mean of XL/2's layers, each as large as DiT-XL/2's."""
    name = f"{design.family}-XL/2"
    target = parameters(resolve_settings("DiT-XL/2", width=WIDTH, depth=2, heads=16))
    ratio = equal_mlp_ratio(design, name, WIDTH, 2, target)  # two layers say it, and are counted sooner
    settings = resolved(design, name, WIDTH, DEPTH, mlp_ratio=ratio)
    whole = add([layer_cost(settings, block) for block in range(DEPTH)])
    return whole.elements * BYTES / DEPTH, whole.operations / DEPTH
