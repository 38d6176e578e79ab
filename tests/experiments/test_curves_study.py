"""The study of curves: networks of equal parameters that see what is said, its trainings, and what the report says."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from experiments import curves_run, curves_section, pool
from experiments.__main__ import main
from experiments.curves_nets import PATCH, Classifier, Network, count_parameters, reach
from experiments.curves_plan import (
    CONVOLUTION,
    DESIGNS,
    GSPN,
    NO_SCAN,
    STUDIES,
    curves_folder,
    curves_runs,
    describe,
    network_of,
)
from experiments.curves_run import Batches, Recipe, run_one
from experiments.curves_section import curves_section as build_section
from experiments.curves_section import load_curves
from experiments.curves_task import Task, draw_layouts, draw_pictures
from experiments.train_run import write_json
from gspn_dit.errors import UserError

CPU, MINI = STUDIES["cpu"], STUDIES["mini"]
TASK = Task(size=16, lengths=(8, 12), distractors=1, turn=0.3, layouts=30, held_out=10)


def networks(study):
    return {design.name: network_of(design, study) for design in DESIGNS}


@pytest.mark.parametrize("study", [CPU, MINI], ids=["cpu", "mini"])
def test_parameters_are_equal(study):
    sizes = [
        count_parameters(network, grid.task.size)
        for network in networks(study).values()
        for grid in study.grids
    ]
    assert max(sizes) <= 1.02 * min(sizes)


def test_the_convolutional_control_sees_the_whole_picture_and_the_scan_is_what_sees_far():
    size = CPU.grids[0].task.size
    found = {name: reach(network, size) for name, network in networks(CPU).items()}
    assert [found[name] for name in ("gspn", "attention", "convolution", "sigmoid", "last-global")] == [
        None
    ] * 5
    assert found["no-scan"] < found["local-2"] < found["local-4"] < size


@pytest.mark.parametrize(
    "changed",
    [
        {"core": "identity"},
        {"core": "none", "kernel": 7},
        {"segment": 2},
        {"segment": 4},
        {"segment": 2, "global_blocks": 1},
        {},
        {"core": "attention"},
    ],
    ids=str,
)
def test_a_token_sees_as_far_as_is_said(changed):
    network = Network(
        **{"core": "lines", "width": 8, "depth": 2, "hidden": 8, "groups": 2, "heads": 2, **changed}
    )
    size, seen = 64, np.zeros((64, 64), dtype=bool)
    torch.manual_seed(0)
    model = Classifier(network, size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    # Where a segment ends decides what a token sees: some token sees as far as is said, none farther.
    farthest = 0
    for place in range(12, 20):
        x = torch.rand(1, 2, size, size, requires_grad=True)
        model.tokens(x)[0, place, place].sum().backward()
        rows, columns = np.nonzero(x.grad[0].abs().sum(0).numpy())
        first, last = place * PATCH, place * PATCH + PATCH - 1
        farthest = max(
            farthest, first - min(rows.min(), columns.min()), max(rows.max(), columns.max()) - last
        )
        seen[rows, columns] = True
    expected = reach(network, size)
    assert seen.all() if expected is None else farthest == expected


def test_the_read_out_is_of_the_marked_tokens_and_the_mean():
    torch.manual_seed(0)
    model = Classifier(Network(core="none", width=8, depth=0, hidden=8), 16)
    x = torch.zeros(2, 2, 16, 16)
    x[0, 1, 3, 5] = x[0, 1, 12, 9] = x[1, 1, 0, 0] = x[1, 1, 15, 15] = 1
    tokens = model.norm(model.tokens(x))
    at_marks = torch.stack([(tokens[0, 1, 2] + tokens[0, 6, 4]) / 2, (tokens[1, 0, 0] + tokens[1, 7, 7]) / 2])
    expected = model.head(torch.cat([tokens.mean((1, 2)), at_marks], dim=1)).squeeze(1)
    logits, counts = model(x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(counts, model.count(tokens))


def test_the_tokens_of_curves_are_asked_for_their_marks():
    layouts = draw_layouts(TASK, 0, 4)
    pictures, counts = (
        torch.from_numpy(part) for part in draw_pictures(layouts, np.arange(4), np.array([0, 1, 0, 1]))
    )
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0])
    right = torch.full((4, 8, 8, 3), -30.0)
    for number, row, column in np.argwhere(counts.numpy() >= 0).tolist():
        right[number, row // 2, column // 2, counts[number, row, column]] = 30.0
    answers = [labels * 60 - 30, right]
    assert all(part < 1e-6 for part in curves_run.losses(lambda _: answers, pictures, labels, counts))
    empty = (right == -30).all(-1)
    assert empty.any()
    answers[1] = torch.where(empty.unsqueeze(-1), torch.randn_like(right), right)
    assert (
        curves_run.losses(lambda _: answers, pictures, labels, counts)[1] < 1e-6
    )  # none is asked of the others


def test_batches_depend_on_seed_and_step_alone_and_rise_in_length():
    layouts = draw_layouts(TASK, 0, 30)
    recipe = Recipe(images=800, batch_size=8, learning_rate=1e-3, warmup_steps=2, ramp=0.5)
    batches = Batches(layouts, recipe, seed=3)
    for one, two in zip(batches.batch(5), Batches(layouts, recipe, seed=3).batch(5), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(batches.batch(5)[0], batches.batch(6)[0])
    assert not torch.equal(batches.batch(5)[0], Batches(layouts, recipe, seed=4).batch(5)[0])
    allowed = [batches.allowed(step) for step in range(recipe.steps)]
    assert allowed == sorted(allowed) and allowed[recipe.steps // 2] == 30 and 1 <= allowed[0] < 15
    plain = dataclasses.replace(recipe, ramp=0.0)
    assert Batches(layouts, plain, seed=3).allowed(0) == 30
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    assert max(rates) == rates[2] == 1e-3 and rates[0] == 5e-4 and rates[-1] < 1e-5


def diverging(model, x):
    """Answers that are not finite."""
    tokens = model.norm(model.tokens(x))
    return tokens.sum((1, 2, 3)) * torch.inf, model.count(tokens)


def test_a_training_is_scored_by_length_is_repeatable_and_may_diverge(tmp_path, monkeypatch):
    run = curves_runs("mini", tmp_path / "layouts")[0]
    result = run_one(run, tmp_path / "a", tmp_path)
    assert run.result_path(tmp_path / "a").exists() and result["key"] == run.key
    for name in ("lengths", "turns"):
        right, pictures = np.array([*result[name].values()]).sum(0)
        assert pictures == 20 and right / pictures == pytest.approx(result["accuracy"])
    again = run_one(run, tmp_path / "b", tmp_path)
    assert [again[key] for key in ("loss_curve", "lengths")] == [
        result[key] for key in ("loss_curve", "lengths")
    ]
    assert str(tmp_path) not in json.dumps(result)
    monkeypatch.setattr(Classifier, "forward", diverging)
    result = run_one(run, tmp_path / "c", tmp_path)
    assert result["diverged"].startswith("step 1: losses [") and "accuracy" not in result


def test_the_cost_is_said_and_every_training_is_another():
    runs = curves_runs("cpu")
    assert len({run.key for run in runs}) == len({run.name for run in runs}) == len(runs)
    assert all(run.settings["recipe"]["images"] <= 60_000 for run in runs)
    text = describe(runs, runs[3:], workers=2)
    assert f"3 of {len(runs)} trainings done" in text
    assert f"{sum(run.seconds for run in runs[3:]) / 7200:.1f} hours with 2 at a time" in text


def test_a_process_of_its_own_does_a_training(tmp_path):
    run = curves_runs("mini", tmp_path / "layouts")[1]
    assert pool.run_all([run], tmp_path / "results", tmp_path / "work", workers=1) == []
    assert pool.is_done(run, tmp_path / "results")
    assert "images 16: losses [" in pool.log_path(tmp_path / "work", run.name).read_text()


@pytest.mark.slow
def test_the_miniature_is_trained_and_taken_up(tmp_path, monkeypatch):
    command = ["--scale", "mini", "--only", "curves", "--out", str(tmp_path)]
    assert main([*command, "--workers", "0"]) == 0
    results = curves_folder(tmp_path / "results" / "experiments" / "mini")
    assert {path.stem for path in (results / "runs").iterdir()} == {run.name for run in curves_runs("mini")}
    text = (tmp_path / "docs" / "experiments-mini.md").read_text()
    assert "## Where propagation is needed" in text and "0 of 1 |" in text
    pictures = {path.name for path in (tmp_path / "docs" / "experiments-mini").glob("curves-*.png")}
    assert pictures == {f"curves-{name}.png" for name in ("task", "lengths", "turns", "speed")}
    trained = []
    monkeypatch.setattr(curves_run, "run_one", lambda run, *_: trained.append(run.name))
    curves_runs("mini")[0].result_path(results).unlink()
    assert main([*command, "--workers", "0"]) == 0
    assert trained == [curves_runs("mini")[0].name]


def test_a_scale_without_the_study_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"^curves has no scale gpu: expected one of cpu, mini$"):
        main(["--scale", "gpu", "--only", "curves", "--out", str(tmp_path)])


@pytest.fixture
def section(tmp_path, monkeypatch):
    """section(accuracies): the section's markdown; accuracies by design are those of three seeds at either size."""
    grids = tuple(dataclasses.replace(grid, seeds=(0, 1, 2)) for grid in MINI.grids)
    monkeypatch.setitem(STUDIES, "mini", dataclasses.replace(MINI, grids=grids))

    def build(accuracies):
        for run in curves_runs("mini"):
            name = run.variant.rpartition("-")[0]
            if name not in accuracies:
                continue
            accuracy = accuracies[name] + 0.001 * run.seed
            result = {"name": run.name, "variant": run.variant, "seed": run.seed, "key": run.key}
            result |= {"diverged": None, "accuracy": accuracy, "seconds": 1800.0}
            counts = [round(1000 * accuracy), 1000]
            result |= {"lengths": {"8": counts, "12": [500, 1000]}, "turns": {"1": counts}}
            result |= {"gradient": {"largest": 7.0, "median": 0.5}}
            write_json(run.result_path(curves_folder(tmp_path / "mini")), result)
        return build_section(load_curves("mini", tmp_path / "mini"), tmp_path).markdown("x")

    return build


def test_what_was_to_be_shown_is_said_to_be_or_not(section):
    text = section({"gspn": 0.97, "no-scan": 0.6, "convolution": 0.8, "sigmoid": 0.971})
    answers = text.split("**Answer.**\n\n")[1].splitlines()
    assert answers[0].startswith("- 16x16: GSPN 97.1 ± 0.1 %, its scan left out 60.1 ± 0.1 %: ")
    assert answers[0].endswith("the aim of at least 95% is reached, that of at most 75% reached.")
    assert "attention, sin-cos positions against GSPN: not measured" in text
    assert (
        "convolutions of 7x7 has a lower accuracy than GSPN by 0.170 (at its lowest, 50.0 %, around L = 12)"
        in text
    )
    assert "8 lines: GSPN, sigmoid in place of row-stochastic against GSPN: no difference in accuracy" in text
    row = next(line for line in text.splitlines() if line.startswith(f"| {NO_SCAN.label} |"))
    assert "± 5 pixels" in row and "7.0 / 0.50" in row and "0 of 3" in row and "60.1 ± 0.1" in row


def test_what_was_not_reached_is_said(section):
    text = section({"gspn": 0.9, "no-scan": 0.8})
    assert "at least 95% is **not reached: 90.1%**, that of at most 75% **not reached: 80.1%**" in text


def test_nothing_measured_is_no_section(tmp_path):
    assert load_curves("mini", tmp_path / "mini") is None and load_curves("gpu", tmp_path / "gpu") is None
    assert curves_section.NAME == "curves" and CONVOLUTION in DESIGNS and GSPN in DESIGNS
