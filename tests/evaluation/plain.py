"""The metrics again, written straight from their definitions: slow, whole matrices, float64."""

import numpy as np
import scipy.linalg
import scipy.special
import scipy.stats
from scipy.spatial.distance import cdist


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """With scipy's square root of a matrix, made symmetric first so that it exists."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = real_root(a)
    shift = x.mean(axis=0) - y.mean(axis=0)
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2 * np.trace(real_root(root @ b @ root)))


def real_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = scipy.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def inception_score(logits: np.ndarray, split: int) -> float:
    scores = []
    for start in range(0, len(logits), split):
        p = scipy.special.softmax(logits[start : start + split].astype(np.float64), axis=1)
        scores.append(np.exp(np.mean([scipy.stats.entropy(row, p.mean(axis=0)) for row in p])))
    return float(np.mean(scores))


def precision_recall(samples: np.ndarray, references: np.ndarray, k: int = 3) -> tuple[float, float]:
    def inside(points, manifold):
        reach = np.sort(cdist(manifold, manifold), axis=1)[:, k]  # column 0 is the point itself
        return (cdist(points, manifold) <= reach).any(axis=1).mean()

    samples, references = samples.astype(np.float64), references.astype(np.float64)
    return inside(samples, references), inside(references, samples)


def kernel_distance(x: np.ndarray, y: np.ndarray, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Unbiased MMD^2 with the kernel (x.y / d + 1)^3, over random subsets."""
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        a = x[rng.choice(len(x), size, replace=False)].astype(np.float64)
        b = y[rng.choice(len(y), size, replace=False)].astype(np.float64)
        aa, bb, ab = ((p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        pairs = size * (size - 1)
        values.append((aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / pairs - 2 * ab.mean())
    return float(np.mean(values)), float(np.std(values))
