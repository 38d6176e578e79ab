"""What samples are compared with: images, ADM's statistics, statistics written here, the cache."""

import contextlib
import json

import numpy as np
import pytest

from gspn_dit.errors import UserError
from gspn_dit.evaluation.image_sets import ArrayImages
from gspn_dit.evaluation.metrics import Moments
from gspn_dit.evaluation.references import check_reference, is_virtual, kept_numbers, no_covariance
from tests.evaluation.conftest import Pixels, random_images, score

SCORES = ("fid", "sfid", "precision", "recall", "kid")
ADM = "VIRTUAL_imagenet32_labeled.npz"


@pytest.fixture
def files(pixels, tmp_path, monkeypatch):
    """Samples, real images, the first half of these, and statistics in ADM's form that hold that half."""
    monkeypatch.chdir(tmp_path)
    real = random_images(60, 1)
    real[40:] = np.random.default_rng(3).integers(0, 256, real[40:].shape)  # unlike any sample
    samples = np.concatenate([real[:20] ^ 2, random_images(20, 0)])
    np.savez("s.npz", arr_0=samples)
    np.savez("all.npz", arr_0=real)
    np.savez("some.npz", arr_0=real[:30])
    pool, spatial = Pixels()(real).pool.numpy(), Pixels()(real).spatial.numpy()
    arrays = {"mu": pool.mean(axis=0), "sigma": np.cov(pool, rowvar=False)}
    arrays |= {"mu_s": spatial.mean(axis=0), "sigma_s": np.cov(spatial, rowvar=False)}
    np.savez(ADM, arr_0=real[:30], **arrays)


def scores(*arguments) -> dict:
    return score("s.npz", "--reference", *arguments, "out.json")


def test_adm_statistics_are_used_and_their_images_are_for_recall(files):
    adm, everything, some = scores(ADM), scores("all.npz"), scores("some.npz")
    for key in ("fid", "sfid"):
        assert adm[key] == pytest.approx(everything[key], rel=1e-6)
    for key in ("precision", "recall", "kid"):
        assert adm[key] == some[key]
    assert adm["fid"] != pytest.approx(some["fid"], rel=1e-3) and adm["recall"] != everything["recall"]
    assert adm["settings"]["reference_size"] == [32, 32]
    for key, count in (("precision", 40), ("recall", 60)):
        share = everything[key]
        assert 0 < share < 1
        assert everything["errors"][key] == pytest.approx(np.sqrt(share * (1 - share) / count), rel=1e-9)


@pytest.mark.parametrize("reference", [ADM, "all.npz"])
def test_saved_statistics_give_the_scores_of_what_they_are_of(reference, files, monkeypatch):
    first = scores(reference, "--save-reference", "own.npz")
    again = scores("own.npz")
    for key in SCORES:
        assert again[key] == pytest.approx(first[key], rel=1e-9), key
    assert again["settings"]["reference_kind"] == "statistics"
    assert again["settings"]["reference_size"] == [32, 32]
    assert again["settings"]["reference_images"] == first["settings"]["reference_images"]
    monkeypatch.setattr(Pixels, "identity", "other pixels")
    with pytest.raises(UserError, match=r"own.npz holds features of pixels, not of other pixels"):
        scores("own.npz")


def test_only_the_form_and_name_of_adms_statistics_make_them_adms():
    pool, spatial = (Moments(10_000, np.zeros(d), np.zeros((d, d))) for d in (2048, 2023))

    def virtual(name="VIRTUAL_imagenet256_labeled.npz", spatial=spatial, count=10_000, size=256):
        return is_virtual(name, pool, spatial, ArrayImages(np.empty((count, size, size, 0)), "images"))

    assert virtual() and virtual("VIRTUAL_imagenet512.npz", count=1_000, size=512)
    assert not virtual("imagenet256_labeled.npz") and not virtual("VIRTUAL_imagenet256_labeled.npz.npz")
    assert not virtual(spatial=None) and not virtual(spatial=pool)
    assert not virtual(count=9_999) and not virtual(size=512)
    assert not is_virtual("VIRTUAL_imagenet256_labeled.npz", pool, spatial, None)


def test_a_reference_is_computed_once_by_its_contents(files, own_cache, tmp_path, monkeypatch):
    first = scores("all.npz")
    (entry,) = own_cache.glob("reference-*.npz")
    (tmp_path / "all.npz").rename("moved.npz")
    with monkeypatch.context() as patch:
        patch.setattr("gspn_dit.evaluation.references.extract", None)
        moved = scores("moved.npz")
    for key in SCORES:
        assert moved[key] == pytest.approx(first[key], rel=1e-9), key
    assert scores("some.npz")["fid"] != first["fid"]
    with monkeypatch.context() as patch:
        patch.setattr(Pixels, "identity", "other pixels")
        scores("moved.npz")
    assert len(list(own_cache.glob("reference-*.npz"))) == 3  # one for each pair of images and network
    entry.write_bytes(entry.read_bytes()[:5000])  # damaged: made anew
    assert scores("moved.npz")["fid"] == first["fid"]


def test_a_reference_that_another_process_computes_is_waited_for(files, own_cache, monkeypatch):
    scores("all.npz")
    (entry,) = own_cache.glob("reference-*.npz")
    content = entry.read_bytes()
    entry.unlink()
    calls = []
    monkeypatch.setattr("gspn_dit.evaluation.references.extract", None)

    @contextlib.contextmanager
    def waited(path, wait):
        calls.append((path, wait))
        path.write_bytes(content)
        yield

    monkeypatch.setattr("gspn_dit.evaluation.references.claimed_file", waited)
    scores("all.npz")
    assert calls == [(entry, True)]


def test_ten_thousand_images_of_a_larger_reference_are_kept():
    assert np.array_equal(kept_numbers(10_000), np.arange(10_000))
    kept = kept_numbers(30_000)
    assert (
        len(np.unique(kept)) == 10_000
        and np.all(np.diff(kept) > 0)
        and np.array_equal(kept, kept_numbers(30_000))
    )
    # Spread over the whole set, whose images may be sorted by class.
    assert np.all(np.abs(np.histogram(kept, 3, (0, 30_000))[0] - 3333) < 200)


def about(**settings):
    return np.frombuffer(json.dumps(settings).encode(), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "mu is (3,) and sigma (40, 40); expected (d,) and (d, d)"),
        ({"mu": np.full(40, np.nan)}, "mu or sigma is not finite"),
        ({"sigma": np.diag([1.0] * 39 + [-1e-3])}, "no covariance: the variance of feature 39 is -0.001"),
        ({"sigma": np.eye(40) + np.eye(40, k=3) * 1e-3}, "not symmetric (0.001 at [0, 3], 0 at [3, 0])"),
        (
            {"sigma": np.ones((40, 40)) * 2 - np.eye(40)},
            "sigma is no covariance: it has negative eigenvalues",
        ),
        ({"mu_s": np.zeros(4), "sigma_s": -np.eye(4)}, "sigma_s is no covariance"),
        ({"about": about(count="many")}, "about is not as --save-reference writes it"),
        ({"sigma": np.full((40, 40), "x")}, "sigma is <U1; expected numbers"),
        ({"mu": np.array([None] * 40)}, "mu holds pickled Python objects"),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(4)}, "mu_s is (3,) and sigma_s (4, 4)"),
        ({"mu": np.zeros(39), "sigma": np.eye(39)}, "mu is of 39 features; pixels has 40"),
        ({"features": np.zeros((5, 39))}, "features is (5, 39); expected finite (k, 40)"),
        ({"features": np.full((5, 40), np.inf)}, "expected finite (k, 40)"),
        ({"about": about(network="other")}, "holds features of other, not of pixels"),
        ({"about": np.zeros(4, dtype=np.uint8)}, "about is not as --save-reference writes it"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 is float64 (3, 4, 4, 3); expected uint8"),
    ],
)
def test_statistics_that_cannot_be_are_told_in_one_line(arrays, message, files):
    np.savez("bad.npz", **{"mu": np.zeros(40), "sigma": np.eye(40), **arrays})
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        scores("bad.npz")
    assert message in str(caught.value)


@pytest.mark.parametrize("rounded", [np.float64, np.float32])
def test_covariances_that_rounding_alone_spoils_are_taken(rounded):
    """Of fewer samples than features: most eigenvalues are 0, and rounding makes many of them negative."""
    features = np.random.default_rng(0).normal(size=(20, 300)).astype(np.float32)
    covariance = np.cov(features, rowvar=False).astype(rounded).astype(np.float64)
    assert np.linalg.eigvalsh(covariance)[0] < 0
    assert no_covariance(covariance) is None
    assert no_covariance(np.zeros((3, 3))) is None


def test_damaged_statistics_are_told(files, tmp_path):
    content = bytearray((tmp_path / ADM).read_bytes())
    content[content.index(b"sigma.npy") + 2000] ^= 255
    (tmp_path / ADM).write_bytes(content)
    with pytest.raises(
        UserError, match=r"VIRTUAL_imagenet32_labeled.npz is damaged \(.*\): write or download it"
    ):
        check_reference(ADM)
