"""The configs that are shipped: each is valid, and each model in it can be built."""

import subprocess
from pathlib import Path

import pytest
import yaml

from eval_fid import parse_arguments
from gspn_dit.config import load_config
from gspn_dit.models.costs import model_costs
from gspn_dit.models.settings import MODEL_NAMES, resolve_settings

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
IMAGENET = [
    path for path in CONFIGS if load_config(path).data.kind == "latents" and not path.stem.endswith("_cpu")
]


def test_the_paper_s_experiment_is_there():
    named = {"gspn_b2", "gspn_l2", "gspn_xl2", "gspn_dit_b2", "gspn_dit_xl2", "dit_xl2", "demo", "demo_dit"}
    named |= {"cifar10", "cifar10_cpu", "dit_xl2_recipe", "latents_cpu"}
    assert named <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid(path):
    config = load_config(path)
    assert config.model.name in MODEL_NAMES
    assert Path(config.run_dir).name == path.stem
    resolve_settings(**settings_of(config))


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_config_says_what_to_expect(path):
    """102.4 million images each: 80 epochs, at which most is published."""
    comment = path.read_text().split("run_dir:")[0]
    config = load_config(path)
    steps, batch = config.train.steps, config.train.batch_size
    assert (config.train.precision, steps * batch) == ("bf16", 102_400_000)
    for word in (f"Budget: {steps:,} steps of {batch:,} images", "FID", "Expected memory per GPU"):
        assert word in comment
    for preset in ("80gb", "40gb"):
        config = load_config(path, [f"train.memory={preset}"])
        assert config.train.micro_batch == config.memory_presets[preset].micro_batch


def test_new_gspn_dits_have_the_study_s_block_and_flow():
    """By keys of their own: a configuration without them means what it meant."""
    for path in CONFIGS:
        config = load_config(path)
        if config.model.name.startswith("GSPN-DiT"):
            assert (config.model.local_path, config.model.conv_init) == ("modulated", "identity"), path
            assert config.diffusion.objective == "flow"
    old = resolve_settings("GSPN-DiT-B/2")
    assert (old.local_path, old.conv_init) == ("none", "random")


def test_the_networks_that_are_compared_have_as_many_parameters():
    demos = [load_config(ROOT / "configs" / name) for name in ("demo.yaml", "demo_dit.yaml")]
    pixels = {"in_channels": 1, "num_classes": 10, "learn_sigma": False}
    counts = [model_costs(**settings_of(demo), **pixels).parameters for demo in demos]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)
    sizes = {name: load_config(ROOT / "configs" / f"{name}.yaml") for name in ("gspn_dit_xl2", "dit_xl2")}
    counts = [model_costs(**settings_of(config)).parameters for config in sizes.values()]
    assert counts[0] == pytest.approx(counts[1], rel=0.03)


def settings_of(config) -> dict:
    return {key: value for key, value in vars(config.model).items() if value is not None}


@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp2.yaml"])
def test_launcher_configs_leave_the_precision_to_the_run(name):
    content = yaml.safe_load((ROOT / "configs/accelerate" / name).read_text())
    assert content["mixed_precision"] == "no"


def make(target: str, *settings: str) -> list[str]:
    """The words of the command that a target runs once it is set up."""
    # `make test` runs this inside a make, which then says where it enters and leaves.
    command = ["make", "--no-print-directory", "--dry-run", "--old-file=setup", target, *settings]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_make_launches_the_processes_asked_for():
    """With the launcher's config: without one, accelerate starts one process where there is no GPU."""
    settings = ["CONFIG=configs/gspn_b2.yaml", "DATA=data/imagenet256", "NPROC=8", "ARGS=train.memory=40gb"]
    assert make("train", *settings) == [
        *[
            ".venv/bin/accelerate",
            "launch",
            "--config_file",
            "configs/accelerate/ddp.yaml",
            "--num_processes",
            "8",
        ],
        *["train.py", "configs/gspn_b2.yaml", "data.path=data/imagenet256", "train.memory=40gb"],
    ]


def test_make_scores_the_demo_unless_told_what():
    command = [".venv/bin/python", "eval_fid.py"]
    demo = ["--reference", "mnist", "--features", "digits", "--num", "1000", "--labels", "balanced"]
    assert make("eval", "ARGS=") == [*command, "runs/demo", *demo]
    parse_arguments(make("eval", "ARGS=")[2:], Path("results"))
    told = make("eval", "RUN=runs/gspn_b2", "ARGS=--reference r.npz --preset paper")
    assert told == [*command, "runs/gspn_b2", *["--reference", "r.npz", "--preset", "paper"]]
