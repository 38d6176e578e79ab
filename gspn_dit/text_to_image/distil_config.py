"""The settings of a distillation: read and checked as those of a training. Imports nothing heavy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gspn_dit import config as training
from gspn_dit import schema
from gspn_dit.errors import UserError
from gspn_dit.schema import Place


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What takes self-attention's place."""

    rank: int | None = None
    """Width of the bottleneck of the scan's maps; null: C/8 in a layer of width C, with q, k and v C/32."""
    segment: int = 4
    """Lines of the token grid after which a scan starts anew; 0 for whole images."""
    keep_qkv: bool | None = None
    """Whether the projections to q, k and v stay; null: in SDXL's layout, not in SD 1.5's."""
    trained: Literal["modules", "maps"] = "modules"
    """modules: all of what stands in self-attention's place, its output projection (and q, k, v) too; maps: only the
    weights that attention had not."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """The images and their captions."""

    path: Place
    """The folder: picture.jpg with picture.txt beside it, or a metadata.jsonl with file_name and text."""
    size: int
    """Side of the images in pixels; they are cropped and scaled to it (512 for SD 1.5, 1024 for SDXL)."""
    captions: Literal["files", "folders"] = "files"
    """folders: the caption of an image is the name of its folder."""
    caption_column: str = "text"
    """What metadata.jsonl calls the caption."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for guidance."""
    flip: bool = False
    """Mirror half of the images; captions may speak of left and right."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the three squared errors."""

    noise: float = 1.0
    """Of the student's output to the noise (or velocity, where the teacher predicts that)."""
    teacher: float = 0.5
    """Of the student's output to the teacher's."""
    modules: float = 0.5
    """Of each replaced module's output to that of the teacher's self-attention; the mean over modules."""


@dataclass(frozen=True, kw_only=True)
class DistilTrainConfig:
    """How the student is trained."""

    steps: int
    """Optimiser steps of the whole run."""
    batch_size: int
    """Images per step."""
    micro_batch: int | None = None
    """Images per forward; the gradient of a step is accumulated over them. null: all at once."""
    learning_rate: float = 1e-4
    """Rate of AdamW after the warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up: the constant rate, or half a cosine down to min_learning_rate at the end."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from zero."""
    min_learning_rate: float = 0.0
    """Where the cosine ends."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float | None = 1.0
    """Largest norm of the gradient; null for no clipping."""
    precision: Literal["fp32", "bf16"] | None = None
    """Arithmetic of forward and backward; null: bf16 on a GPU, fp32 without. Weights are always float32."""
    checkpoint_activations: bool = False
    """Recompute the student's activations in the backward pass (diffusers' gradient checkpointing)."""
    seed: int = 0
    """Key of the initial weights, the order of the data and every draw."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step always makes one. 0 for none between."""
    keep_last: int = 2
    """Checkpoints that are kept; older ones are removed."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    tensorboard: bool = True
    """Also write the metrics to run_dir/tensorboard."""
    wandb: str | None = None
    """Also send the metrics to this Weights & Biases project."""


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """A distillation."""

    run_dir: Place
    """Folder of the run: config.yaml, metrics.jsonl, checkpoints/. The same command again continues in it."""
    teacher: Place
    """The folder of a StableDiffusionPipeline or StableDiffusionXLPipeline, or its hub id."""
    student: StudentConfig = StudentConfig()
    data: CaptionConfig
    loss: LossConfig = LossConfig()
    train: DistilTrainConfig


OWN_RULES = (
    ("student.rank", lambda v: v is None or v >= 1, "at least 1, or null"),
    ("student.segment", lambda v: v >= 0, "at least 0"),
    ("data.size", lambda v: v >= 1, "at least 1"),
    ("data.caption_dropout", lambda v: 0 <= v <= 1, "in [0, 1]"),
    *(
        (f"loss.{name}", lambda v: 0 <= v < math.inf, "a finite number, at least 0")
        for name in ("noise", "teacher", "modules")
    ),
)


def load_distil_config(path: str | Path, overrides: Sequence[str] = ()) -> DistilConfig:
    """Read a YAML file, apply `key.path=value` overrides, check everything; `UserError` for what is wrong."""
    return schema.load(path, overrides, parse_distil_config, "distillation")


def parse_distil_config(mapping: dict[str, Any]) -> DistilConfig:
    """A checked `DistilConfig` from plain YAML types."""
    config = schema.build(DistilConfig, mapping)
    check(config)
    return config


def check(config: DistilConfig) -> None:
    """Raise `UserError` for a value out of range."""
    values = dict(schema.flatten(config))
    for key, good, expected in (*OWN_RULES, *training.RULES):
        if key in values and not good(values[key]):
            raise UserError(f"{key}: expected {expected}, got {values[key]!r}")
    train = config.train
    if train.micro_batch is not None and train.batch_size % min(train.micro_batch, train.batch_size):
        expected = f"a divisor of train.batch_size, {train.batch_size}"
        raise UserError(f"train.micro_batch: expected {expected}, got {train.micro_batch}")
    if not config.loss.noise + config.loss.teacher + config.loss.modules:
        raise UserError("loss: expected a weight above 0 in noise, teacher or modules, got none")
