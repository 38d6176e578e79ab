"""The settings that are read beside samples, and those that are stated of them."""

import json

import pytest

from gspn_dit.errors import UserError
from gspn_dit.evaluation.described import STATED, TRACED, describe_samples
from gspn_dit.evaluation.images import open_images
from tests.evaluation.conftest import random_images
from tests.evaluation.test_inception import save_folder


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
