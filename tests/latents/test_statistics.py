"""Statistics of channels: by hand, however the work is cut, and what training and held-out latents make of them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import encode_latents
from gspn_dit.data import describe_dataset
from gspn_dit.errors import UserError
from gspn_dit.latents import measuring
from gspn_dit.latents.dataset import DTYPE, LatentDataset, read_manifest
from gspn_dit.latents.measuring import measure_channels
from gspn_dit.latents.normalization import ChannelNorm, Scaling
from gspn_dit.random import POSTERIOR, seed_of
from tests.data.test_images import write_broken

from .conftest import SCALE, SHIFT, save_dc, save_taef2, save_tiny

SHAPE = (4, 2, 3)
LABELS = [0, 1, -1, 2, 0]


def stored_moments(images: int = 5, parts: int = 1) -> np.ndarray:
    """Random moments (images, 2, parts, 4, 2, 3) as stored, with another mean and deviation in each channel."""
    moments = np.random.default_rng(0).standard_normal((images, 2, parts, *SHAPE))
    moments *= np.array([0.5, 1, 2, 0.01]).reshape(4, 1, 1)
    moments += np.array([-1, 0, 7, 0.3]).reshape(4, 1, 1)
    return moments.astype(DTYPE)


def by_hand(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (4,) of latents drawn from moments (images, 2, parts, 4, 2, 3)."""
    moments = np.moveaxis(moments.astype(np.float64), 3, 0).reshape(4, len(moments) * 2, -1, 6)
    means = moments[:, :, 0].reshape(4, -1)
    variance = means.var(axis=1)
    if moments.shape[2] == 2:
        variance = variance + np.exp(moments[:, :, 1]).reshape(4, -1).mean(axis=1)
    return means.mean(axis=1), np.sqrt(variance)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_channels_are_measured_over_all_that_was_encoded(store_folder, monkeypatch, parts, rows):
    monkeypatch.setattr(measuring, "ROWS", rows)
    moments = stored_moments(parts=parts)
    folder = store_folder(moments, LABELS)
    encoded = np.array(LABELS) >= 0
    measured = measure_channels(folder / "moments.bin", read_manifest(folder), encoded)
    mean, std = by_hand(moments[encoded])
    np.testing.assert_allclose(measured["channel_mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(measured["channel_std"], std, rtol=1e-9)


def measured_store(store_folder, parts: int = 1, **settings) -> Path:
    """A store of `stored_moments` whose manifest has their statistics."""
    moments = stored_moments(parts=parts)
    mean, std = by_hand(moments[np.array(LABELS) >= 0])
    settings = {
        "normalization": "channels",
        "channel_mean": tuple(mean),
        "channel_std": tuple(std),
    } | settings
    return store_folder(moments, LABELS, **settings)


def test_latents_without_a_posterior_are_drawn_without_noise(store_folder):
    dataset = LatentDataset(measured_store(store_folder))
    moments = stored_moments().astype(np.float64)[np.array(LABELS) >= 0]
    mean, std = (values.reshape(4, 1, 1) for values in by_hand(moments))
    numbers = np.arange(100)
    x, y = dataset.draw(numbers % 4, numbers, seed=1)
    mirrors = [seed_of(POSTERIOR, 1, number) & 1 for number in range(100)]
    assert 30 < sum(mirrors) < 70 and y.tolist() == [0, 1, 2, 0] * 25
    expected = (moments[numbers % 4, mirrors, 0] - mean) / std
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_normalised_latents_have_mean_zero_and_deviation_one(store_folder, parts):
    dataset = LatentDataset(measured_store(store_folder, parts))
    numbers = np.arange(20_000)
    x, _ = dataset.draw(numbers % 4, numbers, seed=0)
    assert x.mean(dim=(0, 2, 3)).abs().max() < 0.02
    assert (x.std(dim=(0, 2, 3)) - 1).abs().max() < 0.02


def old_store(store_folder) -> Path:
    """As a version without statistics wrote it: moments, and a manifest without the newer keys."""
    folder = store_folder(stored_moments(parts=2), LABELS)
    content = json.loads((folder / "manifest.json").read_text())
    for key in ("posterior", "normalization", "channel_mean", "channel_std"):
        del content[key]
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_a_store_without_the_newer_keys_draws_the_same_bits(store_folder):
    dataset = LatentDataset(old_store(store_folder))
    x, _ = dataset.draw(np.arange(4), np.arange(4), seed=5)
    moments = torch.from_numpy(stored_moments(parts=2)[np.array(LABELS) >= 0]).float()
    for number in range(4):
        key = seed_of(POSTERIOR, 5, number)
        mean, log_variance = moments[number, key & 1]
        noise = torch.empty(SHAPE).normal_(generator=torch.Generator().manual_seed(key))
        deviation = (log_variance * (0.5 / math.log(2))).exp2()
        assert torch.equal(x[number], (torch.addcmul(mean, deviation, noise) - SHIFT) * SCALE)
    described = describe_dataset(dataset)
    assert "normalization" not in described and "channel_mean" not in described


def test_the_config_s_key_goes_before_the_manifest(store_folder):
    folder = measured_store(store_folder, parts=2)
    asked = LatentDataset(folder, "scale")
    assert asked.normalization == Scaling(SCALE, SHIFT)
    assert describe_dataset(asked)["normalization"] == "scale"
    plain = measured_store(store_folder, parts=2, normalization="scale", name="plain")
    assert LatentDataset(plain).normalization == Scaling(SCALE, SHIFT)
    channels = LatentDataset(plain, "channels")
    assert channels.normalization == LatentDataset(folder).normalization != asked.normalization
    described = describe_dataset(channels)
    assert described["normalization"] == "channels" and len(described["channel_std"]) == 4
    assert json.loads(json.dumps(described)) == described | {"class_names": list(described["class_names"])}


def test_held_out_latents_are_normalised_as_those_of_training(store_folder):
    training = LatentDataset(measured_store(store_folder))
    other = {"channel_mean": (9.0,) * 4, "channel_std": (9.0,) * 4}
    held_out = measured_store(store_folder, name="held_out", **other)
    alone, fitted = LatentDataset(held_out), LatentDataset(held_out, trained_on=describe_dataset(training))
    assert alone.normalization == ChannelNorm((9.0,) * 4, (9.0,) * 4)
    assert fitted.normalization == training.normalization
    scaled = LatentDataset(held_out, trained_on=describe_dataset(LatentDataset(held_out, "scale")))
    assert scaled.normalization == Scaling(SCALE, SHIFT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"channel_mean": None},
            "no channel_mean, by which .* encode_latents.py command again, which measures",
        ),
        ({"channel_std": (1.0,) * 3}, "channel_std is not 4 numbers, one for each channel"),
        ({"channel_std": (1.0, 0.0, 1.0, 1.0)}, "channel_std of channel 1 is 0, .* data.normalization=scale"),
        ({"channel_mean": (math.inf,) * 4}, "channel_mean of channel 0 is inf"),
    ],
)
def test_statistics_that_are_no_good_are_one_line(store_folder, settings, message):
    folder = measured_store(store_folder, **settings)
    with pytest.raises(UserError, match=message) as caught:
        LatentDataset(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert LatentDataset(folder, "scale").normalization == Scaling(SCALE, SHIFT)


def encode(images: Path, out: Path, vae: Path, batch_size: int = 4) -> None:
    options = ["--image-size", "64", "--batch-size", str(batch_size), "--workers", "0"]
    assert encode_latents.main([str(images), str(out), "--vae", str(vae), *options]) == 0


@pytest.mark.parametrize("save", [save_tiny, save_dc, save_taef2], ids=["tiny", "dc", "taef2"])
def test_a_folder_is_encoded_once_a_mirror_and_measured(image_folder, tmp_path, save, capfd):
    images, vae = image_folder(7), save(tmp_path / "vae")
    write_broken(images / "ant" / "0000.png", "cut")
    encode(images, tmp_path / "out", vae)
    manifest = read_manifest(tmp_path / "out")
    assert not manifest.posterior and manifest.normalization == "channels" and manifest.skipped == 1
    moments = np.fromfile(tmp_path / "out" / "moments.bin", DTYPE).reshape(7, 2, 1, *manifest.latent_shape)
    values = np.moveaxis(moments[1:, :, 0].astype(np.float64), 2, 0).reshape(manifest.latent_shape[0], -1)
    np.testing.assert_allclose(manifest.channel_mean, values.mean(axis=1), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(manifest.channel_std, values.std(axis=1), rtol=1e-7)
    assert (moments[1:, 0] != moments[1:, 1]).any(axis=(1, 2, 3, 4)).all()
    assert "float16 moves the latents by" in capfd.readouterr().out
    assert set(manifest.float16_error) == {"mean_max", "mean_rms", "share_of_latents"}


def test_a_finished_store_from_before_is_measured_by_the_same_command(image_folder, vae_folder, tmp_path):
    images, out = image_folder(5), tmp_path / "out"
    encode(images, out, vae_folder)
    before = (out / "manifest.json").read_bytes()
    content = json.loads(before)
    assert len(content["channel_mean"]) == 4 and min(content["channel_std"]) > 0
    for key in ("posterior", "normalization", "channel_mean", "channel_std"):
        del content[key]
    (out / "manifest.json").write_text(json.dumps(content))
    stored = (out / "moments.bin").stat()
    encode(images, out, vae_folder)
    assert (out / "manifest.json").read_bytes() == before
    assert (out / "moments.bin").stat().st_mtime_ns == stored.st_mtime_ns
