"""How far a score would move with other samples, and what FID would be with infinitely many."""

import numpy as np
import torch

from gspn_dit.evaluation.metrics import ROWS, Moments, RunningMoments, frechet_distance, runs
from gspn_dit.random import ORDER, generator

RESAMPLINGS = 100
"""Of the inception score; FID's number is the caller's, as each costs a covariance."""
COUNTS = 8
"""Sample counts that FID is extrapolated from, from a quarter of the samples to all."""


def resampled(count: int, key: int) -> torch.Tensor:
    """How often each of `count` samples is drawn when `count` are, with replacement; (count,) float64."""
    draws = torch.randint(count, (count,), generator=generator(ORDER, key, count))
    return torch.bincount(draws, minlength=count).double()


def weighted_moments(features: np.ndarray, weights: torch.Tensor) -> Moments:
    """Moments of features (n, d) in which row i is there `weights[i]` times."""
    count = int(weights.sum())
    mean = torch.zeros(features.shape[1], dtype=torch.float64)
    for start in range(0, len(features), ROWS):
        mean += weights[start : start + ROWS] @ torch.as_tensor(features[start : start + ROWS]).double()
    mean /= count
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for start in range(0, len(features), ROWS):
        rows = torch.as_tensor(features[start : start + ROWS]).double() - mean
        rows *= weights[start : start + ROWS, None].sqrt()
        scatter += rows.T @ rows
    return Moments(count, mean.numpy(), scatter.numpy() / (count - 1))


def frechet_error(features: np.ndarray, reference: Moments, resamplings: int) -> float:
    """Bootstrap standard error of FID: its deviation over samples drawn anew from the samples."""
    weights = (resampled(len(features), key) for key in range(resamplings))
    return float(
        np.std([frechet_distance(weighted_moments(features, w), reference) for w in weights], ddof=1)
    )


def inception_score_error(logits: np.ndarray) -> float:
    """Bootstrap standard error of the inception score, each run of 5,000 drawn anew from itself."""
    scores = []
    for log_p in runs(logits):
        p = log_p.exp()
        weights = torch.stack([resampled(len(p), key) for key in range(RESAMPLINGS)]) / len(p)  # (R, m)
        entropy = weights @ torch.special.entr(p).sum(dim=1)  # (R,)
        marginal = torch.special.entr(weights @ p).sum(dim=1)  # (R,)
        scores.append((marginal - entropy).exp())
    return float(torch.stack(scores).mean(dim=0).std())


def share_error(share: float, count: int) -> float:
    """Standard error of a share of `count` points: what a bootstrap over the points tends to."""
    return float(np.sqrt(share * (1 - share) / count))


def frechet_at_infinity(features: np.ndarray, reference: Moments) -> float:
    """FID with infinitely many samples: its value on a line through FID over 1 / count (arXiv 1911.07023).

    The counts rise from a quarter of the samples, in a keyed order, to all. ValueError where a quarter are
    fewer than the features: the bias is no line there.
    """
    count, width = features.shape
    if count < 4 * width:
        raise ValueError(f"features holds {count} samples; expected at least {4 * width}, 4 for each feature")
    order = torch.randperm(count, generator=generator(ORDER, 0, count)).numpy()
    ends = np.linspace(count / 4, count, COUNTS).astype(int)
    running, values, start = RunningMoments(width), [], 0
    for end in ends:
        for first in range(start, end, ROWS):
            running.update(features[order[first : min(first + ROWS, end)]])
        values.append(frechet_distance(running.result(), reference))
        start = end
    _, intercept = np.polyfit(1 / ends, values, 1)
    return float(intercept)
