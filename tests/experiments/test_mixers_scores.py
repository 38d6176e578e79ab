"""Scores of what the finals of the mixer's study draw, with a stand-in for the network of features."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import mixers_scores, mixers_section
from experiments.mixers_plan import STUDIES, mixer_runs, study_folder
from experiments.train_run import run_one, write_json
from gspn_dit.errors import UserError
from gspn_dit.evaluation.extractors import Features

STUDY = STUDIES["mini"]


class Colours:
    """A network whose features are mean colours."""

    kind, identity, width, published = "efficientnet", "colours", 3, False

    def __call__(self, images):
        return Features(torch.from_numpy(images).float().mean(dim=(1, 2)) / 64)


@pytest.fixture
def colours(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("gspn_dit.evaluation.scores.check_network", lambda options: None)
    monkeypatch.setattr("gspn_dit.evaluation.scores.create_network", lambda options, device: Colours())
    monkeypatch.setattr(mixers_scores, "find_efficientnet", lambda: None)


@pytest.fixture
def images(tmp_path):
    """An image folder of ten classes."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "images" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def finals(images):
    """The winner and DiT on the first grid, and the winner on the second."""
    names = ("4-lines-winner-seed0", "4-lines-dit-seed0", "8-lines-winner-seed0")
    runs = {run.name: dataclasses.replace(run, data=str(images)) for run in mixer_runs(STUDY)}
    return [runs[name] for name in names]


def test_finals_of_the_first_grid_are_scored_once_and_shown(images, colours, tmp_path, monkeypatch):
    runs, results, work = finals(images), study_folder(tmp_path / "mini"), tmp_path / "work"
    for run in runs[:2]:
        run_one(run, results, work)
    mixers_scores.measure(STUDY, runs, results, work)
    paths = [results / "scores" / f"{run.name}.json" for run in runs]
    assert [path.exists() for path in paths] == [True, True, False]
    winner, dit = (json.loads(path.read_text()) for path in paths[:2])
    assert winner["kid"] != dit["kid"] and winner["kid_real_halves"] == dit["kid_real_halves"]
    assert winner["settings"]["samples"] == 20 and winner["settings"]["cfg_scale"] == 1.0
    picture = Image.open(results / "samples" / "4-lines-winner-seed0.png")
    assert picture.size == (2 * 10 + 2, 10 * 10 + 2)  # a row for each class of two samples each
    section = mixers_section.mixers_section(
        mixers_section.load_mixers("mini", tmp_path / "mini"), tmp_path / "docs"
    )
    text = section.markdown("docs")
    assert "| 20 unguided samples against the held-out images | seeds | KID | FID |" in text
    assert f"the winner's over DiT's: {winner['kid'] / dit['kid']:.4g}" in text
    assert (tmp_path / "docs" / "mixers-samples.png").exists()

    monkeypatch.setattr(mixers_scores, "score_run", None)  # would be called where a score is missing
    mixers_scores.measure(STUDY, runs, results, work)
    old = winner["settings"] | {"samples": 10}
    write_json(paths[0], winner | {"settings": old})
    with pytest.raises(TypeError):
        mixers_scores.measure(STUDY, runs, results, work)


def test_a_recipe_with_a_head_is_scored_with_its_guidance_too(images, colours, tmp_path):
    names = ("recipe-none-seed0", "recipe-auxiliary-head-seed0")
    runs = [dataclasses.replace(run, data=str(images)) for run in mixer_runs(STUDY) if run.name in names]
    results, work = study_folder(tmp_path / "mini"), tmp_path / "work"
    for run in runs:
        run_one(run, results, work)
    mixers_scores.measure(STUDY, runs, results, work)
    found = {path.stem: json.loads(path.read_text()) for path in (results / "scores").iterdir()}
    assert set(found) == {*names, "recipe-auxiliary-head-guided-seed0"}
    assert found["recipe-auxiliary-head-guided-seed0"]["settings"]["internal_guidance"] == 1.4
    kids = {name: f"| 1 | {scores['kid']:.4g} |" for name, scores in found.items()}
    assert kids["recipe-auxiliary-head-seed0"] != kids["recipe-auxiliary-head-guided-seed0"]
    loaded = mixers_section.load_mixers("mini", tmp_path / "mini")
    text = mixers_section.mixers_section(loaded, tmp_path / "docs").markdown("docs")
    assert f"| none of these {kids['recipe-none-seed0']}" in text
    assert f"| the same, internal guidance 1.4 {kids['recipe-auxiliary-head-guided-seed0']}" in text
    assert not (results / "samples").exists()


def test_without_the_extra_the_study_goes_on(images, tmp_path, monkeypatch, capsys):
    run = finals(images)[0]
    run_one(run, tmp_path / "results", tmp_path / "work")

    def missing():
        raise UserError("needs its network: pip install something")

    monkeypatch.setattr(mixers_scores, "find_efficientnet", missing)
    mixers_scores.measure(STUDY, [run], tmp_path / "results", tmp_path / "work")
    assert "left out, the scores of samples: needs its network: pip install" in capsys.readouterr().out
    assert not (tmp_path / "results" / "scores").exists()
