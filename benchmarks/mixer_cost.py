"""Bytes and operations of GSPN-DiT-XL/2's mixer and of attention's, counted stage by stage for one token.

The floor of a stage is the larger of its bytes over memory's bandwidth and its operations over the matrix
units' rate; a mixer's floor is the sum over its stages, as they run one after the other. Predictions.
"""

from typing import NamedTuple

WIDTH, RANK, GROUPS, DIRECTIONS = 1152, 72, 72, 4
BYTES = 2  # bfloat16
FLASH_RATES = {"forward": 550e12, "backward": 400e12}  # operations per second that flash attention reaches


class Stage(NamedTuple):
    """Elements read and written, and multiply-adds times two, for one token."""

    name: str
    elements: float
    operations: float


def gspn_forward(fused: bool) -> list[Stage]:
    """The forward stages; `fused`: elementwise chains in one kernel each, as torch.compile makes them."""
    c, k = WIDTH, DIRECTIONS
    logits = k * 3 * GROUPS
    projection = Stage("1x1", 2 * c, 2 * c * c)
    gating = (2 * k + 1) * c if fused else (3 * k + k + 1) * c  # u * h, then the sum over the directions
    return [
        projection,
        Stage("depthwise 7x7", 2 * c, 98 * c),
        Stage("bottleneck", c + RANK, 2 * c * RANK),
        Stage("lam, u and logits", 3 * RANK + 2 * k * c + logits, 2 * RANK * (2 * k * c + logits)),
        Stage("scan", (1 + 2 * k) * c + logits, 0),
        Stage("gate and merge", gating, 0),
        Stage("norm", 2 * c, 0),
        projection,
        Stage("depthwise 3x3", 2 * c, 18 * c),
        Stage("relu squared", 2 * c if fused else 4 * c, 0),
        projection,
    ]


def attention_forward(tokens: int) -> list[Stage]:
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


def mixer_seconds(tokens: int, bandwidth: float, rate: float, fused: bool = True) -> dict[str, float]:
    """Floors for one token: each mixer forward, and with backward, which doubles elements and operations."""
    gspn = stage_seconds(gspn_forward(fused), bandwidth, rate)
    attention = stage_seconds(attention_forward(tokens), bandwidth, rate)
    forward, backward = attention_core(tokens, False), attention_core(tokens, True)
    scratch = 2 * 4 * DIRECTIONS * WIDTH / bandwidth  # the scan's float32 dx by direction
    return {
        "gspn, forward": gspn,
        "gspn, forward and backward": 3 * gspn + scratch,
        "attention, forward": attention + forward,
        "attention, forward and backward": 3 * attention + forward + backward,
    }
