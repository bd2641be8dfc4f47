"""Spectral clustering of a symmetric affinity matrix.

Normalised Laplacian, eigenvectors of its smallest eigenvalues, k-means on their rows. Source: Shi
and Malik, *Normalized cuts and image segmentation*, 2000; von Luxburg, *A tutorial on spectral
clustering*, 2007.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from moeopt.grace.data import FloatArray, IntArray

#: k-means is begun so many times, the least distortion is kept; most rounds of one.
RESTARTS, ROUNDS = 10, 100
#: An expert that is never used still has neighbours: this share of the mean affinity.
_FLOOR = 1e-6


def spectral_clusters(affinity: FloatArray, count: int, seed: int) -> IntArray:
    """Divide n objects into clusters of any size.

    Parameters
    ----------
    affinity : float array, shape (n, n)
        Symmetric, not negative; the diagonal is not looked at.
    count : int
        At least 1, at most n.
    seed : int
        Of k-means.

    Returns
    -------
    int array, shape (n,)
        Cluster of each object, 0 to count − 1. A cluster may be empty.
    """
    n = len(affinity)
    if count == n:
        return np.arange(n)
    close = affinity + _FLOOR * max(float(affinity.mean()), np.finfo(np.float64).tiny)
    np.fill_diagonal(close, 0.0)
    root = np.sqrt(close.sum(axis=1))
    laplacian = np.eye(n) - close / np.outer(root, root)
    _, vectors = eigh(laplacian, subset_by_index=[0, count - 1])
    rows = vectors / root[:, None]
    rows /= np.abs(rows).max()
    random = np.random.default_rng(seed)
    runs = [_k_means(rows, count, random) for _ in range(RESTARTS)]
    return min(runs, key=lambda run: run[1])[0]


def _k_means(rows: FloatArray, count: int, random: np.random.Generator) -> tuple[IntArray, float]:
    """Run Lloyd's algorithm from k-means++ seeds; return clusters and distortion."""
    centres = rows[random.integers(len(rows))][None]
    while len(centres) < count:
        distance = _squares(rows, centres).min(axis=1)
        total = float(distance.sum())
        chance = distance / total if total > 0 else None
        centres = np.vstack([centres, rows[random.choice(len(rows), p=chance)]])
    label = _squares(rows, centres).argmin(axis=1)
    for _ in range(ROUNDS):
        for c in range(count):
            if (label == c).any():
                centres[c] = rows[label == c].mean(axis=0)
        after = _squares(rows, centres).argmin(axis=1)
        if (after == label).all():
            break
        label = after
    return label, float(_squares(rows, centres).min(axis=1).sum())


def _squares(rows: FloatArray, centres: FloatArray) -> FloatArray:
    """Squared distances, shape (rows, centres)."""
    return np.asarray(((rows[:, None] - centres[None]) ** 2).sum(axis=2))
