"""Every training run of the experiments as data: what differs from the base run, at which scale, with which seed."""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
BASE, DIT = "gspn", "dit"
"""The run that most experiments share, and attention's."""


@dataclass(frozen=True)
class Variant:
    """One setting of one experiment or more; trained once for each seed."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    objective: str = "flow"
    train: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    """Part of the scale's images that it is trained on."""


def gspn(name: str, patch: int = 4, objective: str = "flow", share: float = 1.0, **model: Any) -> Variant:
    return Variant(name, {"name": f"GSPN-DiT-S/{patch}", **model}, objective, share=share)


def dit(name: str, objective: str = "flow", **model: Any) -> Variant:
    return Variant(name, {"name": "DiT-S/4", **model}, objective)


VARIANTS = (
    gspn(BASE),
    gspn("gspn-sigmoid", normalization="sigmoid"),
    gspn("gspn-16-lines", patch=2, share=0.5),
    gspn("gspn-16-lines-sigmoid", patch=2, share=0.5, normalization="sigmoid"),
    gspn("gspn-local-2", segment=2, global_blocks=0),
    gspn("gspn-local-4", segment=4, global_blocks=0),
    gspn("gspn-global-2", segment=2, global_blocks=2),
    gspn("gspn-sincos", position="sincos"),
    gspn("gspn-learned", position="learned"),
    dit("dit-none", position="none"),
    dit(DIT, position="sincos"),
    dit("dit-learned", position="learned"),
    gspn("gspn-merge-channel", merge="channel"),
    gspn("gspn-merge-linear", merge="linear"),
    gspn("gspn-groups-all"),
    gspn("gspn-groups-1", groups=1),
    dit("conv-attention", mixer="conv_attention", position="none"),
    gspn("identity", scan="identity"),
    gspn("identity-16-lines", patch=2, share=0.5, scan="identity"),
    gspn("gspn-ddpm", objective="ddpm"),
    dit("dit-ddpm", objective="ddpm", position="sincos"),
)

EXPERIMENTS = {
    "stability": (BASE, "gspn-sigmoid", "gspn-16-lines", "gspn-16-lines-sigmoid"),
    "local": (BASE, "gspn-local-2", "gspn-local-4", "gspn-global-2"),
    "positions": (BASE, "gspn-sincos", "gspn-learned", "dit-none", DIT, "dit-learned"),
    "merge": (BASE, "gspn-merge-channel", "gspn-merge-linear", "gspn-groups-all", "gspn-groups-1"),
    "attention": (BASE, DIT, "conv-attention", "identity", "gspn-ddpm", "dit-ddpm"),
}
"""The variants that each experiment compares; those of one name are trained once."""

CHECKS = {"lines": ("gspn-16-lines", "identity-16-lines")}
"""Comparisons beyond the plan, done when they are asked for: what the scan adds on lines twice as long."""
COMPARED = EXPERIMENTS | CHECKS

EQUAL_SIZED = ("stability", "local", "positions", "attention", "lines")
"""Experiments that compare at equal parameters; in "merge" the parameters are part of the question."""


@dataclass(frozen=True)
class Scale:
    """How large the runs are."""

    name: str
    width: int
    depth: int
    train: dict[str, Any]
    learning_rates: tuple[float, ...]
    """The base rate and its neighbours, for the check that no family is favoured by the rate."""
    samples: int
    sampling: dict[str, dict[str, Any]]
    probe_images: int
    seconds_per_run: float
    """Measured or meant time of the base run on one worker, scoring and start included."""
    mlp_ratios: dict[str, float]
    """By the mixer: MLPs of a width at which attention has the parameters of the base run, with its 4.0."""
    factors: dict[str, float] = field(default_factory=dict)
    """Time of a variant over that of the base run, where it is another."""
    seeds: tuple[int, ...] = SEEDS


SAMPLING = {
    "flow": {"sampler": "heun", "steps": 6, "batch_size": 125},
    "ddpm": {"sampler": "dpm-solver++", "steps": 12, "batch_size": 125},
}
TRAIN = {"schedule": "cosine", "tensorboard": False, "sample_every": 0, "keep_last": 1}

SCALES = {
    "cpu": Scale(
        name="cpu",
        width=48,
        depth=4,
        train=TRAIN
        | {"steps": 3000, "batch_size": 16, "learning_rate": 4e-3, "warmup_steps": 100, "ema_decay": 0.995},
        learning_rates=(2e-3, 4e-3, 8e-3, 1.6e-2),
        samples=1000,
        sampling=SAMPLING,
        probe_images=500,
        seconds_per_run=150,
        mlp_ratios={"attention": 5.6, "conv_attention": 4.25},
        factors={"gspn-16-lines": 1.8, "gspn-16-lines-sigmoid": 1.8, "identity-16-lines": 1.6}
        | dict.fromkeys(("dit-none", DIT, "dit-learned", "dit-ddpm", "conv-attention"), 0.75),
    ),
    "gpu": Scale(
        name="gpu",
        width=256,
        depth=8,
        train=TRAIN
        | {"steps": 6000, "batch_size": 128, "learning_rate": 1e-3, "warmup_steps": 300, "ema_decay": 0.999}
        | {"precision": "bf16"},
        learning_rates=(5e-4, 1e-3, 2e-3),
        samples=10_000,
        sampling={
            "flow": {"sampler": "heun", "steps": 25, "batch_size": 1000},
            "ddpm": {"sampler": "dpm-solver++", "steps": 50, "batch_size": 1000},
        },
        probe_images=500,
        seconds_per_run=480,
        mlp_ratios={"attention": 3.9, "conv_attention": 2.8},
    ),
    "mini": Scale(
        name="mini",
        width=16,
        depth=2,
        train=TRAIN
        | {"steps": 4, "batch_size": 8, "learning_rate": 4e-3, "warmup_steps": 1, "ema_decay": 0.5},
        learning_rates=(4e-3,),
        samples=100,
        sampling={
            "flow": {"sampler": "euler", "steps": 1, "batch_size": 100},
            "ddpm": {"sampler": "ddim", "steps": 1, "batch_size": 100},
        },
        probe_images=10,
        seconds_per_run=1,
        mlp_ratios={"attention": 9.9, "conv_attention": 7.2},
        seeds=(0,),
    ),
}


@dataclass(frozen=True)
class Run:
    """One training run: everything that decides its numbers is in `settings`."""

    name: str
    variant: str
    seed: int
    settings: dict[str, Any]
    seconds: float
    data: str | None = None
    """The folder that images are read from, which is no setting; None for digits."""
    program: str | None = None
    """The module whose `run_one` does it; None for `train_run`."""

    @property
    def key(self) -> str:
        """Hash of the settings: results of another key are of another plan, and are made anew."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{self.name}-{self.key}"

    def result_path(self, folder: Path) -> Path:
        return folder / "runs" / f"{self.name}.json"


def make_run(variant: Variant, scale: Scale, seed: int, name: str | None = None) -> Run:
    """The run of a variant at a scale with a seed."""
    model = {"width": scale.width, "depth": scale.depth, "label_std": 1.0, **variant.model}
    if variant.name == "gspn-groups-all":
        model["groups"] = scale.width
    if model["name"].startswith("DiT"):
        model["mlp_ratio"] = scale.mlp_ratios[model.get("mixer", "attention")]
    steps = round(scale.train["steps"] * variant.share)
    train = {**scale.train, **variant.train, "seed": seed, "steps": steps}
    train |= {"log_every": max(1, steps // 40), "checkpoint_every": max(1, steps // 4)}
    config = {
        "model": model,
        "diffusion": {"objective": variant.objective},
        "data": {"kind": "mnist"},
        "train": train,
        "sample": {**scale.sampling[variant.objective], "per_class": 4},
        "eval": {"samples": 0},
    }
    settings = {"config": config, "samples": scale.samples, "probe_images": scale.probe_images}
    seconds = scale.seconds_per_run * scale.factors.get(variant.name, 1.0)
    return Run(name or f"{variant.name}-seed{seed}", variant.name, seed, copy.deepcopy(settings), seconds)


def training_runs(scale: Scale, experiments: tuple[str, ...]) -> list[Run]:
    """The runs that these experiments and checks compare, each once.

    Seed by seed, so that a plan cut short shows all settings.
    """
    wanted = {name for experiment in experiments for name in COMPARED.get(experiment, ())}
    variants = [variant for variant in VARIANTS if variant.name in wanted]
    runs = [make_run(variant, scale, seed) for seed in scale.seeds for variant in variants]
    return sorted(runs, key=lambda run: (run.seed, -run.seconds))


def rate_runs(scale: Scale) -> list[Run]:
    """One seed of GSPN and of attention at the rates beside the one that all runs use."""
    by_name = {variant.name: variant for variant in VARIANTS}
    runs = []
    for rate in scale.learning_rates:
        if rate == scale.train["learning_rate"]:
            continue  # the run of the plan
        for name in (BASE, DIT):
            base = by_name[name]
            changed = Variant(base.name, base.model, base.objective, {"learning_rate": rate})
            runs.append(make_run(changed, scale, 0, f"rate-{rate:g}-{name}"))
    return runs


def describe(scale: Scale, trainings: list[Run], rates: list[Run], done: int, workers: int) -> str:
    """The plan and its cost, printed before anything runs."""
    seconds = sum(run.seconds for run in (*trainings, *rates))
    images = scale.train["steps"] * scale.train["batch_size"]
    measured = "not yet measured on a GPU" if scale.name == "gpu" else "estimated from measured runs"
    return (
        f"scale {scale.name}: {len(trainings)} training runs of up to {images:,} images, "
        f"{len({run.variant for run in trainings})} settings x {len(scale.seeds)} seeds, "
        f"and {len(rates)} of one seed that check the learning rate (--only rates); {done} of them done\n"
        f"cost: {seconds / 60:.0f} minutes of one worker in all, {seconds / 60 / workers:.0f} minutes with "
        f"{workers} at a time ({measured})"
    )
