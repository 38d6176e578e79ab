"""The whole path through a real InceptionV3 of torch-fidelity's architecture, with weights made here."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from gspn_dit.evaluation import metrics
from gspn_dit.evaluation.extractors import PUBLISHED_HASH, Inception
from gspn_dit.evaluation.features import extract
from gspn_dit.evaluation.image_sets import open_images
from tests.evaluation import plain
from tests.evaluation.conftest import random_images, score
from tests.training.test_processes import accelerate_launch

SCORES = ("fid", "sfid", "is", "precision", "recall", "kid")


@pytest.fixture(scope="module")
def network(inception_weights) -> Inception:
    return Inception(inception_weights, "cpu")


@pytest.fixture(scope="module")
def theirs(inception_weights):
    """torch-fidelity's own extractor of the same weights: images (n, H, W, 3) to pool, map, logits, float64."""
    extractor = FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits"], feature_extractor_weights_path=str(inception_weights)
    )
    maps: list[torch.Tensor] = []
    extractor.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: maps.append(output))

    def features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pool, logits = extractor(torch.from_numpy(images).permute(0, 3, 1, 2))
        spatial = maps.pop()[:, :7].numpy().transpose(0, 2, 3, 1)  # (n, 17, 17, 7)
        unbiased = logits - extractor.fc.bias
        return tuple(part.astype(np.float64) for part in (pool.numpy(), spatial, unbiased.numpy()))

    return features


def save_folder(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def test_features_are_torch_fidelitys_the_map_channel_last_the_logits_without_bias(network, theirs):
    images = random_images(3, 0)
    pool, spatial, logits = theirs(images)
    features = network(images)
    np.testing.assert_allclose(features.pool, pool, rtol=1e-6)
    np.testing.assert_allclose(features.logits, logits, rtol=1e-4, atol=1e-4)
    assert spatial.shape == (3, 17, 17, 7) and features.spatial.shape == (3, 2023)
    for y, x, channel in ((0, 0, 6), (3, 16, 2), (16, 16, 0)):
        assert np.array_equal(features.spatial[:, (y * 17 + x) * 7 + channel], spatial[:, y, x, channel])
    # Else the comparisons of this file would be of nothing.
    assert min(part.std(axis=0).mean() for part in (pool, spatial, logits)) > 0.01
    assert not network.published and len(PUBLISHED_HASH) == 64


def test_features_of_an_image_do_not_depend_on_its_batch(network):
    images = random_images(3, 0)
    together, alone = network(images), [network(image[None]) for image in images]
    for name in ("pool", "spatial", "logits"):
        one_by_one = torch.cat([getattr(features, name) for features in alone])
        torch.testing.assert_close(one_by_one, getattr(together, name), rtol=1e-3, atol=1e-4)


def test_convolutions_are_in_full_precision(network):
    seen = []
    handle = network.network.Mixed_6d.register_forward_hook(
        lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
    )
    before = torch.backends.cudnn.allow_tf32
    try:
        network(random_images(1, 0))
    finally:
        handle.remove()
    assert seen == [False] and torch.backends.cudnn.allow_tf32 == before


def frechet_of_few(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of the Gaussians of few rows: tr (A B)^(1/2) is the nuclear norm of X Y^T, both centred."""
    x, y = (rows.reshape(len(rows), -1) for rows in (x, y))
    shift = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (x, y))
    return float(shift @ shift + (x**2).sum() + (y**2).sum() - 2 * np.linalg.norm(x @ y.T, "nuc"))


@pytest.fixture
def images_and_options(inception_weights, own_cache, tmp_path):
    """samples.npz (9 images) and real.npz (10), and the options that score one against the other."""
    samples, real = random_images(9, 0), random_images(10, 1)
    samples[:5] = real[:5] ^ 3  # alike; the others are far apart, so that precision is 5/9 and recall 5/10
    samples[5:] //= 8
    real[5:] |= 192
    np.savez(tmp_path / "samples.npz", arr_0=samples)
    np.savez(tmp_path / "real.npz", arr_0=real)
    return samples, real, ("--reference", tmp_path / "real.npz", "--inception-weights", inception_weights)


def test_the_whole_path_gives_the_scores_of_plain_implementations(
    images_and_options, theirs, tmp_path, capsys
):
    samples, real, options = images_and_options
    first = score(tmp_path / "samples.npz", *options, "--batch-size", 9, tmp_path / "1")
    (pool, spatial, logits), (real_pool, real_spatial, _) = theirs(samples), theirs(real)
    assert first["fid"] == pytest.approx(frechet_of_few(pool, real_pool), rel=1e-4)
    assert first["sfid"] == pytest.approx(frechet_of_few(spatial, real_spatial), rel=1e-4)
    assert first["is"] == pytest.approx(plain.inception_score(logits, 5000), rel=1e-5) and first["is"] > 1.3
    assert plain.precision_recall(pool, real_pool) == (5 / 9, 5 / 10)
    assert (first["precision"], first["recall"]) == (5 / 9, 5 / 10)
    kid, _ = plain.kernel_distance(pool, real_pool, metrics.KID_SUBSETS, 9, metrics.KID_SEED)
    assert first["kid"] == pytest.approx(kid, rel=1e-4)
    for reason in ("another hash", "9 samples", "VIRTUAL", "labels is not stated", "weights are averaged"):
        assert any(reason in text for text in first["reasons"]), reason
    printed = capsys.readouterr().out
    assert "not comparable with published scores" in printed and "features of the samples: " in printed


@pytest.mark.slow
def test_a_folder_in_other_batches_has_the_scores_of_a_file(images_and_options, tmp_path):
    samples, _, options = images_and_options
    first = score(tmp_path / "samples.npz", *options, "--batch-size", 9, tmp_path / "1")
    folder = save_folder(tmp_path / "samples", samples)
    stated = ("--labels", "random", "--weights", "ema")
    again = score(folder, *options, *stated, "--batch-size", 2, tmp_path / "2")
    for key in SCORES:
        assert again[key] == pytest.approx(first[key], rel=1e-3), key
    assert not any("stated" in reason for reason in again["reasons"])


def test_grey_images_and_any_size(network, accelerator, tmp_path):
    grey = random_images(3, 2)[..., 0]
    np.savez(tmp_path / "grey.npz", arr_0=grey)
    np.savez(tmp_path / "rgb.npz", arr_0=np.repeat(grey[..., None], 3, axis=3))
    paths = (tmp_path / "grey.npz", tmp_path / "rgb.npz", save_folder(tmp_path / "grey", grey))
    of_npz, of_rgb, of_folder = (
        extract(open_images(path), network, accelerator, batch_size=3).features for path in paths
    )
    assert np.array_equal(of_npz, of_rgb) and np.array_equal(of_folder, of_rgb)
    for height, width in ((17, 23), (299, 299), (320, 256)):
        images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        assert network(images).pool.shape == (1, 2048)


@pytest.mark.slow
def test_two_processes_score_as_one_does(inception_weights, own_cache, tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=random_images(11, 0))
    np.savez(tmp_path / "r.npz", arr_0=random_images(9, 1))
    common = [tmp_path / "s.npz", "--reference", tmp_path / "r.npz", "--inception-weights", inception_weights]
    one = score(*common, "--batch-size", 2, tmp_path / "one.json")
    for file in own_cache.iterdir():
        file.unlink()
    arguments = [*map(str, common), "--batch-size", "2", "--json", str(tmp_path / "two.json")]
    accelerate_launch("eval_fid.py", *arguments)
    two = json.loads((tmp_path / "two.json").read_text())
    assert (one["settings"]["processes"], two["settings"]["processes"]) == (1, 2)
    for key in SCORES:
        assert two[key] == pytest.approx(one[key], rel=1e-6), key
