"""What decides scores: read beside samples, stated of them; and when scores may stand beside published ones."""

import json

import pytest

from gspn_dit.errors import UserError
from gspn_dit.evaluation.image_sets import open_images
from gspn_dit.evaluation.verdict import STATED, TRACED, departures, describe_samples, reasons_against
from tests.evaluation.conftest import random_images
from tests.evaluation.test_extractors import save_folder

GOOD = {
    "features": "inception",
    "inception_published": True,
    "samples": 50_000,
    "reference_virtual": True,
    "sample_size": [256, 256],
    "reference_size": [256, 256],
    "lossy": False,
    "labels": "random",
    "ema": True,
    "objective": "ddpm",
    "sampler": "ddpm",
    "steps": 250,
    "cfg_scale": 1.0,
    "decoder": "stabilityai/sd-vae-ft-mse (weights 0123, scale 0.18215, shift 0)",
}


def test_adm_comparable():
    assert reasons_against(GOOD) == []
    assert departures(GOOD, "paper") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features": "digits", "inception_published": False}, "digit classifier"),
        ({"inception_published": False}, "another hash"),
        ({"samples": 10_000}, "10,000 samples, not 50,000"),
        ({"samples": 50_001}, "50,001 samples, not 50,000"),
        ({"reference_virtual": False}, "VIRTUAL_imagenet"),
        ({"sample_size": [64, 64]}, "samples are 64x64, the reference's images 256x256"),
        ({"lossy": True}, "lossy"),
        ({"labels": None}, "sampling of labels is not stated"),
        ({"ema": None}, "not stated whether the weights"),
        ({"ema": False}, "not averaged"),
    ],
)
def test_each_reason_against(change, reason):
    (found,) = reasons_against({**GOOD, **change})
    assert reason in found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": 50}, "steps is 50, in --preset paper 250"),
        ({"cfg_scale": None}, "cfg_scale is not stated"),
        ({"internal_guidance": 1.4}, "internal_guidance is 1.4, in --preset paper 1.0"),
        ({"guide": "0123456789", "guide_scale": 2.1}, "guide is 01234567, in --preset paper none"),
        ({"labels": "balanced"}, "labels is balanced"),
        ({"decoder": None}, "decoder is not stated"),
    ],
)
def test_departures_from_the_preset(change, reason):
    (found,) = departures({**GOOD, **change}, "paper")
    assert reason in found


@pytest.fixture
def samples(tmp_path):
    """A folder of four images."""
    return save_folder(tmp_path / "cfg1.5", random_images(4, 0, size=4))


def describe(samples, stated=None, **written):
    samples.with_name(samples.name + ".json").write_text(json.dumps(written))
    return describe_samples(samples, open_images(samples), stated or {})


def test_settings_beside_samples_and_stated_ones_are_joined(samples):
    (samples.parent / "cfg1.json").write_text("{}")  # of another folder
    found = describe(samples, {"ema": True}, labels="balanced", steps=50, cfg_scale=1, count=4, other=1)
    assert found["labels"] == "balanced" and found["ema"] is True and found["cfg_scale"] == 1
    assert found["decoder"] is None and found["samples"] == 4 and found["sample_size"] == [4, 4]
    assert set(found) == {"path", "samples", "sample_size", "lossy", *STATED, *TRACED}
    assert describe(samples, {"labels": "random"}, labels="random")["labels"] == "random"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"ema": "yes"}, "ema is 'yes'; expected bool, or null"),
        ({"cfg_scale": "1.5"}, "cfg_scale is '1.5'; expected int or float, or null"),
        ({"steps": True}, "steps is True; expected int"),
        ({"count": 5}, "is of 5 images"),
        ({"labels": "balanced"}, "labels is stated to be 'random'; "),
    ],
)
def test_settings_that_cannot_be_of_these_samples_are_told(written, message, samples):
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        describe(samples, {"labels": "random"}, **written)
    assert message in str(caught.value)


def test_settings_that_are_no_object_are_told(samples):
    (samples.parent / "cfg1.5.json").write_text("[]")
    with pytest.raises(UserError, match=r"cfg1.5.json is not a JSON object"):
        describe_samples(samples, open_images(samples), {})
