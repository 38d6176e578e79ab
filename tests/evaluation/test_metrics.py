"""Each metric against a plain implementation, torch-fidelity's own functions, and known answers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from gspn_dit.evaluation import metrics, uncertainty
from gspn_dit.evaluation.metrics import (
    Moments,
    RunningMoments,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
)
from tests.evaluation import plain


def features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features (n, d) float32."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 20)), rng.normal(size=(250, 20)) * 1.3 + 0.2
    if name == "rank-deficient":
        x, y = x @ np.diag([1.0] * 7 + [0.0] * 13), y @ np.diag([0.0] * 10 + [1.0] * 10)
    if name == "duplicated points":
        x, y = np.repeat(x[:60], 5, axis=0), np.concatenate([x[:50], np.repeat(y[:40], 5, axis=0)])
    if name == "one class":
        x, y = x * 1e-3 + 5, y
    if name == "steep spectrum":  # as Inception's features have: small variances add up
        x, y = x * np.logspace(0, -3, 20), y * np.logspace(0, -3, 20)
    if name == "fewer samples than dimensions":
        x, y = x[:12], y[:9]
    return x.astype(np.float32), y.astype(np.float32)


SETS = [
    "random",
    "rank-deficient",
    "duplicated points",
    "one class",
    "steep spectrum",
    "fewer samples than dimensions",
]


@pytest.mark.parametrize("name", SETS)
def test_frechet_distance(name):
    x, y = features(name)
    expected = plain.frechet(x, y)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-6)
    theirs = [{"mu": m.mean, "sigma": m.covariance} for m in (moments(x), moments(y))]
    fidelity = fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"]
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(fidelity, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("name", SETS)
def test_frechet_distance_to_itself_and_to_a_shifted_copy(name):
    x, _ = (part.astype(np.float64) for part in features(name))
    shift = np.linspace(-1, 2, x.shape[1])
    assert 0 <= frechet_distance(moments(x), moments(x)) < 1e-6
    assert frechet_distance(moments(x), moments(x + shift)) == pytest.approx(shift @ shift, rel=1e-6)


def test_frechet_distance_of_other_features_is_refused():
    with pytest.raises(ValueError, match="b has 3 features; expected 2"):
        frechet_distance(moments(np.eye(2)), moments(np.eye(3)))


@pytest.mark.parametrize("size", [1, 7, 300])
def test_running_moments_are_those_of_the_whole(size, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 64)
    x = features("random")[0] + 1000  # far from zero, where sums of squares would lose the covariance
    running = RunningMoments(x.shape[1])
    for start in range(0, len(x), size):
        running.update(x[start : start + size])
    result = running.result()
    np.testing.assert_allclose(result.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        result.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-11
    )
    with pytest.raises(ValueError, match="at least 2"):
        RunningMoments(3).result()


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_extractors_score_in_runs_in_order(scale, monkeypatch):
    monkeypatch.setattr(metrics, "IS_SPLIT", 100)
    logits = (np.random.default_rng(1).normal(size=(300, 12)) * scale).astype(np.float32)
    assert inception_score(logits)[0] == pytest.approx(plain.inception_score(logits, 100), rel=1e-6)
    assert inception_score(logits[:250])[0] == pytest.approx(
        plain.inception_score(logits[:250], 100), rel=1e-6
    )
    fidelity = isc_features_to_metric(torch.from_numpy(logits), splits=3, shuffle=False)
    score, deviation = inception_score(logits)
    assert score == pytest.approx(fidelity["inception_score_mean"], rel=1e-6)
    assert deviation == pytest.approx(fidelity["inception_score_std"], rel=1e-6, abs=1e-9)


def test_sizes_of_runs_and_subsets_are_adms_and_torch_fidelitys(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSETS", 3)
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(6_000, 4)).cumsum(axis=0) / 50  # the order matters
    assert inception_score(logits)[0] == pytest.approx(plain.inception_score(logits, 5000), rel=1e-6)
    x, y = rng.normal(size=(1500, 4)), rng.normal(size=(1200, 4)) + 0.3
    fidelity = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), kid_subsets=3, verbose=False)
    assert kernel_distance(x, y)[0] == pytest.approx(fidelity["kernel_inception_distance_mean"], rel=1e-6)


def test_extractors_score_of_one_class_is_one_and_of_twelve_certain_ones_twelve():
    certain = np.eye(12, dtype=np.float32) * 1e4
    assert inception_score(np.tile(certain[:1], (50, 1)))[0] == pytest.approx(1, rel=1e-12)
    assert inception_score(np.tile(certain, (5, 1)))[0] == pytest.approx(12, rel=1e-12)


@pytest.mark.parametrize("rows", [50, 4096])
@pytest.mark.parametrize("name", SETS)
def test_precision_and_recall(name, rows, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", rows)
    x, y = features(name)
    assert precision_recall(x, y) == pytest.approx(plain.precision_recall(x, y), rel=1e-6)
    if name == "random":  # torch-fidelity's float32 distances cannot tell duplicates
        fidelity = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y))
        assert precision_recall(x, y) == pytest.approx(fidelity, rel=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_identical_sets_have_precision_and_recall_one(name):
    x, _ = features(name)
    assert precision_recall(x, x.copy()) == (1, 1)


def test_a_copy_is_at_no_distance_and_a_neighbour_is_at_some():
    x = torch.from_numpy(features("random")[0]).double() + 100  # where norms and products round differently
    assert metrics.squared_distances(x, x.clone()).diagonal().abs().max() == 0
    near = metrics.squared_distances(x, x + 1e-3).diagonal()
    torch.testing.assert_close(near, torch.full_like(near, 20e-6), rtol=1e-4, atol=0)


def test_precision_and_recall_are_not_exchanged():
    """Samples of one mode of two: all look real, half of what is real is missing."""
    rng = np.random.default_rng(2)
    mode, other = rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 100
    precision, recall = precision_recall(rng.permutation(mode), np.concatenate([mode, other]))
    assert precision == 1 and recall == 0.5
    with pytest.raises(ValueError, match="3 samples and 9 references are too few"):
        precision_recall(mode[:3], mode[:9])


@pytest.mark.parametrize("name", SETS)
def test_kernel_distance(name, monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSET_SIZE", 80)
    x, y = features(name)
    size = min(80, len(x), len(y))
    expected = plain.kernel_distance(x, y, metrics.KID_SUBSETS, size, metrics.KID_SEED)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    fidelity = kid_features_to_metric(
        torch.from_numpy(x.astype(np.float64)),
        torch.from_numpy(y.astype(np.float64)),
        kid_subset_size=size,
        verbose=False,
    )
    assert kernel_distance(x, y)[0] == pytest.approx(fidelity["kernel_inception_distance_mean"], rel=1e-6)


def test_bootstrap_error_of_fid_is_the_deviation_over_fresh_samples():
    rng = np.random.default_rng(3)
    reference = Moments(10_000, np.zeros(4), np.eye(4))
    draws = [rng.normal(size=(400, 4)) + 0.5 for _ in range(60)]
    spread = np.std([frechet_distance(moments(x), reference) for x in draws], ddof=1)
    errors = [uncertainty.frechet_error(x, reference, 40) for x in draws[:5]]
    assert np.mean(errors) == pytest.approx(spread, rel=0.25)
    times = (uncertainty.resampled(400, key).int().numpy() for key in range(2))
    a, b = (frechet_distance(moments(np.repeat(draws[0], n, axis=0)), reference) for n in times)
    assert uncertainty.frechet_error(draws[0], reference, 2) == pytest.approx(abs(a - b) / 2**0.5, rel=1e-6)


def test_bootstrap_error_of_the_inception_score_is_the_deviation_over_fresh_samples():
    rng = np.random.default_rng(4)
    draws = [rng.normal(size=(500, 6)) * 3 for _ in range(60)]
    spread = np.std([inception_score(x)[0] for x in draws], ddof=1)
    assert np.mean([uncertainty.inception_score_error(x) for x in draws[:5]]) == pytest.approx(
        spread, rel=0.25
    )


def test_weights_of_one_give_the_plain_moments(monkeypatch):
    monkeypatch.setattr(uncertainty, "ROWS", 7)
    x = features("random")[0]
    weights = torch.ones(len(x), dtype=torch.float64)
    weights[:5] = torch.tensor([0, 3, 2, 0, 0])
    result = uncertainty.weighted_moments(x, weights)
    expected = moments(np.repeat(x, weights.int().numpy(), axis=0))
    np.testing.assert_allclose(result.covariance, expected.covariance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.mean, expected.mean, rtol=1e-9, atol=1e-12)


def test_fid_at_infinity_takes_the_bias_away():
    """Samples of the reference's own distribution: FID of 800 is biased by far more than what is left."""
    rng = np.random.default_rng(5)
    reference = Moments(10**9, np.zeros(30), np.eye(30))
    x = rng.normal(size=(800, 30))
    biased = frechet_distance(moments(x), reference)
    assert abs(uncertainty.frechet_at_infinity(x, reference)) < 0.2 * biased
    with pytest.raises(ValueError, match="expected at least 120, 4 for each feature"):
        uncertainty.frechet_at_infinity(x[:100], reference)


@pytest.mark.slow
def test_memory_of_fifty_thousand_samples_and_ten_thousand_references():
    """In a process of its own, whose peak is that of the scores."""
    command = [sys.executable, "-m", "tests.evaluation.peak_memory", "50000", "10000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert json.loads(done.stdout.splitlines()[-1])["peak_gib"] < 3
