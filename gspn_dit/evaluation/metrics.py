"""The metrics of the ADM suite, and KID, as functions of features: no files, no networks.

Features are arrays (n, d), of float32 as a rule. All arithmetic is float64, one tile at a time: 50,000
samples and 10,000 references of 2048 features take less than 2 GiB beyond the features themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

ROWS = 4096
"""Rows of a tile; two tiles of 2048 float64 features and their 4096 x 4096 distances take 256 MiB."""
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
KID_SEED = 2020
"""torch-fidelity's defaults, so that its KID of the same features is ours."""
IS_SPLIT = 5000
"""ADM's: the inception score is the mean over runs of 5,000 samples, in the order they come in."""
NEIGHBOUR = 3


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and unbiased covariance (d, d), float64, of `count` features."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray


class RunningMoments:
    """Moments of features that come in batches, none of which is kept: Chan et al., 1979, eq. 2.1."""

    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.scatter = torch.zeros(features, features, dtype=torch.float64)

    def update(self, batch: np.ndarray | torch.Tensor) -> None:
        """Add features (n, d) of any float type."""
        for rows in torch.as_tensor(batch).split(ROWS):
            rows = rows.double()  # (n, d)
            mean = rows.mean(dim=0)
            step = mean - self.mean
            total = self.count + len(rows)
            rows = rows - mean
            self.scatter += rows.T @ rows
            self.scatter += torch.outer(step, step) * (self.count * len(rows) / total)
            self.mean += step * (len(rows) / total)
            self.count = total

    def result(self) -> Moments:
        """The moments so far; ValueError for fewer than two features, which have no covariance."""
        if self.count < 2:
            raise ValueError(f"count is {self.count}; expected at least 2 features for a covariance")
        return Moments(self.count, self.mean.numpy().copy(), self.scatter.numpy() / (self.count - 1))


def moments(features: np.ndarray) -> Moments:
    """The moments of features (n, d)."""
    running = RunningMoments(features.shape[1])
    running.update(features)
    return running.result()


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)): FID and sFID (arXiv 1706.08500, eq. 6).

    With A = F F^T, the nonzero eigenvalues of A B are those of the symmetric F^T B F: they are real, and
    tr (A B)^(1/2) is the sum of their roots, with no root of an unsymmetric or singular matrix.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"b has {len(b.mean)} features; expected {len(a.mean)} as a has")
    factor = root_factor(torch.from_numpy(a.covariance))  # (d, r)
    product = factor.T @ torch.from_numpy(b.covariance) @ factor  # (r, r)
    roots = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt()
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots.sum()
    return max(0.0, float(distance))  # rounding alone makes it negative


def root_factor(covariance: torch.Tensor) -> torch.Tensor:
    """F (d, r) with F F^T = covariance, of rank r: what rounding cannot tell from zero is left out."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    kept = values > rounding
    return vectors[:, kept] * values[kept].sqrt()


def inception_score(logits: np.ndarray) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)): its mean over runs of 5,000 samples in order, and their deviation.

    Args:
        logits: (n, classes), of Inception without the bias of its last layer. arXiv 1606.03498, section 4.
    """
    scores = [np.exp(information(part)) for part in runs(logits)]
    return float(np.mean(scores)), float(np.std(scores))


def runs(logits: np.ndarray) -> Iterator[torch.Tensor]:
    """log-probabilities (m, classes) float64 of each run of 5,000 samples; the last may be shorter."""
    for start in range(0, len(logits), IS_SPLIT):
        yield torch.as_tensor(logits[start : start + IS_SPLIT]).double().log_softmax(dim=1)


def information(log_p: torch.Tensor) -> float:
    """Mean KL divergence of each row's distribution from the mean distribution, in nats."""
    p = log_p.exp()
    marginal = p.mean(dim=0)
    return float((torch.special.entr(marginal).sum() - torch.special.entr(p).sum(dim=1).mean()).clamp(min=0))


def precision_recall(
    samples: np.ndarray, references: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """The share of samples within the references' manifold, and the reverse: arXiv 1904.06991, eq. 1.

    A point is in a manifold when it is at most as far from one of its points as that one's third neighbour.
    ADM's own distances are in half precision where these are finite; here they are float64.
    """
    if min(len(samples), len(references)) <= NEIGHBOUR:
        counts = f"{len(samples)} samples and {len(references)} references"
        raise ValueError(f"{counts} are too few: precision and recall need {NEIGHBOUR + 1} of each")
    samples_, references_ = Tiles(samples, device), Tiles(references, device)
    precision = covered(samples_, references_, radii(references_))
    recall = covered(references_, samples_, radii(samples_))
    return float(precision.mean()), float(recall.mean())


class Tiles:
    """Features by tiles of float64, with squared norms, on the device that computes."""

    def __init__(self, features: np.ndarray, device: torch.device | str) -> None:
        self.features = features
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.features), ROWS):
            yield torch.as_tensor(self.features[start : start + ROWS]).to(self.device).double()  # (m, d)


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a_i - b_j|^2, (n, m). What rounding cannot tell from zero is zero: a copy is at no distance."""
    norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)  # (n, m)
    distances = torch.addmm(norms, a, b.T, alpha=-2)
    return distances.masked_fill_(distances < 1e-13 * norms, 0)


def radii(points: Tiles) -> torch.Tensor:
    """Squared distance of each point to its third neighbour among the others, (n,)."""
    result = []
    for a in points:
        nearest = a.new_empty(len(a), 0)
        for b in points:
            distances = squared_distances(a, b)
            smallest = distances.topk(min(NEIGHBOUR + 1, len(b)), largest=False).values
            nearest = torch.cat([nearest, smallest], dim=1)
            nearest = nearest.topk(min(NEIGHBOUR + 1, nearest.shape[1]), largest=False).values
        result.append(nearest.amax(dim=1))  # the point itself, at distance 0, is the first of the four
    return torch.cat(result)


def covered(points: Tiles, manifold: Tiles, reach: torch.Tensor) -> torch.Tensor:
    """Which points lie within reach of a point of the manifold; (n,) float64 of 0 and 1."""
    result = []
    for a in points:
        inside = torch.zeros(len(a), dtype=torch.bool, device=a.device)
        for b, limit in zip(manifold, reach.split(ROWS), strict=True):
            inside |= (squared_distances(a, b) <= limit).any(dim=1)
        result.append(inside)
    return torch.cat(result).double()


def kernel_distance(samples: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """KID (arXiv 1801.01401) as torch-fidelity has it: mean and deviation over 100 subsets of 1,000.

    Its kernel, estimator, subsets and seed, in float64. With fewer samples or references, subsets shrink.
    """
    # Speed: torch-fidelity takes a second, and the demo's FID does without it.
    from torch_fidelity.metric_kid import kernel_mmd

    size = min(KID_SUBSET_SIZE, len(samples), len(references))
    if size < 2:
        raise ValueError(
            f"{len(samples)} samples and {len(references)} references are too few: KID needs 2 of each"
        )
    rng = np.random.RandomState(KID_SEED)
    values = []
    for _ in range(KID_SUBSETS):
        x = samples[rng.choice(len(samples), size, replace=False)].astype(np.float64)
        y = references[rng.choice(len(references), size, replace=False)].astype(np.float64)
        values.append(kernel_mmd(x, y))
    return float(np.mean(values)), float(np.std(values))
