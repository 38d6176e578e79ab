"""When scores may stand beside published ones."""

import pytest

from gspn_dit.evaluation.verdict import departures, reasons_against

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
        ({"labels": "balanced"}, "labels is balanced"),
        ({"decoder": None}, "decoder is not stated"),
    ],
)
def test_departures_from_the_preset(change, reason):
    (found,) = departures({**GOOD, **change}, "paper")
    assert reason in found
