"""The study of distillation: its plan, the miniature of it, and what the report says of its results."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from experiments import distil_run, distil_section, mixers_scores, pool
from experiments.__main__ import main
from experiments.distil_plan import TAUGHT, describe, distil_plan
from experiments.distil_section import load_distil
from experiments.mixers_plan import mixer_runs, parameters, study_folder
from experiments.train_run import write_json
from gspn_dit.checkpoint import latest_checkpoint, read_state
from gspn_dit.config import load_config, parse_config
from gspn_dit.errors import UserError
from tests.experiments.test_mixers import images, settings_of  # noqa: F401 (a fixture)

CPU, MINI = distil_plan("cpu"), distil_plan("mini")


def config_of(run):
    return run.settings["config"]


def images_of(run):
    return config_of(run)["train"]["steps"] * config_of(run)["train"]["batch_size"]


def test_the_teacher_is_as_wide_and_deep_and_sees_four_times_as_much():
    assert images_of(CPU.teacher) == 192_000 and {images_of(r) for r in CPU.runs[1:]} == {48_000}
    shapes = {tuple(config_of(run)["model"][key] for key in ("width", "depth")) for run in CPU.runs}
    assert shapes == {(64, 3)} and config_of(CPU.teacher)["model"]["name"] == "DiT-S/2"
    sizes = [parameters(settings_of(run, 32)) for run in CPU.runs]
    assert max(sizes) <= 1.01 * min(sizes)
    for run in (*CPU.scratch, *CPU.taught):
        model = config_of(run)["model"]
        assert (model["name"], model["local_path"], model["conv_init"]) == (
            *("GSPN-DiT-S/2", "modulated", "identity"),
        )
    assert [run.seed for run in CPU.taught] == [0, 0, 1, 1, 2, 2]
    assert [run.seed for run in CPU.scratch] == [0, 1, 2]


def test_the_taught_differ_from_those_from_scratch_by_their_teacher_alone():
    scratch = next(run for run in CPU.scratch if run.seed == 1)
    for run in (run for run in CPU.taught if run.seed == 1):
        config = json.loads(json.dumps(config_of(run)))
        weights = [config["train"].pop(f"teacher_{key}weight") for key in ("", "blocks_")]
        assert config == config_of(scratch) and weights[0] == 0.5
        assert run.settings["teacher"] == CPU.teacher.folder
    parse_config({"run_dir": "unused", **config_of(scratch)})
    keys = {run.key for run in CPU.runs}
    assert len(keys) == len({run.name for run in CPU.runs}) == len(CPU.runs) == 10


def test_teacher_and_those_from_scratch_are_the_mixer_study_s():
    known = {run.name: run for run in mixer_runs(CPU.study)}
    assert all(known[run.name].key == run.key for run in (CPU.teacher, *CPU.scratch))
    assert not [run.name for run in CPU.taught if run.name in known]


def test_the_cost_is_said():
    text = describe(CPU, list(CPU.taught), workers=2)
    assert "4 of 10 trainings done" in text and "192,000" in text
    assert f"{sum(run.seconds for run in CPU.taught) / 7200:.1f} hours with 2 at a time" in text
    assert sum(run.seconds for run in CPU.runs) < 3 * 3600


def command(images, tmp_path):  # noqa: F811
    options = ["--scale", "mini", "--only", "distil", "--workers", "0"]
    return [*options, "--data", str(images), "--out", str(tmp_path)]


@pytest.mark.slow
def test_the_miniature_is_trained_reported_and_taken_up(images, tmp_path, monkeypatch, capsys):  # noqa: F811
    asked = []
    settings = mixers_scores.settings_of(MINI.study, mixers_scores.Scored(MINI.teacher))
    scores = {"settings": settings, "kid": 0.0123, "fid": 1.0}
    monkeypatch.setattr(mixers_scores, "find_efficientnet", lambda: None)
    monkeypatch.setattr(mixers_scores, "score_run", lambda *a: asked.append(a) or scores)
    assert main(command(images, tmp_path)) == 0
    results = tmp_path / "results" / "experiments" / "mixers-mini"
    assert {path.stem for path in (results / "runs").iterdir()} == {run.name for run in MINI.runs}
    work = tmp_path / "runs" / "experiments" / "mixers-mini"
    teacher = read_state(latest_checkpoint(work / MINI.teacher.folder))["files"]["ema.safetensors"]["sha256"]
    for run in MINI.taught:
        assert read_state(latest_checkpoint(work / run.folder))["teacher"] == teacher
        assert load_config(work / run.folder / "config.yaml").train.teacher == str(work / MINI.teacher.folder)
        result = json.loads(run.result_path(results).read_text())
        assert len(result["validation"]["values"]) == 6 and str(tmp_path) not in json.dumps(result)
    text = (tmp_path / "docs" / "experiments-mini.md").read_text()
    assert (
        "## Distillation from attention" in text
        and "KID in EfficientNet's features 0.012, 20 samples" in text
    )
    assert (tmp_path / "docs" / "experiments-mini" / "distil.png").stat().st_size > 1000
    ((study, scored, folder, _),) = asked
    assert study is MINI.study and scored.run.key == MINI.teacher.key and folder == work / MINI.teacher.folder

    trained = []
    monkeypatch.setattr(
        pool, "run_one", lambda run, *folders: trained.append(run.name) or run_one(run, *folders)
    )
    assert main(command(images, tmp_path)) == 0
    assert trained == [] and len(asked) == 1
    MINI.taught[0].result_path(results).unlink()
    shutil.rmtree(work)  # as in a fresh clone
    capsys.readouterr()
    assert main(command(images, tmp_path)) == 0
    assert trained == [MINI.teacher.name, MINI.taught[0].name]
    assert "the teacher's run folder is gone: it is trained again" in capsys.readouterr().out


run_one = pool.run_one


def test_without_the_network_of_the_features_the_trainings_are_kept(images, tmp_path, monkeypatch, capsys):  # noqa: F811
    def finished(runs, results, work, _):
        for run in runs:
            write_json(run.result_path(results), {"key": run.key, "variant": run.variant})
            (work / run.folder).mkdir(parents=True)
        return []

    monkeypatch.setattr(distil_run, "run_all", finished)

    def missing(*_):
        raise UserError("pip install efficientnet")

    monkeypatch.setattr(mixers_scores, "find_efficientnet", missing)
    plan = distil_plan("mini", images)
    assert distil_run.run_distil(plan, images, tmp_path / "results", tmp_path / "work", 0) == []
    assert all(run.result_path(tmp_path / "results").exists() for run in plan.runs)
    assert "left out, the scores of samples: pip install efficientnet" in capsys.readouterr().out


def test_what_cannot_be_is_one_line(images, tmp_path):  # noqa: F811
    for arguments, message in (
        (command(tmp_path / "none", tmp_path), "distil: no images in "),
        (["--scale", "gpu", "--only", "distil", "--out", str(tmp_path)], ""),
        (command(images / "train", tmp_path), "has no folder test/: the study measures on its images"),
    ):
        with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
            main(arguments)
        assert message in str(caught.value)


def written(folder, losses):
    """Results with these losses by the name of the design, nearly the same for every image."""
    for run in distil_section.distil_plan("mini").runs:
        design = {"longer-dit": "teacher", "4-lines-winner": "scratch"}.get(run.variant)
        design = design or run.variant.removeprefix("distil-")
        if design not in losses:
            continue
        noise = np.random.default_rng([run.seed, len(design)]).normal(size=12)
        values = losses[design] + 0.01 * noise
        parts = dict.fromkeys(("low", "middle", "high"), losses[design])
        result = {"name": run.name, "variant": run.variant, "seed": run.seed, "key": run.key}
        result |= {"settings": run.settings, "images": 16, "diverged": None, "parameters": 1234}
        result |= {"images_per_second": 100.0, "seconds": 3600.0}
        result["validation"] = {"loss": float(values.mean()), **parts, "values": values.tolist()}
        write_json(run.result_path(folder), result)


@pytest.fixture
def section(tmp_path, monkeypatch):
    """section(losses): the section's markdown, of three seeds."""
    study = dataclasses.replace(MINI.study, seeds=(0, 1, 2))
    monkeypatch.setitem(distil_plan.__globals__["STUDIES"], "mini", study)

    def build(losses):
        written(study_folder(tmp_path / "mini"), losses)
        return distil_section.distil_section(load_distil("mini", tmp_path / "mini"), tmp_path).markdown("x")

    return build


def test_a_gain_is_one_of_every_seed_and_none_is_said(section):
    text = section({"teacher": 0.7, "scratch": 1.0, "prediction": 0.9, "blocks": 1.0})
    answers = text.split("**Answer.**\n\n")[1].splitlines()
    assert answers[0].startswith("- taught its prediction: a gain, -10.")
    assert "taught its prediction and its mixers' outputs: **no gain**, " in answers[1]
    assert "DiT, the teacher: loss 0.7" in answers[2] and "features not measured" in answers[2]
    assert text.count("3600") == 0 and "(10.0 hours of one core)" in text
    row = next(line for line in text.splitlines() if line.startswith("| taught its prediction |"))
    assert row.split(" | ")[1:4] == ["3", "16", "1,234"] and row.count("±") >= 4


def test_what_is_not_measured_is_said(section, tmp_path):
    text = section({"scratch": 1.0, "prediction": 0.9})
    assert f"- {TAUGHT[1].label}: not measured" in text and "- DiT, the teacher: loss not measured" in text
    assert load_distil("mini", tmp_path / "elsewhere" / "mini") is None
    assert load_distil("gpu", tmp_path / "gpu") is None
