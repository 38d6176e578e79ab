"""The plan: how many runs, each once, every setting buildable, compared models equally large."""

import dataclasses

import pytest
import torch

from experiments.__main__ import NAMES
from experiments.plan import (
    CHECKS,
    COMPARED,
    EQUAL_SIZED,
    EXPERIMENTS,
    SCALES,
    VARIANTS,
    describe,
    make_run,
    rate_runs,
    training_runs,
)
from experiments.sections import LABELS
from gspn_dit.config import parse_config
from gspn_dit.models import create_model

ALL = tuple(EXPERIMENTS)


def parameters(variant, scale) -> int:
    config = parse_config({"run_dir": "unused", **make_run(variant, scale, 0).settings["config"]})
    chosen = {key: value for key, value in vars(config.model).items() if value is not None}
    with torch.device("meta"):
        model = create_model(
            **chosen, input_size=32, in_channels=1, num_classes=10, learn_sigma=variant.objective == "ddpm"
        )
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_setting_builds_and_compared_models_are_equally_large(scale):
    sizes = {variant.name: parameters(variant, scale) for variant in VARIANTS}
    for experiment in EQUAL_SIZED:
        compared = {name: sizes[name] for name in COMPARED[experiment]}
        assert max(compared.values()) <= 1.05 * min(compared.values()), compared


def test_sixty_runs_at_most_each_once():
    for scale in SCALES.values():
        runs = [*training_runs(scale, tuple(COMPARED)), *rate_runs(scale)]
        assert len(training_runs(scale, ALL)) <= 60
        assert len({run.name for run in runs}) == len(runs)
        assert len({run.key for run in runs}) == len(runs)


def test_every_variant_belongs_to_an_experiment_and_has_a_label():
    used = {name for names in COMPARED.values() for name in names}
    assert used == {variant.name for variant in VARIANTS} == set(LABELS)


def test_runs_of_one_experiment_are_a_part_of_the_plan():
    scale = SCALES["cpu"]
    part = training_runs(scale, ("local",))
    assert {run.variant for run in part} == set(EXPERIMENTS["local"])
    assert {run.key for run in part} < {run.key for run in training_runs(scale, ALL)}
    assert training_runs(scale, ("kernel",)) == []


def test_a_check_adds_its_control_to_a_run_of_the_plan():
    scale = SCALES["cpu"]
    planned = {run.key for run in training_runs(scale, ALL)}
    added = [run for run in training_runs(scale, tuple(CHECKS)) if run.key not in planned]
    assert [(run.variant, run.seed) for run in added] == [("identity-16-lines", seed) for seed in scale.seeds]
    assert not set(CHECKS) & set(NAMES)


def test_a_key_follows_every_setting():
    scale, variant = SCALES["cpu"], VARIANTS[0]
    key = make_run(variant, scale, 0).key
    assert key == make_run(variant, scale, 0, "another name").key
    assert key != make_run(variant, scale, 1).key
    assert key != make_run(variant, dataclasses.replace(scale, samples=7), 0).key
    assert key != make_run(dataclasses.replace(variant, train={"clip": 2.0}), scale, 0).key


def test_the_rate_check_leaves_out_the_rate_of_the_plan():
    scale = SCALES["cpu"]
    rates = {(run.variant, run.settings["config"]["train"]["learning_rate"]) for run in rate_runs(scale)}
    others = [rate for rate in scale.learning_rates if rate != scale.train["learning_rate"]]
    assert rates == {(name, rate) for name in ("gspn", "dit") for rate in others}


def test_the_plan_says_its_cost():
    scale = SCALES["cpu"]
    runs, rates = training_runs(scale, ALL), rate_runs(scale)
    minutes = sum(run.seconds for run in [*runs, *rates]) / 60
    text = describe(scale, runs, rates, done=3, workers=2)
    assert f"{len(runs)} training runs" in text
    assert "3 of them done" in text
    assert f"{minutes:.0f} minutes of one worker" in text
    assert f"{minutes / 2:.0f} minutes with 2 at a time" in text
