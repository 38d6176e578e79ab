"""The settings of a run: frozen dataclasses, read from YAML and `key.path=value` overrides, checked on load.

The resolved copy is saved in the run folder and in every checkpoint. Imports nothing heavy.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from gspn_dit import schema
from gspn_dit.errors import UserError
from gspn_dit.files import replacing
from gspn_dit.models.settings import ModelConfig
from gspn_dit.schema import Place


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What the model learns."""

    objective: Literal["ddpm", "flow"] = "ddpm"
    """ddpm: 1000 steps, linear schedule, learned variance (as the published numbers); flow: linear path,
    velocity."""
    time_distribution: Literal["uniform", "logit_normal"] | None = None
    """How the times of training are drawn (flow only); uniform unless set."""
    time_mean: float | None = None
    """Mean of logit(t), for logit_normal."""
    time_std: float | None = None
    """Standard deviation of logit(t), for logit_normal."""
    cosine_weight: float | None = None
    """Weight of 1 - cos of predicted and true velocity, the angle over the channels of each place (flow only;
    LightningDiT, arXiv 2501.01423, has 1); none unless set."""
    contrastive_weight: float | None = None
    """Weight below 1 at which the squared distance of the prediction from the velocity of another image of the
    batch is subtracted (flow only; contrastive flow matching, arXiv 2506.05350, has 0.05); none unless set."""
    auxiliary_weight: float | None = None
    """Weight of the auxiliary head's loss, which is that of the last layer; null: 0.5 (as arXiv 2512.24176) with
    model.auxiliary_head, else none."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from."""

    kind: Literal["mnist", "latents", "images"]
    """mnist: 4,000 digits as 32x32 pixels; latents: a folder made by encode_latents.py; images: pixels of an
    image folder, without an autoencoder."""
    path: Place | None = None
    """The folder: of latents; or of images, with train/ and test/ or without, classes as folders, or no classes
    (then they are all of one)."""
    size: int | None = None
    """Side of the pixels (images only): images are cropped and scaled to it as for encode_latents.py."""
    flip: bool = True
    """Mirror half of the training images (images only; latents always are, digits never)."""
    held_out: float = 0.1
    """Share of each class never trained on (images only), where the folder has no test/; 0 for none."""
    tuning: bool = False
    """Leave the held-out digits alone (mnist only): train on 3,000 of the others and be scored on the last 1,000, to
    choose settings by."""
    validation: Place | None = None
    """A second folder of latents, never trained on (latents only); null for no validation."""
    normalization: Literal["scale", "channels"] | None = None
    """How the diffusion sees latents (latents only). scale: (z - shift) * scale, as the autoencoder's config has
    them; channels: each with mean 0 and deviation 1, as encode_latents.py measured them; null: scale for an
    AutoencoderKL without statistics of its own, channels for all others."""
    autoencoder: Place | None = None
    """Decoder for sample grids: a hub id or folder as for encode_latents.py --vae; null for pixels, or to take
    the latents' own."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a network is trained, whatever it learns."""

    steps: int
    """Optimiser steps of the whole run."""
    batch_size: int
    """Images per step, over all processes."""
    micro_batch: int | None = None
    """Images per forward and process; the gradient of a step is accumulated over them. null: all at once."""
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
    ema_decay: float = 0.9999
    """Decay of the averaged weights; early on it is at most (1 + step) / (10 + step)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward; weights, optimiser and EMA are always float32."""
    seed: int = 0
    """Key of the initial weights, the order of the data and every draw."""
    checkpoint_every: int = 10_000
    """Steps between checkpoints; the last step always makes one. 0 for none between."""
    keep_last: int = 3
    """Checkpoints that are kept; older ones are removed."""
    log_every: int = 50
    """Steps between rows of metrics.jsonl."""
    validate_every: int = 0
    """Steps between validations of the EMA weights on held-out images (of a diffusion model: data.kind says which,
    gspn_dit/evaluation/validation.py how). The last step always has one; 0 for none between."""
    compile: bool = False
    """Compile the model with torch.compile."""
    tensorboard: bool = True
    """Also write the metrics to run_dir/tensorboard."""
    wandb: str | None = None
    """Also send the metrics to this Weights & Biases project."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingConfig):
    """How a diffusion model is trained."""

    memory: str | None = None
    """A name in memory_presets, which then supplies micro_batch and checkpoint_activations where they are
    not set."""
    class_dropout: float = 0.1
    """Share of labels replaced by the null label, for guidance."""
    sample_every: int = 0
    """Steps between sample grids; 0 for none but the last."""
    validation_images: int = 512
    """Held-out images of a validation, or all where they are fewer; 0 for no validation."""
    init_from: Place | None = None
    """A run, checkpoint folder or hub id whose EMA weights a new run starts from. Of another network of the same
    width and depth it takes the parts that are the same, and says which; labels begin anew for other classes."""
    teacher: Place | None = None
    """A run, checkpoint folder or hub id whose EMA weights a run learns from too (distillation): of the same
    objective, classes and images."""
    teacher_weight: float | None = None
    """Weight of the squared distance from the teacher's prediction; null: 0.5 with a teacher."""
    teacher_blocks_weight: float | None = None
    """Weight of the squared distance of the mixers' outputs from those of the teacher's over the square of these,
    a mean over the blocks; null: 0.5 with a teacher of as many blocks, as wide and on as many tokens, else 0."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The sample grids of training, and the defaults of sample.py."""

    sampler: str | None = None
    """A sampler of the objective; null for the objective's default."""
    steps: int = 50
    """Sampling steps."""
    cfg_scale: float = 1.0
    """Classifier-free guidance; 1.0 is none."""
    cfg_interval: tuple[float, float] | None = None
    """Classifier-free guidance only while low <= t <= high; null for everywhere."""
    internal_guidance: float = 1.0
    """Guidance by the auxiliary head (internal guidance, arXiv 2512.24176; needs model.auxiliary_head); 1.0 is
    none."""
    per_class: int = 8
    """Images of a class in a grid."""
    classes: tuple[int, ...] | None = None
    """Classes of a grid, one row each; null for ten, evenly spaced."""
    batch_size: int = 80
    """Images sampled at once."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The score table at the end of a demo run."""

    samples: int = 1000
    """Samples of each score (guided and unguided), balanced over the classes; 0 for no table."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What a memory preset sets."""

    micro_batch: int | None = None
    """As train.micro_batch."""
    checkpoint_activations: bool = False
    """As model.checkpoint_activations."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    run_dir: Place
    """Folder of the run: config.yaml, metrics.jsonl, checkpoints/, samples/. The same command again
    continues in it."""
    model: ModelConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig
    train: TrainConfig
    sample: SampleConfig = SampleConfig()
    eval: EvalConfig = EvalConfig()
    memory_presets: dict[str, MemoryConfig] = field(default_factory=dict)
    """Named choices of micro_batch and checkpoint_activations, for train.memory."""


SEEDS = 2**63
"""Seeds are below this: a key of gspn_dit/random.py holds them as int64."""

# (key, whether a value is good, what was expected)
TRAINING_RULES = (
    ("train.steps", lambda v: v >= 1, "at least 1"),
    ("train.batch_size", lambda v: v >= 1, "at least 1"),
    ("train.micro_batch", lambda v: v is None or v >= 1, "at least 1, or null"),
    ("train.learning_rate", lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    ("train.warmup_steps", lambda v: v >= 0, "at least 0"),
    ("train.min_learning_rate", lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    ("train.betas", lambda v: all(0 <= beta < 1 for beta in v), "two numbers in [0, 1)"),
    ("train.weight_decay", lambda v: 0 <= v < math.inf, "a finite number, at least 0"),
    ("train.clip", lambda v: v is None or v > 0, "above 0, or null"),
    ("train.ema_decay", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("train.seed", lambda v: 0 <= v < SEEDS, "from 0 to 2**63 - 1"),
    ("train.checkpoint_every", lambda v: v >= 0, "at least 0"),
    ("train.keep_last", lambda v: v >= 1, "at least 1"),
    ("train.log_every", lambda v: v >= 1, "at least 1"),
    ("train.validate_every", lambda v: v >= 0, "at least 0"),
)
RULES = (
    *TRAINING_RULES,
    ("data.size", lambda v: v is None or v >= 1, "at least 1, or null"),
    ("data.held_out", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("train.class_dropout", lambda v: 0 <= v <= 1, "in [0, 1]"),
    ("train.sample_every", lambda v: v >= 0, "at least 0"),
    ("train.validation_images", lambda v: v >= 0, "at least 0"),
    ("sample.steps", lambda v: v >= 1, "at least 1"),
    ("sample.cfg_scale", lambda v: v >= 1, "at least 1.0 (1.0 is no guidance)"),
    ("sample.cfg_interval", lambda v: v is None or v[0] < v[1], "[low, high] with low below high, or null"),
    ("sample.internal_guidance", lambda v: 1 <= v < math.inf, "at least 1.0 (1.0 is no guidance)"),
    ("sample.per_class", lambda v: v >= 1, "at least 1"),
    ("sample.classes", lambda v: v is None or (v and min(v) >= 0), "a list of class numbers, or null"),
    ("sample.batch_size", lambda v: v >= 1, "at least 1"),
    ("eval.samples", lambda v: v == 0 or v >= 2, "at least 2, or 0 for no table"),
)


def check_seed(option: str, seed: int) -> None:
    """Raise `UserError` for the seed of a command line that train.seed could not be either."""
    if not 0 <= seed < SEEDS:
        raise UserError(f"{option} {seed}: expected from 0 to 2**63 - 1")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key.path=value` overrides, check everything.

    Raises `UserError` that names the file or the key, what was expected, and the nearest valid name.
    """
    return schema.load(path, overrides, parse_config, "diffusion")


def parse_config(mapping: dict[str, Any]) -> Config:
    """A checked `Config` from plain YAML types."""
    config = resolve_memory(schema.build(Config, mapping))
    check(config)
    return config


def resolve_memory(config: Config) -> Config:
    """Fill micro_batch and checkpoint_activations from the preset that train.memory names."""
    name = config.train.memory
    if name is None:
        return config
    if name not in config.memory_presets:
        raise UserError(f"train.memory: no preset '{name}'; {schema.suggestion(name, config.memory_presets)}")
    preset = config.memory_presets[name]
    micro_batch = config.train.micro_batch or preset.micro_batch
    recompute = config.model.checkpoint_activations or preset.checkpoint_activations
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, checkpoint_activations=recompute),
        train=dataclasses.replace(config.train, micro_batch=micro_batch),
    )


def check(config: Config) -> None:
    """Raise `UserError` for a value out of range or a combination that cannot work."""
    check_rules(config, RULES)
    check_diffusion(config)
    check_teacher(config.train)
    check_data(config.data)


def check_rules(config: Any, rules: Sequence[tuple[str, Callable[[Any], bool], str]]) -> None:
    """Raise `UserError` for a value out of range, or a micro-batch that the batch has no whole number of."""
    values = dict(schema.flatten(config))
    for key, good, expected in rules:
        if not good(values[key]):
            raise UserError(f"{key}: expected {expected}, got {values[key]!r}")
    train = config.train
    if train.micro_batch is not None and train.batch_size % min(train.micro_batch, train.batch_size):
        expected = f"a divisor of train.batch_size, {train.batch_size}"
        raise UserError(f"train.micro_batch: expected {expected}, got {train.micro_batch}")


def check_diffusion(config: Config) -> None:
    """Raise `UserError` for a term of the loss, or a guidance, that the objective, network or batch cannot have."""
    diffusion, head = config.diffusion, config.model.auxiliary_head
    for key in ("cosine_weight", "contrastive_weight"):
        value = getattr(diffusion, key)
        if value is not None and diffusion.objective != "flow":
            raise UserError(
                f"diffusion.{key}: expected null for objective {diffusion.objective}, whose network predicts no "
                f"velocity, got {value!r}"
            )
    if diffusion.contrastive_weight and config.train.batch_size < 2:
        raise UserError("train.batch_size: expected at least 2 with diffusion.contrastive_weight, got 1")
    weight = diffusion.auxiliary_weight
    if head is None and weight is not None:
        raise UserError(
            f"diffusion.auxiliary_weight: expected null without model.auxiliary_head, got {weight!r}"
        )
    if head is not None and weight == 0:
        raise UserError("diffusion.auxiliary_weight: expected above 0 with model.auxiliary_head, got 0.0")
    guidance = config.sample.internal_guidance
    if head is None and guidance != 1:
        raise UserError(
            f"sample.internal_guidance: expected 1.0 (none) without model.auxiliary_head, got {guidance!r}"
        )


def check_teacher(train: TrainConfig) -> None:
    """Raise `UserError` for a weight without a teacher, or a teacher without a weight."""
    weights = {key: getattr(train, key) for key in ("teacher_weight", "teacher_blocks_weight")}
    for key, value in weights.items():
        if value is not None and train.teacher is None:
            raise UserError(f"train.{key}: expected null without train.teacher, got {value!r}")
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"train.{key}: expected a finite number, at least 0, or null, got {value!r}")
    if all(value == 0 for value in weights.values()):
        raise UserError("train.teacher: expected null where both of its weights are 0")


def check_data(data: DataConfig) -> None:
    """Raise `UserError` for a folder or size that `data.kind` needs, or a setting that it has no use for."""
    if data.kind == "latents" and data.path is None:
        raise UserError("data.path: expected the folder that encode_latents.py made, got null")
    if data.kind != "latents" and data.validation is not None:
        raise UserError(f"data.validation: expected null but for latents, got {data.validation!r}")
    if data.kind != "latents" and data.normalization is not None:
        raise UserError(f"data.normalization: expected null but for latents, got {data.normalization!r}")
    if data.kind != "mnist" and data.tuning:
        raise UserError("data.tuning: expected false but for mnist, got true")
    if data.kind == "latents" and data.validation == data.path:
        raise UserError(f"data.validation: expected other latents than those of data.path, got {data.path!r}")
    if data.kind == "images" and data.path is None:
        raise UserError("data.path: expected a folder of images, got null")
    if data.kind == "images" and data.size is None:
        raise UserError("data.size: expected the side of the pixels, such as 32, got null")
    if data.kind == "images" and data.autoencoder is not None:
        raise UserError(f"data.autoencoder: expected null for pixels, got {data.autoencoder!r}")


def to_mapping(config: Any) -> dict[str, Any]:
    """A config, of whatever kind, as plain YAML types; what parses its kind reads it back."""
    return schema.to_plain(config)


def to_yaml(config: Any) -> str:
    """The config as `save_config` writes it."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved config as YAML, whole or not at all."""
    with replacing(path) as file:
        file.write(to_yaml(config).encode())
