"""LatentDataset: the posterior draw and its keys, scale and shift, and folders that are no good."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from gspn_dit.errors import UserError
from gspn_dit.latents.dataset import LatentDataset

from .conftest import SCALE, SHIFT

SHAPE = (4, 2, 3)


def random_moments(images: int, log_variance: float | None = None) -> np.ndarray:
    """Moments (images, 2, 2, 4, 2, 3) with random means and either random or given log-variance."""
    moments = np.random.default_rng(0).standard_normal((images, 2, 2, *SHAPE))
    if log_variance is not None:
        moments[:, :, 1] = log_variance
    return moments


def draw_one(dataset: LatentDataset, index: int, number: int, seed: int = 0) -> torch.Tensor:
    """One latent (C, h, w)."""
    return dataset.draw(np.array([index]), np.array([number]), seed)[0][0]


def test_scale_and_shift_are_applied_once(store_folder):
    moments = random_moments(5, log_variance=-30).astype(np.float16).astype(np.float64)
    dataset = LatentDataset(store_folder(moments, [0, 1, 2, 1, 0]))
    x, y = dataset.draw(np.arange(5), np.arange(5), seed=0)
    means = torch.from_numpy((moments[:, :, 0] - SHIFT) * SCALE).float()  # (5, mirrors, C, h, w)
    distances = (x[:, None] - means).flatten(2).abs().amax(2)
    assert x.dtype == torch.float32 and (distances.amin(1) < 1e-5).all()
    assert y.dtype == torch.int64 and y.tolist() == [0, 1, 2, 1, 0]


def test_draws_have_the_moments_of_the_posterior(store_folder):
    moments = random_moments(1).astype(np.float16).astype(np.float64)
    dataset = LatentDataset(store_folder(moments[:, [0, 0]], [0]))
    n = 20_000
    x, _ = dataset.draw(np.zeros(n, dtype=np.int64), np.arange(n), seed=3)
    z = x.double() / SCALE + SHIFT
    mean, deviation = moments[0, 0, 0], np.exp(moments[0, 0, 1] / 2)
    # Five standard errors of a mean and of a deviation.
    assert (np.abs(z.mean(0).numpy() - mean) < 5 * deviation / np.sqrt(n)).all()
    assert (np.abs(z.std(0).numpy() / deviation - 1) < 5 / np.sqrt(2 * n)).all()


def test_a_draw_is_the_mean_and_the_deviation_times_the_noise(store_folder):
    moments = random_moments(2).astype(np.float16).astype(np.float64)
    moments[0], moments[:, 1] = (
        0,
        moments[:, 0],
    )  # image 0 is the noise itself, and no image has a mirror of its own
    dataset = LatentDataset(store_folder(moments, [0, 0]))
    noise, x = (draw_one(dataset, index, 5).double().numpy() / SCALE + SHIFT for index in (0, 1))
    expected = moments[1, 0, 0] + np.exp(moments[1, 0, 1] / 2) * noise
    np.testing.assert_allclose(x, expected, rtol=0, atol=2e-6)


def test_both_mirrors_come_half_the_time(store_folder):
    moments = random_moments(1, log_variance=-30)
    moments[0, 0, 0], moments[0, 1, 0] = -1, 1
    dataset = LatentDataset(store_folder(moments, [0]))
    x, _ = dataset.draw(np.zeros(2000, dtype=np.int64), np.arange(2000), seed=0)
    mirrored = (x > 0).flatten(1)
    assert (mirrored.all(1) | ~mirrored.any(1)).all()
    assert abs(mirrored[:, 0].double().mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)


def test_a_draw_depends_on_seed_and_image_number_alone(store_folder):
    dataset = LatentDataset(store_folder(random_moments(50), [0] * 50))
    indices, numbers = np.arange(50), np.arange(1000, 1050)
    x, _ = dataset.draw(indices, numbers, seed=1)
    order = np.random.default_rng(0).permutation(50)
    assert torch.equal(dataset.draw(indices[order], numbers[order], seed=1)[0], x[torch.from_numpy(order)])
    assert torch.equal(draw_one(dataset, 7, 1007, seed=1), x[7])
    assert not torch.equal(draw_one(dataset, 7, 1007, seed=2), x[7])
    assert not torch.equal(draw_one(dataset, 7, 1008, seed=1), x[7])


def test_threads_draw_the_same(store_folder):
    dataset = LatentDataset(store_folder(random_moments(64), [0] * 64))
    indices = np.arange(64)
    expected = [dataset.draw(indices, indices + step, seed=0)[0] for step in range(20)]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda step: dataset.draw(indices, indices + step, 0)[0], range(20)))
    assert all(torch.equal(left, right) for left, right in zip(expected, drawn, strict=True))


def test_every_place_of_a_large_batch_draws_as_it_does_alone(store_folder):
    dataset = LatentDataset(store_folder(random_moments(101), [0] * 101))
    x, _ = dataset.draw(np.arange(101), np.arange(101), seed=0)
    alone = torch.stack([draw_one(dataset, index, index) for index in range(101)])
    torch.testing.assert_close(x, alone, rtol=0, atol=1e-6)


def test_an_empty_batch_is_drawn(store_folder):
    x, y = LatentDataset(store_folder(random_moments(2), [0, 0])).draw(*2 * [np.arange(0)], seed=0)
    assert x.shape == (0, *SHAPE) and y.shape == (0,)


def test_moments_that_are_cut_while_they_are_read_are_named(store_folder):
    folder = store_folder(random_moments(5), [0] * 5)
    dataset = LatentDataset(folder)
    cut(folder / "moments.bin", 900)
    with pytest.raises(UserError, match=r"moments\.bin was cut while it was read"):
        dataset.draw(np.full(20, 4), np.arange(20), seed=0)


def test_skipped_images_are_never_drawn(store_folder):
    moments = np.zeros((5, 2, 2, *SHAPE))
    moments[:, :, 0] = np.arange(5).reshape(5, 1, 1, 1, 1)
    moments[:, :, 1] = -30
    dataset = LatentDataset(store_folder(moments, [2, -1, 0, -1, 1]))
    x, y = dataset.draw(np.arange(3), np.arange(3), seed=0)
    assert len(dataset) == 3 and y.tolist() == [2, 0, 1]
    assert (x.amax((1, 2, 3)) / SCALE + SHIFT).round().tolist() == [0, 2, 4]


def edit_manifest(folder, **changes) -> None:
    """Change, or with None remove, entries of the manifest."""
    content = json.loads((folder / "manifest.json").read_text()) | changes
    content = {name: value for name, value in content.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(content))


def cut(path, size: int) -> None:
    """Keep the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:size])


DAMAGES = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "latents has no readable manifest.json"),
    "manifest cut": (lambda f: cut(f / "manifest.json", 40), "no readable manifest.json"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), "is not a manifest of latents"),
    "foreign manifest": (lambda f: edit_manifest(f, format="other"), "is not a manifest of latents"),
    "version": (lambda f: edit_manifest(f, version=2), "of version 2, this code reads version 1"),
    "field missing": (lambda f: edit_manifest(f, scale=None), "is damaged: missing key 'scale'"),
    "field unknown": (lambda f: edit_manifest(f, colour="red"), "is damaged: unknown key 'colour'"),
    "shape": (lambda f: edit_manifest(f, latent_shape=[4, 2]), "latent_shape: expected a list of 3"),
    "negative": (lambda f: edit_manifest(f, latent_shape=[4, -2, 3]), "latent_shape must be counts"),
    "type": (lambda f: edit_manifest(f, scale="big"), "scale: expected a number, got 'big'"),
    "names": (lambda f: edit_manifest(f, class_names=7), "class_names: expected a list"),
    "unfinished": (lambda f: edit_manifest(f, complete=False), "unfinished: run the same encode_latents.py"),
    "no moments": (lambda f: (f / "moments.bin").unlink(), "moments.bin cannot be read"),
    "moments cut": (lambda f: cut(f / "moments.bin", 100), "moments.bin has 100 bytes, expected 960"),
    "other shape": (lambda f: edit_manifest(f, latent_shape=[4, 4, 4]), "moments.bin has 960 bytes"),
    "no labels": (lambda f: (f / "labels.npy").unlink(), "labels.npy cannot be read"),
    "labels cut": (lambda f: cut(f / "labels.npy", 140), "labels.npy cannot be read"),
    "labels of another set": (lambda f: np.save(f / "labels.npy", np.arange(9)), "labels.npy does not fit"),
    "label beyond classes": (lambda f: edit_manifest(f, class_names=["a"]), "labels.npy does not fit"),
    "skipped not told": (lambda f: edit_manifest(f, skipped=1), "labels.npy does not fit"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line_that_names_the_file(store_folder, damage):
    folder = store_folder(random_moments(5), [0, 1, 2, 1, 0])
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        LatentDataset(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    np.save(tmp_path / "latents.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"latents.npy is a .npy, one array of numpy: expected a folder"):
        LatentDataset(tmp_path / "latents.npy")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="missing does not exist: expected a folder that encode_latents"):
        LatentDataset(tmp_path / "missing")
