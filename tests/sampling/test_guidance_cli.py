"""Guidance by an auxiliary head, by another run and in published intervals, on the command lines."""

import re

import numpy as np
import pytest
import torch

import sample
from gspn_dit import hub
from gspn_dit.checkpoint import load_model
from gspn_dit.config import load_config
from gspn_dit.diffusion import create_diffusion, keyed_noise
from gspn_dit.diffusion import sample as draw
from gspn_dit.errors import UserError
from gspn_dit.evaluation.leaderboard import guidance as cell
from gspn_dit.evaluation.runs import RunOptions, resolve
from gspn_dit.evaluation.scores import guidance as line
from gspn_dit.sampling.request import Request
from gspn_dit.sampling.sample_file import read_settings
from tests.sampling.conftest import make_run

HEAD = {"depth": 2, "auxiliary_head": 0}


@pytest.fixture(scope="module")
def headed_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("headed") / "run", **HEAD)


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("guide") / "run", width=8)


def images(run, file, *options):
    arguments = [str(run), "--num", "8", "--npz", str(file), "--steps", "2", "--labels", "balanced", *options]
    assert sample.main(arguments) == 0
    with np.load(file) as arrays:
        return arrays["arr_0"].astype(int)


def by_hand(run, **settings):
    """What `images` must give, from the library itself."""
    model, config, _ = load_model(run)
    noise = keyed_noise(0, range(8), (1, 32, 32))
    diffusion = create_diffusion(config.diffusion.objective)
    latents = draw(model, diffusion, torch.arange(8), noise, sampler="heun", steps=2, **settings)
    return (
        ((latents.clamp(-1, 1) + 1) * 127.5).round().int().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    )


def test_internal_guidance_is_used_and_recorded(headed_run, tmp_path):
    plain = images(headed_run, tmp_path / "plain.npz")
    found = images(headed_run, tmp_path / "internal.npz", "--internal-guidance", "2.5")
    assert np.abs(found - by_hand(headed_run, internal_guidance=2.5)).max() <= 1
    assert np.abs(found - plain).max() > 2
    assert read_settings(tmp_path / "internal.npz")["internal_guidance"] == 2.5
    assert "internal_guidance" not in read_settings(tmp_path / "plain.npz")  # older files have no such key
    with pytest.raises(UserError, match=r"was begun with internal_guidance 2\.5, now None"):
        images(headed_run, tmp_path / "internal.npz")


def test_autoguidance_is_used_and_recorded(flow_run, guide, tmp_path):
    found = images(flow_run, tmp_path / "guided.npz", "--guide", str(guide), "--guide-scale", "3")
    weak, _, info = load_model(guide)
    assert np.abs(found - by_hand(flow_run, guide=weak, guide_scale=3.0)).max() <= 1
    assert np.abs(found - images(flow_run, tmp_path / "plain.npz")).max() > 2
    settings = read_settings(tmp_path / "guided.npz")
    assert (settings["guide"], settings["guide_scale"], settings["cfg_scale"]) == (info["hash"], 3.0, 1.0)
    checkpoint = Request(run=str(flow_run), guide=str(guide)).resolve().request
    assert (checkpoint.guide_scale, checkpoint.guide.endswith("step_00000001")) == (2.1, True)


def test_a_grid_takes_the_run_s_internal_guidance_and_a_guide_alone(headed_run, guide, tmp_path, capsys):
    path = max((headed_run / "checkpoints").glob("step_*")) / "config.yaml"
    config = load_config(path)
    assert config.sample.cfg_scale == 2.0
    options = ["--classes", "0", "--per-class", "1", "--steps", "1", "--out", str(tmp_path / "grid.png")]
    for more, said in (
        ([], "cfg-scale 2, seed"),
        (["--internal-guidance", "1.5"], "cfg-scale 2, internal-guidance 1.5, seed"),
        (["--guide", str(guide)], f"guide-scale 2.1 of {guide}/checkpoints/step_00000001, seed"),
    ):
        assert sample.main([str(headed_run), *options, *more]) == 0
        assert said in capsys.readouterr().out


def test_the_run_s_own_internal_guidance_is_the_default_of_grids(tmp_path):
    run = make_run(tmp_path / "run", sample={"internal_guidance": 1.75}, **HEAD)
    assert Request(run=str(run)).resolve().request.internal_guidance == 1.75
    assert resolve(run, RunOptions())[0].request.internal_guidance == 1.0


def test_a_release_is_guided_by_its_head(headed_run, tmp_path):
    release = hub.release(headed_run, tmp_path / "release")
    found = images(release, tmp_path / "a.npz", "--internal-guidance", "2.5")
    assert np.array_equal(found, images(headed_run, tmp_path / "b.npz", "--internal-guidance", "2.5"))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("flow", (0.34 / 1.34, 1.02 / 2.02)), ("ddpm", (100.0, 261.0))],
)
def test_a_name_stands_for_an_interval_of_t(flow_run, ddpm_run, objective, expected):
    run = {"flow": flow_run, "ddpm": ddpm_run}[objective]
    found = Request(run=str(run), cfg_interval="dit-xl2").resolve().request.cfg_interval
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_interval_by_name_is_that_by_numbers(flow_run, tmp_path):
    scale = ("--cfg-scale", "4", "--sampler", "euler")
    named = images(flow_run, tmp_path / "a.npz", *scale, "--cfg-interval", "repa")
    assert np.array_equal(named, images(flow_run, tmp_path / "b.npz", *scale, "--cfg-interval", "0,0.7"))
    assert read_settings(tmp_path / "a.npz") == read_settings(tmp_path / "b.npz")
    assert np.abs(named - images(flow_run, tmp_path / "c.npz", *scale)).max() > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--internal-guidance 0.5", "--internal-guidance 0.5: expected 1.0 (no guidance) or more"),
        ("--internal-guidance 1.5", "internal_guidance is 1.5; expected 1 (none): the network of"),
        ("--guide-scale 2", "--guide-scale is for --guide OTHER_RUN"),
        ("--guide GUIDE --guide-scale nan", "--guide-scale nan: expected 1.0"),
        ("--guide GUIDE --cfg-scale 1.5", "cfg_scale is 1.5; expected 1 with a guide"),
        ("--guide HEADED --internal-guidance 1.5", "internal_guidance is 1.5; expected 1 with a guide"),
        ("--guide GUIDE --cfg-interval repa", "cfg_interval is (0.0, 0.7); expected None with a guide"),
        ("--guide DDPM", "has objective ddpm; expected flow, as"),
        ("--guide CLASSES", "has num_classes 7; expected 10, as"),
        ("--guide SIZE", "has input_size 16; expected 32, as"),
        ("--guide CHANNELS", "has in_channels 4; expected 1, as"),
        ("--guide PLACES --size 64x32", "--size is for networks without positions; --guide"),
        ("--guide /nowhere", "no such run or checkpoint: /nowhere"),
        ("--cfg-interval dit", "--cfg-interval dit: expected two numbers, LOW,HIGH, or a name; "),
    ],
)
def test_bad_input_is_one_line(
    options, message, flow_run, ddpm_run, headed_run, guide, tmp_path, monkeypatch
):
    other = {
        "CLASSES": {"num_classes": 7},
        "SIZE": {"input_size": 16},
        "CHANNELS": {"in_channels": 4},
        "PLACES": {"position": "sincos"},
    }
    runs = {"GUIDE": guide, "DDPM": ddpm_run, "HEADED": headed_run}
    words = []
    for word in options.split():
        if word in other:
            runs[word] = make_run(tmp_path / word, **other[word])
        words.append(str(runs.get(word, word)))
    monkeypatch.setattr("gspn_dit.checkpoint.load_weights", None)  # nothing may be loaded before the checks
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        sample.main([str(flow_run), *words, "--out", str(tmp_path / "grid.png")])
    assert message in str(caught.value)
    assert not (tmp_path / "grid.png").exists()


def test_a_guide_s_files_are_not_written_over(flow_run, guide):
    with pytest.raises(UserError, match=r"--out .* the run's checkpoints"):
        sample.main([str(flow_run), "--guide", str(guide), "--out", str(guide / "checkpoints" / "grid.png")])


def test_help_names_the_intervals_and_their_sources(capsys):
    with pytest.raises(SystemExit):
        sample.parse_arguments(["--help"])
    said = capsys.readouterr().out
    for word in ("dit-xl2", "edm2-s", "edm2-xxl", "repa", "arXiv 2404.07724", "arXiv 2410.06940"):
        assert word in said


def test_the_names_of_sample_files_without_new_guidance_are_as_ever(flow_run):
    """Of a run scored before there was internal guidance, the samples are found again."""
    request = resolve(flow_run, RunOptions())[0].request
    named = re.findall(r"(\w+)=", repr(request))
    assert named == [
        "run",
        "ema",
        "sampler",
        "steps",
        "cfg_scale",
        "cfg_interval",
        "seed",
        "vae",
        "batch_size",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"internal_guidance": 1.5}, "internal_guidance is 1.5; expected 1 (none): the network of"),
        (
            {"internal_guidance": 1.5, "preset": "paper"},
            "--internal-guidance 1.5: --preset paper pins it to 1.0",
        ),
    ],
)
def test_scoring_refuses_what_the_network_or_the_preset_has_not(flow_run, options, message):
    with pytest.raises(UserError) as caught:
        resolve(flow_run, RunOptions(**options))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected", "in_table"),
    [
        ({"cfg_scale": None}, None, ""),
        ({"cfg_scale": 1.0}, "none", "none"),
        ({"cfg_scale": 1.5, "cfg_interval": [0, 1]}, "1.5 for t in [0, 1]", "cfg 1.5 for t in [0, 1]"),
        ({"cfg_scale": 1.0, "internal_guidance": 1.4}, "internal 1.4", "internal 1.4"),
        ({"cfg_scale": 1.5, "internal_guidance": 1.4}, "1.5, internal 1.4", "cfg 1.5, internal 1.4"),
        ({"cfg_scale": 1.0, "guide": "0123456789", "guide_scale": 2.1}, "2.1 by 01234567", "guide 2.1"),
    ],
)
def test_guidance_in_words(settings, expected, in_table):
    settings = {"cfg_interval": None, **settings}
    assert line(settings) == expected and cell(settings) == in_table
