"""The digit classifier and the demo's score table."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from gspn_dit.checkpoint import load_model
from gspn_dit.config import EvalConfig, parse_config
from gspn_dit.data.mnist import load_digits
from gspn_dit.evaluation import demo, digits
from gspn_dit.evaluation.demo import format_table, score_demo
from gspn_dit.evaluation.metrics import frechet_distance, moments
from gspn_dit.files import claimed_file
from gspn_dit.latents.autoencoder import PixelAutoencoder
from gspn_dit.sampling.sample_file import read_settings
from tests.sampling.conftest import make_run


def config_of(samples: int):
    return parse_config(
        {
            "run_dir": "unused",
            "model": {"name": "GSPN-DiT-S/4"},
            "diffusion": {"objective": "flow"},
            "data": {"kind": "mnist"},
            "train": {"steps": 10, "batch_size": 4},
            "sample": {"steps": 3, "cfg_scale": 2.0},
            "eval": {"samples": samples},
        }
    )


def test_the_classifier_reads_held_out_digits(classifier):
    assert digits.held_out_accuracy(classifier) >= 0.97
    features, classes = classifier.describe(load_digits("heldout")[0][:7])
    assert features.shape == (7, digits.FEATURES) and classes.shape == (7,)


def test_features_do_not_depend_on_the_batch(classifier):
    images = load_digits("heldout")[0][:20]
    whole, _ = classifier.describe(images)
    alone, _ = classifier.describe(images, batch_size=3)
    np.testing.assert_allclose(alone, whole, rtol=1e-4, atol=1e-5)


def test_the_classifier_is_made_once(digit_cache, monkeypatch):
    monkeypatch.setattr(digits, "train_classifier", None)
    digits.load_classifier()
    monkeypatch.setattr(digits, "classifier_key", lambda: "other content")
    with pytest.raises(TypeError):
        digits.load_classifier()


def test_a_damaged_cache_is_made_anew(digit_cache, monkeypatch, classifier):
    whole = digits.cached_path().read_bytes()
    digits.cached_path().write_bytes(whole[:100])
    monkeypatch.setattr(digits, "train_classifier", lambda: classifier)
    digits.load_classifier()
    assert digits.cached_path().read_bytes() == whole


def test_the_classifier_that_another_process_makes_is_waited_for(digit_cache, monkeypatch):
    monkeypatch.setattr(digits, "train_classifier", None)
    path = digits.cached_path()
    content = path.read_bytes()
    path.unlink()
    with claimed_file(path):
        second = threading.Thread(target=digits.load_classifier)
        second.start()
        second.join(0.2)
        assert second.is_alive()
        path.write_bytes(content)
    second.join()
    assert [entry.name for entry in digit_cache.iterdir()] == [path.name]


@pytest.mark.slow
def test_training_the_classifier_again_gives_the_same_bits(classifier):
    again = digits.train_classifier()
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_classifier_trains_where_gradients_are_off(monkeypatch):
    monkeypatch.setattr(digits, "load_digits", lambda split: [array[:128] for array in load_digits(split)])
    with torch.no_grad():
        classifier = digits.train_classifier()
    assert not classifier.training


def test_distortion_moves_a_digit_but_keeps_most_of_it():
    images = digits.to_input(torch.from_numpy(load_digits("train")[0][:50]))
    moved = digits.distort(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.min() >= -1.001 and moved.max() <= 1.001
    ink = (moved + 1).sum() / (images + 1).sum()
    assert 0.85 < ink < 1.15
    assert (moved - images).abs().mean() > 0.02


def test_samples_that_are_real_digits_score_as_real_and_as_new(digit_cache, tmp_path, monkeypatch):
    """Held-out digits in place of samples: the known end of each line of the table."""
    images, labels = load_digits("heldout")
    rgb = np.repeat(images[..., None], 3, axis=3)
    monkeypatch.setattr(demo, "draw", lambda *_: (rgb, labels))
    model = torch.nn.Linear(3, 5)
    scores = score_demo(model, config_of(1000), PixelAutoencoder(), "cpu", tmp_path)
    assert scores["asked_class"] == scores["classifier_accuracy"] >= 0.97
    assert scores["copies"] == pytest.approx(0.01, abs=0.001)
    assert scores["fid"] == pytest.approx(0, abs=1e-6) and scores["parameters"] == 20
    assert 0 < scores["fid_real_halves"] < 10
    table = format_table(scores, {**scores, "model": "other", "fid": 12.345})
    assert "12.35" in table and "0.00" in table and "other" in table
    assert len({len(line) for line in table.splitlines()[:-2]}) == 1


def test_training_digits_are_found_to_be_copies():
    train, _ = load_digits("train")
    shifted = np.roll(load_digits("heldout")[0][:50], 9, axis=1)
    assert demo.share_of_copies(train[:50]) == 1
    assert demo.share_of_copies(shifted) == 0


def test_a_tuning_run_is_scored_on_other_digits(digit_cache, tmp_path):
    run = make_run(tmp_path / "run", width=16, depth=1)
    model, config, _ = load_model(run)
    data = dataclasses.replace(config.data, tuning=True)
    config = dataclasses.replace(config, data=data, eval=EvalConfig(samples=20))
    scores = score_demo(model, config, PixelAutoencoder(), "cpu", tmp_path)
    with np.load(tmp_path / "unguided.npz") as arrays:
        features, _ = digits.load_classifier().describe(digits.to_digits(arrays["arr_0"]))
    real, _ = digits.load_classifier().describe(load_digits("heldout", tuning=True)[0])
    assert scores["fid"] == pytest.approx(frechet_distance(moments(features), moments(real)), rel=1e-9)
    assert "1,000 of the training digits" in format_table(scores)
    tuned_on, _ = load_digits("heldout", tuning=True)
    assert demo.share_of_copies(tuned_on[:50]) == 1
    assert demo.share_of_copies(tuned_on, tuning=True) == 0.01


def test_the_table_is_made_of_samples_that_are_written(digit_cache, tmp_path):
    from gspn_dit import create_model

    model = create_model(
        "GSPN-DiT-S/8", input_size=32, in_channels=1, num_classes=10, learn_sigma=False, width=16, depth=1
    )
    scores = score_demo(model.eval(), config_of(100), PixelAutoencoder(), "cpu", tmp_path)
    assert scores["training_images"] == 40 and scores["sampler"] == "heun"
    with np.load(tmp_path / "unguided.npz") as arrays:
        written = digits.to_digits(arrays["arr_0"])
        assert np.bincount(arrays["labels"]).tolist() == [10] * 10
    features, _ = digits.load_classifier().describe(written)
    real, _ = digits.load_classifier().describe(load_digits("heldout")[0])
    assert scores["fid"] == pytest.approx(frechet_distance(moments(features), moments(real)), rel=1e-9)
    assert read_settings(tmp_path / "unguided.npz")["cfg_scale"] == 1.0
    assert read_settings(tmp_path / "guided.npz")["cfg_scale"] == 2.0


def test_internal_guidance_is_of_the_guided_score_alone(digit_cache, tmp_path):
    """With a scale of 1 for the classes, the two scores differ by the auxiliary head's guidance."""
    run = make_run(
        tmp_path / "run", sample={"cfg_scale": 1.0, "internal_guidance": 2.5}, depth=2, auxiliary_head=0
    )
    model, config, _ = load_model(run)
    config = dataclasses.replace(config, eval=EvalConfig(samples=20))
    scores = score_demo(model, config, PixelAutoencoder(), "cpu", tmp_path)
    with np.load(tmp_path / "guided.npz") as guided, np.load(tmp_path / "unguided.npz") as unguided:
        assert np.abs(guided["arr_0"].astype(int) - unguided["arr_0"]).max() > 2
    assert scores["internal_guidance"] == read_settings(tmp_path / "guided.npz")["internal_guidance"] == 2.5
    assert "internal_guidance" not in read_settings(tmp_path / "unguided.npz")
    assert "1, internal 2.5" in format_table(scores)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected \(n, 32, 32, 3\) uint8, got \(2, 28, 28, 3\)"):
        digits.to_digits(np.zeros((2, 28, 28, 3), dtype=np.uint8))
