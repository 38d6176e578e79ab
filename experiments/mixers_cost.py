"""What a layer of each design costs for one token, by formula: bytes that must move and operations, forward.

Every stage reads its inputs and writes its outputs once, in bfloat16, and the scan takes each map at its own size;
where scan and read-out are one operator its states are written for the backward and not read again. So the GSPN module
as it is costs what benchmarks/mixer_cost.py says of it ("eager"). What a layer does once for an image (adaLN's
projection) is not counted, and of operations only those of products and convolutions.
"""

from functools import cache
from typing import NamedTuple

from experiments.mixers_plan import DESIGNS, Design, equal_mlp_ratio, parameters, resolved
from gspn_dit.models.settings import ModelSettings, resolve_settings

BYTES = 2
DIRECTIONS = 4
TOKENS = 256
"""Of a 256-pixel image in patches of 2 latent pixels: what attention's operations go by."""
WIDTH, DEPTH = 1152, 28
BANDWIDTH, RATE = 3.0e12, 650e12
"""Bytes and operations per second that an H100 reaches in copies and in bfloat16 products."""
ATTENTION_RATE = 470e12
"""Operations per second in attention's own products, between those of flash attention's forward and backward."""


class Cost(NamedTuple):
    """Elements read and written, and multiply-adds times two, for one token."""

    elements: float = 0
    operations: float = 0
    rate: float = RATE

    @property
    def seconds(self) -> float:
        """The least that it takes: its bytes or its operations."""
        return max(self.elements * BYTES / BANDWIDTH, self.operations / self.rate)


def add(parts: list[Cost]) -> Cost:
    return Cost(sum(part.elements for part in parts), sum(part.operations for part in parts))


def dense(inputs: float, outputs: float) -> Cost:
    return Cost(inputs + outputs, 2 * inputs * outputs)


def convolution(channels: int, size: int) -> Cost:
    return Cost(2 * channels, 2 * size**2 * channels) if size else Cost()


def scan_parts(s: ModelSettings, block: int) -> list[Cost]:
    """The core of the GSPN module: maps from the bottleneck, the scan, gates and merge."""
    c, r, k, gains = s.width, s.bottleneck, DIRECTIONS, s.gain_groups
    scans = s.scan == "lines" and s.segment_of(block) is not None
    weights = k * 3 * s.groups if scans else 0
    forget = k * s.groups if scans and s.forget == "learned" else 0
    u = {"directions": k * gains, "merged": gains, "none": 0}[s.gate]
    skip = k * c if s.direction_skip else 0
    maps = [k * gains, u, weights, forget, skip]
    projections = [Cost(r + size, 2 * r * size) for size in maps if size]
    scan = (1 + k) * c + k * gains + weights + forget  # x and the maps in, the states out
    sequence = [Cost(5 * c)] if s.scan_order == "sequential" else []  # x again, a sum more, and the norm
    if s.merge == "linear":  # the gated maps are written and read
        core = [Cost(scan), Cost(k * c + u + c + (skip + c if skip else 0)), dense(k * c, c), Cost(k * c - c)]
    elif scans and s.gate != "merged":
        core = [Cost(scan + u + c)]
    elif scans:
        core = [Cost(scan + c), Cost(2 * c + u)]
    else:
        core = [Cost(k * gains + u + c), Cost(3 * c)]  # y times the sum over the directions of lam u
    if skip and s.merge != "linear":
        core.append(Cost(skip + 3 * c))  # the sum over the directions, x and y in, y out
    return [dense(c, r), *projections, *core, *sequence]


def mixer_parts(s: ModelSettings, block: int) -> list[Cost]:
    """The mixer of a block, stage by stage."""
    c, wide = s.width, s.module_width
    attention = [dense(c, 3 * c), Cost(4 * c, 4 * TOKENS * c, ATTENTION_RATE)]
    if s.mixer == "attention":
        return [*attention, dense(c, c)]
    core = attention if s.mixer == "conv_attention" else scan_parts(s, block)
    norm = {"none": 2 * c, "norm": 3 * c, "modulated": 3 * c}[
        s.local_path
    ]  # one pass over both and their sum
    first, second = s.kernel_sizes
    before = [dense(c, c), convolution(c, first)]
    after = [Cost(norm), dense(c, wide), convolution(wide, second), Cost(4 * wide), dense(wide, c)]
    return [*before, *core, *after]


def layer_parts(s: ModelSettings, block: int) -> list[Cost]:
    """A whole DiT block: its mixer, its MLP, and the modulated norm and gated sum of each."""
    c = s.width
    branch = Cost(4 * c + 3 * c)
    if s.mlp is None:
        return [*mixer_parts(s, block), branch]
    hidden = int(c * s.mlp_ratio)
    mlp = [dense(c, hidden), Cost(2 * hidden), dense(hidden, c)]
    if s.mlp == "swiglu":
        hidden = hidden * 2 / 3
        mlp = [dense(c, 2 * hidden), Cost(3 * hidden), dense(hidden, c)]
    return [*mixer_parts(s, block), *mlp, branch, branch]


def settings_at_xl(design: Design) -> ModelSettings:
    """An XL/2 of the design, each layer as large as DiT-XL/2's."""
    name = f"{design.family}-XL/2"
    target = parameters(resolve_settings("DiT-XL/2", width=WIDTH, depth=2, heads=16))
    ratio = equal_mlp_ratio(design, name, WIDTH, 2, target)  # two layers say it, and are counted sooner
    return resolved(design, name, WIDTH, DEPTH, mlp_ratio=ratio)


class LayerCost(NamedTuple):
    """For one token, the mean of XL/2's layers."""

    bytes: float
    operations: float
    nanoseconds: float
    """The sum of what its stages take at least on an H100, forward; twice it is taken for the backward."""


@cache
def cost_at_xl(design_name: str) -> LayerCost:
    """The cost of a design of the study, by its name."""
    settings = settings_at_xl(DESIGNS[design_name])
    parts = [part for block in range(DEPTH) for part in layer_parts(settings, block)]
    whole = add(parts)
    seconds = sum(part.seconds for part in parts)
    return LayerCost(whole.elements * BYTES / DEPTH, whole.operations / DEPTH, 1e9 * seconds / DEPTH)
