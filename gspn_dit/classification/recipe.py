"""The settings of a classifier's training: frozen dataclasses, read and checked as those of gspn_dit/config.py.

Imports nothing heavy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gspn_dit import schema
from gspn_dit.classification.sizes import BackboneConfig, resolve_backbone
from gspn_dit.config import TRAINING_RULES, TrainingConfig, check_rules
from gspn_dit.errors import UserError
from gspn_dit.schema import Place


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """The pictures."""

    path: Place
    """A folder with train/ and test/, in each a folder for each class; or with the class folders alone."""
    validation: Place | None = None
    """A second folder of the same classes, never trained on; null: test/ or a share of path."""
    held_out: float = 0.1
    """Share of each class never trained on, where there is no other folder."""
    size: int = 224
    """Side of the pixels that the network sees."""
    crop: Literal["resized", "padded"] = "resized"
    """resized: in training a part of the picture of random size and aspect, scaled to size; in evaluation the
    picture scaled to resize, and its middle. padded: the picture at size, in training moved by augment.shift (small
    pictures, which are kept in memory)."""
    resize: int = 256
    """Short side of a picture in evaluation before its middle is taken (resized only)."""
    workers: int = 8
    """Processes that read and augment, for each process that trains; 0 for none: training waits then."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to the pictures of training, by torchvision's transforms v2; every choice is keyed by the seed
    and the picture's number in training."""

    flip: bool = True
    """Mirror half of them."""
    shift: float = 0.125
    """Largest move of a picture up, down and sideways, of its side, with black behind it (data.crop padded only)."""
    rand_augment: float | None = None
    """Mean magnitude, of 10, of RandAugment: two operations, each done half of the time, the magnitude normal with
    deviation 0.5; null for none."""
    jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    erasing: float = 0.0
    """Chance of a rectangle of noise."""
    mixup: float = 0.0
    """Parameter of Beta for mixing pairs of pictures; 0 for none. With cutmix too each pair has one of the two."""
    cutmix: float = 0.0
    """Parameter of Beta for putting a part of a pair's other picture into each; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainingConfig):
    """How a classifier is trained; weights of one axis (biases, norms) do not decay."""

    label_smoothing: float = 0.0
    """Share of a target that is spread over all classes."""
    muon: float | None = None
    """Train the matrices of the stages by Muon, at this multiple of the rate; null: by AdamW, as all else."""
    validation_images: int | None = None
    """Held-out images of a validation; null for all, 0 for no validation."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A run."""

    run_dir: Place
    """Folder of the run: config.yaml, metrics.jsonl, loss.png, checkpoints/. The same command again continues in
    it."""
    model: BackboneConfig
    data: PicturesConfig
    augment: AugmentConfig
    train: FitConfig


# (key, whether a value is good, what was expected)
RULES = (
    *TRAINING_RULES,
    ("train.label_smoothing", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("train.muon", lambda v: v is None or 0 < v < math.inf, "a finite number above 0, or null"),
    ("train.validation_images", lambda v: v is None or v >= 0, "at least 0, or null"),
    ("data.held_out", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("data.size", lambda v: v >= 1, "at least 1"),
    ("data.workers", lambda v: v >= 0, "at least 0"),
    ("augment.shift", lambda v: 0 <= v <= 1, "from 0 to 1"),
    ("augment.rand_augment", lambda v: v is None or 0 <= v <= 10, "from 0 to 10, or null"),
    ("augment.jitter", lambda v: 0 <= v <= 1, "in [0, 1]"),
    ("augment.erasing", lambda v: 0 <= v <= 1, "in [0, 1]"),
    ("augment.mixup", lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    ("augment.cutmix", lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> ClassifierConfig:
    """Read a YAML file, apply `key.path=value` overrides, check everything; see `gspn_dit.config.load_config`."""
    return schema.load(path, overrides, parse_recipe, "classifier")


def parse_recipe(mapping: dict[str, Any]) -> ClassifierConfig:
    """A checked `ClassifierConfig` from plain YAML types."""
    config = schema.build(ClassifierConfig, mapping)
    check_rules(config, RULES)
    try:
        settings = resolve_backbone(**vars(config.model))
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    data, least = config.data, settings.stem_stride
    if data.size < least:
        raise UserError(
            f"data.size: expected at least {least}, the stride of the stem (model.stem_stride), got {data.size}"
        )
    if data.crop == "resized" and data.resize < data.size:
        raise UserError(f"data.resize: expected at least data.size, {data.size}, got {data.resize}")
    return config
