"""The study of the mixer on photographs: every design as data, at equal parameters, and all trainings.

Screening: one seed of each design. Finals: the best of them and its controls, three seeds, on two grids of tokens.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.plan import SEEDS, TRAIN, Run
from gspn_dit.models.networks import create_model
from gspn_dit.models.settings import ModelSettings, resolve_settings

DATA = "data/cifar10"
"""The folder of images unless another is named, and the one that results name: where it lies decides nothing."""

Sized = dict[str, Callable[[int, int], Any]]


@dataclass(frozen=True)
class Design:
    """One network of the study."""

    name: str
    label: str
    model: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from GSPN-DiT's as it is."""
    sized: Sized = field(default_factory=dict)
    """Settings that follow width and depth."""
    train: dict[str, Any] = field(default_factory=dict)
    diffusion: dict[str, Any] = field(default_factory=dict)
    internal_guidance: float = 1.0
    """By the auxiliary head, of samples that are scored beside the unguided ones."""
    family: str = "GSPN-DiT"

    def settings(self, width: int, depth: int) -> dict[str, Any]:
        """Settings of a network of this width and depth, but for its name."""
        return {**self.model, **{key: value(width, depth) for key, value in self.sized.items()}}


NORM = {"local_path": "norm"}
MODULATED = {"local_path": "modulated", "conv_init": "identity"}
IDENTITY = {"scan": "identity"}
ATTENTION = {"mixer": "conv_attention"}
PLAIN, BOLD = "as-it-is", "modulated-identity"
"""The network before the study, and the one that the study varies, a setting at a time."""


def varied(name: str, label: str, sized: Sized | None = None, **model: Any) -> Design:
    """A variation of the design `BOLD`."""
    return Design(name, label, {**MODULATED, **model}, sized or {})


def kernels(first: int, second: int) -> Design:
    sizes = [str(size) if size else "none" for size in (first, second)]
    return varied(f"kernels-{first}-{second}", f"kernels {' and '.join(sizes)}", kernel_sizes=[first, second])


def a_sixteenth(width: int, depth: int) -> int:
    return max(1, width // 16)


def every_second(width: int, depth: int) -> list[int]:
    return list(range(depth - 1, -1, -2))[::-1]


def last(width: int, depth: int) -> list[int]:
    return [depth - 1]


def middle(width: int, depth: int) -> int:
    return (depth - 1) // 2


PATH = (
    Design(PLAIN, "GSPN-DiT as it is"),
    Design("as-it-is-no-scan", "the same, scan left out", IDENTITY),
    Design("conv-attention", "attention in its place, sin-cos", {**ATTENTION, "position": "sincos"}),
    Design("dit", "DiT", family="DiT"),
    Design("direction-skip", "direction_skip", {"direction_skip": True}),
    Design("norm", "norm(scan) + norm(x)", NORM),
    Design("norm-no-scan", "the same, scan left out", {**NORM, **IDENTITY}),
    Design("norm-identity", "norm(scan) + norm(x), identity convolutions", {**NORM, "conv_init": "identity"}),
    Design("modulated", "modulated local path, random convolutions", {"local_path": "modulated"}),
    varied(BOLD, "**modulated local path, identity convolutions**"),
    varied("bold-no-scan", "the same, scan left out", **IDENTITY),
    varied("bold-attention", "the same, attention in its place", **ATTENTION),
)
"""From the network as it is to the one that is varied, each with its controls."""

VARIATIONS = (
    varied("sincos", "sin-cos positions", position="sincos"),
    varied("forget", "forget gate", forget="learned"),
    varied("gains-by-group", "lam, u per group", {"gain_groups": a_sixteenth}),
    varied("gate-merged", "one gate after the merge", gate="merged"),
    varied("gate-none", "no gate", gate="none"),
    varied(
        "cheap-maps", "lam per group, one gate after the merge", {"gain_groups": a_sixteenth}, gate="merged"
    ),
    varied("merge-sum", "merge without weights", merge="sum"),
    varied("merge-channel", "merge weights per channel", merge="channel"),
    varied("sequential", "columns, then rows", scan_order="sequential"),
    varied("groups-1", "G = 1", groups=1),
    varied("groups-all", "G = C", {"groups": lambda width, depth: width}),
    *(kernels(*sizes) for sizes in ((5, 3), (3, 3), (0, 3), (7, 0), (7, 7), (0, 0))),
    varied("inverted-bottleneck", "one inverted bottleneck per block", block="inverted_bottleneck"),
    varied("every-second", "scan in every second block", {"scan_blocks": every_second}),
    varied("last-block", "scan in the last block alone", {"scan_blocks": last}),
)
"""A setting at a time from the design in bold."""

RMS, SWIGLU = {"norm": "rms"}, {"mlp": "swiglu"}
BETAS = {"betas": [0.9, 0.95]}
RECIPE = (
    varied("rms", "RMSNorm", **RMS),
    varied("swiglu", "SwiGLU", **SWIGLU),
    Design("beta2", "beta2 0.95", MODULATED, train=BETAS),
    varied("rms-swiglu", "RMSNorm and SwiGLU", **RMS, **SWIGLU),
    Design("dit-rms-swiglu", "DiT with RMSNorm and SwiGLU", {**RMS, **SWIGLU}, family="DiT"),
)
"""What belongs to no mixer."""

INGREDIENTS = (
    Design("none", "none of these", MODULATED),
    Design("logit-normal", "logit-normal times", MODULATED, diffusion={"time_distribution": "logit_normal"}),
    Design("cosine", "cosine of the velocity, weight 1", MODULATED, diffusion={"cosine_weight": 1.0}),
    Design("contrastive", "contrastive term, weight 0.05", MODULATED, diffusion={"contrastive_weight": 0.05}),
    Design(
        "auxiliary-head",
        "auxiliary head in mid-depth",
        MODULATED,
        {"auxiliary_head": middle},
        internal_guidance=1.4,
    ),
)
"""Of the recipe, what moves the loss by design: compared by its samples."""

SCREENING = {"path": PATH, "variations": VARIATIONS, "recipe": RECIPE}
DESIGNS = {design.name: design for designs in SCREENING.values() for design in designs}

WINNER: dict[str, Any] = MODULATED
"""Module and block of the finals: the best of the screening."""
FINAL_RECIPE: dict[str, Any] = {}
"""Of the settings of `RECIPE`, those that the finals give to every network."""
FINAL_TRAIN: dict[str, Any] = {}
LONGER = 4
"""Images of the longer trainings over those of the finals."""
LONGER_NAMES = ("winner", "dit")
SCAN_ONLY = (
    "gate",
    "gain_groups",
    "merge",
    "scan_order",
    "forget",
    "groups",
    "scan_blocks",
    "direction_skip",
)
"""What of a winner attention has no use for."""
FINALS = (
    Design("winner", "GSPN-DiT, the winner", {**WINNER, **FINAL_RECIPE}, train=FINAL_TRAIN),
    Design("no-scan", "its scan left out", {**WINNER, **FINAL_RECIPE, **IDENTITY}, train=FINAL_TRAIN),
    Design(
        "attention",
        "attention in its place",
        {k: v for k, v in {**WINNER, **FINAL_RECIPE, **ATTENTION}.items() if k not in SCAN_ONLY},
        train=FINAL_TRAIN,
    ),
    Design("dit", "DiT, the same recipe", FINAL_RECIPE, train=FINAL_TRAIN, family="DiT"),
)
"""None at equal time: the winner trains faster than DiT (benchmarks/bench_training.py), and equal images favour DiT."""


@dataclass(frozen=True)
class Study:
    """How large the trainings are."""

    width: int
    depth: int
    size: int
    """Side of the images."""
    grids: dict[int, int]
    """Patch size -> images of a final; the first is that of the screening."""
    screening_images: int
    batch_size: int
    validation_images: int
    samples: int
    """Of a final of the first grid, scored where the extra `photographs` is installed."""
    train: dict[str, Any]
    seeds: tuple[int, ...]
    milliseconds_per_image: float
    """In training, of 256 tokens, on one core; measured, and hardly different between the networks."""
    seconds_besides: float
    """Of a training: its start, the reading of the images, validation and samples."""


STUDIES = {
    "cpu": Study(
        width=64,
        depth=3,
        size=32,
        grids={2: 48_000, 1: 16_000},
        screening_images=24_000,
        batch_size=32,
        validation_images=1024,
        samples=2000,
        train={"learning_rate": 2e-3, "warmup_steps": 50, "ema_decay": 0.995},
        seeds=SEEDS,
        milliseconds_per_image=13.0,
        seconds_besides=40,
    ),
    "mini": Study(
        width=32,
        depth=2,
        size=8,
        grids={2: 16, 1: 8},
        screening_images=8,
        batch_size=4,
        validation_images=6,
        samples=20,
        train={"learning_rate": 2e-3, "warmup_steps": 1, "ema_decay": 0.5},
        seeds=(0,),
        milliseconds_per_image=1.0,
        seconds_besides=10,
    ),
}


def resolved(design: Design, name: str, width: int, depth: int, **more: Any) -> ModelSettings:
    """The settings of a design's network, `more` added."""
    return resolve_settings(name, width=width, depth=depth, **design.settings(width, depth), **more)


@cache
def parameters(settings: ModelSettings) -> int:
    """Parameters of a network."""
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(**settings.to_dict()).parameters())


def equal_mlp_ratio(design: Design, name: str, width: int, depth: int, target: int, **more: Any) -> float:
    """The MLP ratio, in whole channels, at which a design's network has `target` parameters, as nearly as can be."""
    low, high = (parameters(resolved(design, name, width, depth, mlp_ratio=r, **more)) for r in (1.0, 5.0))
    slope = (high - low) / (4 * width)  # parameters of a hidden channel, in all layers
    return max(1, round(width + (target - low) / slope)) / width


def _target(width: int, depth: int, size: int) -> int:
    """Parameters of every network: those of GSPN-DiT as it is, in patches of 2 and with an MLP ratio of 4."""
    return parameters(resolved(DESIGNS[PLAIN], "GSPN-DiT-S/2", width, depth, **pixels(size)))


def pixels(size: int) -> dict[str, Any]:
    """Settings that images of three channels and ten classes make."""
    return {"input_size": size, "in_channels": 3, "num_classes": 10, "learn_sigma": False}


def make_run(design: Design, study: Study, seed: int, kind: str, patch: int, images: int) -> Run:
    """The training of a design on `images` images, in patches of `patch` pixels."""
    width, depth = study.width, study.depth
    name = f"{design.family}-S/{patch}"
    ratio = equal_mlp_ratio(
        design, name, width, depth, _target(width, depth, study.size), **pixels(study.size)
    )
    model = {"name": name, "width": width, "depth": depth, "label_std": 1.0, "mlp_ratio": ratio}
    steps = images // study.batch_size
    train = {**TRAIN, **study.train, **design.train, "batch_size": study.batch_size}
    train |= {"steps": steps, "seed": seed, "validation_images": 0}
    train |= {"log_every": max(1, steps // 40), "checkpoint_every": max(1, steps // 4)}
    config = {
        "model": model | design.settings(width, depth),
        "diffusion": {"objective": "flow", **design.diffusion},
        "data": {"kind": "images", "path": DATA, "size": study.size},
        "train": train,
        "sample": {"sampler": "heun", "steps": 12, "per_class": 4},
        "eval": {"samples": 0},
    }
    settings = {"config": config, "validation_images": study.validation_images}
    tokens = (study.size // patch) ** 2
    # measured: four times the tokens take 5.8 to 7.5 times as long on a CPU, whose caches they leave
    seconds = study.seconds_besides + images * (tokens / 256) ** 1.35 * study.milliseconds_per_image / 1000
    variant = f"{kind}-{design.name}"
    return Run(f"{variant}-seed{seed}", variant, seed, copy.deepcopy(settings), seconds)


def screening_runs(study: Study) -> list[Run]:
    patch = next(iter(study.grids))
    return [
        make_run(design, study, study.seeds[0], "screening", patch, study.screening_images)
        for design in DESIGNS.values()
    ]


def final_kind(study: Study, patch: int) -> str:
    """What the finals of a grid are called, e.g. "16-lines"."""
    return f"{study.size // patch}-lines"


def final_runs(study: Study) -> list[Run]:
    """Seed by seed, so that a study cut short shows every network."""
    return [
        make_run(design, study, seed, final_kind(study, patch), patch, images)
        for seed in study.seeds
        for patch, images in study.grids.items()
        for design in FINALS
    ]


def longer_runs(study: Study) -> list[Run]:
    """The winner and DiT on more images, one seed: whether what their samples have against each other stays."""
    patch, images = next(iter(study.grids.items()))
    return [
        make_run(design, study, study.seeds[0], "longer", patch, LONGER * images)
        for design in FINALS
        if design.name in LONGER_NAMES
    ]


def ingredient_runs(study: Study) -> list[Run]:
    """With one seed: the KIDs of the winner's three, whose network this is, lie within 0.4 % of their mean."""
    patch = next(iter(study.grids))
    return [
        make_run(design, study, study.seeds[0], "recipe", patch, study.screening_images)
        for design in INGREDIENTS
    ]


def mixer_runs(study: Study, data: Path | None = None) -> list[Run]:
    """All trainings of the study, with the folder that their images are read from."""
    runs = [*screening_runs(study), *final_runs(study), *longer_runs(study), *ingredient_runs(study)]
    return [replace(run, data=str(data or DATA)) for run in runs]


def study_folder(folder: Path, name: str = "mixers") -> Path:
    """Where a study of a scale is kept, beside the folder of the other experiments of that scale."""
    return folder.with_name(name if folder.name == "cpu" else f"{name}-{folder.name}")


def describe(study: Study, runs: list[Run], waiting: list[Run], workers: int) -> str:
    """The study and its cost, printed before anything runs."""
    hours = [sum(run.seconds for run in part) / 3600 for part in (runs, waiting)]
    first, second = study.grids.items()
    return (
        f"mixers: {len(DESIGNS)} designs with one seed and {study.screening_images:,} images each; {len(FINALS)} "
        f"networks with {len(study.seeds)} seeds, {first[1]:,} images in patches of {first[0]} and {second[1]:,} "
        f"in patches of {second[0]}; with one seed {len(INGREDIENTS)} recipes, and {len(LONGER_NAMES)} networks with "
        f"{LONGER * first[1]:,} images; {len(runs) - len(waiting)} of {len(runs)} trainings done\n"
        f"cost: {hours[0]:.1f} hours of one core in all, {hours[1]:.1f} of them to come: "
        f"{hours[1] / workers:.1f} hours with {workers} at a time (estimated)"
    )
