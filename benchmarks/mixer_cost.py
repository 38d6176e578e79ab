"""Bytes and operations of GSPN-DiT-XL/2's mixer and of attention's, counted stage by stage for one token.

The floor of a stage is the larger of its bytes over memory's bandwidth and its operations over the matrix
units' rate; a mixer's floor is the sum over its stages, as they run one after the other. Predictions.
"""

from typing import NamedTuple

WIDTH, RANK, GROUPS, DIRECTIONS = 1152, 72, 72, 4
BYTES = 2  # bfloat16
LARGEST_TILE = 32 * 32
FLASH_RATES = {"forward": 550e12, "backward": 400e12}  # operations per second that flash attention reaches

# How the elementwise stages run: by formulas of one pass each in eager mode; eagerly with scan and read-out in one and
# relu_squared, as it is; and relu squared joined with what follows, as torch.compile makes it.
VARIANTS = ("formulas", "eager", "compiled")


class Stage(NamedTuple):
    """Elements read and written, and multiply-adds times two, for one token."""

    name: str
    elements: float
    operations: float
    backward_elements: float | None = None  # twice the forward's unless given

    def backward(self) -> "Stage":
        elements = 2 * self.elements if self.backward_elements is None else self.backward_elements
        return Stage(self.name, elements, 2 * self.operations)


def gspn_stages(variant: str) -> list[Stage]:
    """The mixer's stages in one of VARIANTS."""
    c, k = WIDTH, DIRECTIONS
    logits = k * 3 * GROUPS
    projection = Stage("1x1", 2 * c, 2 * c * c)
    # u and h in, y out; backward g, u and h in, dh and du out. By formulas u * h is written and read again, and g is
    # read for each of two products.
    gate, gate_backward = (4 * k + 1) * c, (4 * k + 2) * c
    scan = Stage("scan", (1 + 2 * k) * c + logits, 0, (2 + 4 * k) * c + 2 * logits)
    if variant == "formulas":
        read = [scan, Stage("gate and merge", gate, 0, gate_backward)]
    else:
        read = [Stage("scan, gate and merge", (2 + 3 * k) * c + logits, 0, (3 + 5 * k) * c + 2 * logits)]
    # relu, square; backward 2 r, its product with g, and the mask: 2 + 3 + 3.
    relu = {"formulas": (4 * c, 8 * c), "eager": (4 * c, 3 * c), "compiled": (2 * c, 3 * c)}[variant]
    return [
        projection,
        Stage("depthwise 7x7", 2 * c, 98 * c),
        Stage("bottleneck", c + RANK, 2 * c * RANK),
        Stage("lam, u and logits", 3 * RANK + 2 * k * c + logits, 2 * RANK * (2 * k * c + logits)),
        *read,
        Stage("norm", 2 * c, 0, 3 * c),
        projection,
        Stage("depthwise 3x3", 2 * c, 18 * c),
        Stage("relu squared", relu[0], 0, relu[1]),
        projection,
    ]


def attention_stages() -> list[Stage]:
    """DiT's mixer; the products of attention are in `attention_core`."""
    c = WIDTH
    return [Stage("q, k, v", 4 * c, 6 * c * c), Stage("attention", 4 * c, 0), Stage("1x1", 2 * c, 2 * c * c)]


def stage_seconds(stages: list[Stage], bandwidth: float, rate: float) -> float:
    """Floor of the stages one after the other, for one token."""
    return sum(max(s.elements * BYTES / bandwidth, s.operations / rate) for s in stages)


def attention_core(tokens: int, backward: bool) -> float:
    """Seconds of the products q k^T and p v for one token: 4 N C operations forward, 10 N C backward."""
    rate = FLASH_RATES["backward" if backward else "forward"]
    return (10 if backward else 4) * tokens * WIDTH / rate


def mixer_seconds(tokens: int, bandwidth: float, rate: float, variant: str = "eager") -> dict[str, float]:
    """Floors for one token: each mixer forward, and forward and backward."""
    rates = (bandwidth, rate)
    gspn, attention = gspn_stages(variant), attention_stages()
    # The scan's float32 dx by direction, where a block cannot keep the sum of a map.
    scratch = 2 * 4 * DIRECTIONS * WIDTH / bandwidth if tokens > LARGEST_TILE else 0
    forward = {
        "gspn": stage_seconds(gspn, *rates),
        "attention": stage_seconds(attention, *rates) + attention_core(tokens, False),
    }
    backward = {
        "gspn": stage_seconds([stage.backward() for stage in gspn], *rates) + scratch,
        "attention": stage_seconds([stage.backward() for stage in attention], *rates)
        + attention_core(tokens, True),
    }
    return {f"{name}, forward": forward[name] for name in forward} | {
        f"{name}, forward and backward": forward[name] + backward[name] for name in forward
    }
