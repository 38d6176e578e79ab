"""What describes a backbone: a published size, and what is set differently from it. Imports nothing heavy."""

import dataclasses
import math
from dataclasses import asdict, dataclass
from typing import Literal

from gspn_dit import schema
from gspn_dit.errors import UserError
from gspn_dit.schema import suggestion

# The published configurations (arXiv 2501.12381, its ImageNet backbone).
_SIZES = {
    "gspn_tiny": {
        "width": 96,
        "depths": (2, 2, 7, 2),
        "rank": 8,
        "global_stages": (2, 3),
        "drop_path_rate": 0.2,
    },
    "gspn_small": {
        "width": 108,
        "depths": (5, 5, 10, 2),
        "rank": 16,
        "global_stages": (3,),
        "drop_path_rate": 0.4,
    },
    "gspn_base": {
        "width": 120,
        "depths": (4, 4, 15, 4),
        "rank": 8,
        "global_stages": (2, 3),
        "drop_path_rate": 0.5,
    },
}
BACKBONE_NAMES = tuple(_SIZES)
STAGES = 4
LOCAL_EVERY = 7
"""In a stage with global scans the blocks up to here are global, and after them every one of this many."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which backbone; null leaves a setting to the published size. These are the keys of `model` in a config."""

    name: str
    """gspn_tiny, gspn_small or gspn_base."""
    width: int | None = None
    """Channels of the first stage, an even number; each later stage has twice those of the one before."""
    depths: tuple[int, int, int, int] | None = None
    """Blocks of each stage."""
    rank: int | None = None
    """Width of the bottleneck from which a scan's maps are projected."""
    global_stages: tuple[int, ...] | None = None
    """Numbers from 0 of the stages whose blocks scan whole lines, but for six of seven from the eighth block on;
    all other blocks are local."""
    segment: int = 2
    """Lines after which the scan of a local block starts anew."""
    stem_stride: Literal[4, 2, 1] = 4
    """Pixels from one place of the first grid to the next: 4 as published, 2 or 1 for small pictures."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP over the stage's."""
    drop_path_rate: float | None = None
    """Chance with which the last block's branches are left out in training; it rises linearly from 0 in the first."""
    scan: Literal["lines", "identity"] = "lines"
    """identity leaves the scan out, h = lam * x, as a control."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward instead of keeping its activations: less memory, a third more work."""


@dataclass(frozen=True, kw_only=True)
class BackboneSettings(BackboneConfig):
    """Everything that `create_backbone` builds from."""

    num_classes: int = 1000
    """Logits of the head; 0 for no head: the mean of the last map."""
    in_chans: int = 3
    """Channels of the picture."""
    features_only: bool = False
    """Give the stages' maps in place of logits."""
    out_indices: tuple[int, ...] = tuple(range(STAGES))
    """Numbers from 0 of the stages whose maps `features_only` gives; later stages are there, and do not run."""

    @property
    def widths(self) -> list[int]:
        """Channels of each stage."""
        return [self.width * 2**stage for stage in range(STAGES)]

    @property
    def strides(self) -> list[int]:
        """Pixels of the picture from one place of each stage's grid to the next."""
        return [self.stem_stride * 2**stage for stage in range(STAGES)]

    @property
    def drop_rates(self) -> list[float]:
        """Drop path's chance of every block, first to last."""
        last = max(sum(self.depths) - 1, 1)
        return [self.drop_path_rate * block / last for block in range(sum(self.depths))]

    def segment_of(self, stage: int, block: int) -> int:
        """The `segment` of a block's scan by its place in the stage; 0 for whole lines."""
        whole = block < LOCAL_EVERY or (block + 1) % LOCAL_EVERY == 0
        return 0 if stage in self.global_stages and whole else self.segment

    def to_dict(self) -> dict:
        """Plain types, for JSON; `create_backbone(**settings.to_dict())` builds the same network."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


# (key, whether a value is good, what was expected)
_RULES = (
    ("width", lambda v: v >= 2 and v % 2 == 0, "an even number above 0"),
    ("depths", lambda v: min(v) >= 1, "four numbers of 1 or more"),
    ("rank", lambda v: v >= 1, "at least 1"),
    ("global_stages", lambda v: set(v) <= set(range(STAGES)), f"stages from 0 to {STAGES - 1}"),
    ("out_indices", lambda v: v and set(v) <= set(range(STAGES)), f"stages from 0 to {STAGES - 1}"),
    ("segment", lambda v: v >= 1, "at least 1"),
    ("mlp_ratio", lambda v: 0 < v < math.inf, "a finite number above 0"),
    ("drop_path_rate", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("num_classes", lambda v: v >= 0, "at least 0"),
    ("in_chans", lambda v: v >= 1, "at least 1"),
)


def resolve_backbone(name: str, **overrides) -> BackboneSettings:
    """Fill in the defaults of the named size, check the whole; ValueError says which setting and what was expected."""
    if name not in _SIZES:
        raise ValueError(f"backbone name is {name!r}; {suggestion(str(name), BACKBONE_NAMES)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        settings = schema.build(BackboneSettings, {"name": name, **_SIZES[name], **given})
    except UserError as error:
        raise ValueError(f"backbone setting {error}") from error
    for key, good, expected in _RULES:
        if not good(getattr(settings, key)):
            raise ValueError(f"{key} is {getattr(settings, key)!r}; expected {expected}")
    return dataclasses.replace(settings, global_stages=tuple(sorted(set(settings.global_stages))))
