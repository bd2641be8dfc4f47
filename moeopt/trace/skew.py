"""How uneven a routing trace is: loads, pairs, sets, and how they change.

A trace whose loads are even and stable has nothing to gain from replicas; one whose experts come in
groups has something to gain from placement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: Shares of the tokens for which the coverage curve is given.
COVERED = (0.5, 0.8, 0.9, 0.99)


@dataclass(frozen=True)
class Skew:
    """Unevenness of a trace, layer by layer.

    Attributes
    ----------
    peak : float array, shape (L,)
        Largest over mean load of an expert.
    drift : float array, shape (L,)
        Share of the load that would have to move from one half of the trace to get the other's
        (total variation distance, 0 to 1).
    affinity : float array, shape (L,), or None
        Tokens of the most frequent pair of experts over what independent choices would give.
    sets : dict of float to int array, shape (L,), or None
        Distinct expert sets that cover a share of the tokens.
    """

    peak: FloatArray
    drift: FloatArray
    affinity: FloatArray | None = None
    sets: dict[float, npt.NDArray[np.int64]] | None = None


def skew_of_loads(load: FloatArray) -> Skew:
    """Measure loads of shape (W, L, E)."""
    total = load.sum(axis=0)
    peak = total.max(axis=1) / total.mean(axis=1)
    if len(load) < 2:
        return Skew(peak, np.zeros(len(peak)))
    first, second = (part.sum(axis=0) for part in np.array_split(load, 2))
    return Skew(peak, _variation(first, second))


def skew_of_choices(ids: npt.NDArray[np.integer], experts: int) -> Skew:
    """Measure expert choices of shape (T, L, k)."""
    tokens, layers, top_k = ids.shape
    half = tokens // 2
    halves = np.zeros((2, layers, experts))
    affinity = np.zeros(layers)
    sets = {share: np.zeros(layers, dtype=np.int64) for share in COVERED}
    for l in range(layers):
        members = np.sort(ids[:, l].astype(np.int64), axis=1)
        for part, rows in enumerate((members[:half], members[half:])):
            halves[part, l] = np.bincount(rows.ravel(), minlength=experts)
        use = halves[:, l].sum(axis=0) / tokens
        together = np.zeros((experts, experts))
        for a in range(top_k):
            for b in range(a + 1, top_k):
                np.add.at(together, (members[:, a], members[:, b]), 1.0 / tokens)
        # Choices without replacement: two given experts come together this often by chance.
        chance = np.outer(use, use) * (top_k - 1) / top_k if top_k > 1 else np.ones((1, 1))
        e, f = np.unravel_index(int(together.argmax()), together.shape)
        affinity[l] = together[e, f] / chance[e, f] if top_k > 1 else 1.0
        counts = np.sort(np.unique(members, axis=0, return_counts=True)[1])[::-1]
        covered = np.cumsum(counts) / tokens
        for share in COVERED:
            sets[share][l] = 1 + int(np.searchsorted(covered, share - 1e-12))
    peak = halves.sum(axis=0).max(axis=1) / halves.sum(axis=0).mean(axis=1)
    drift = _variation(*halves) if half else np.zeros(layers)
    return Skew(peak, drift, affinity, sets)


def _variation(first: FloatArray, second: FloatArray) -> FloatArray:
    """Total variation distance of the loads of each layer (0 where a half has none)."""
    totals = first.sum(axis=1), second.sum(axis=1)
    shares = [
        np.divide(part, total[:, None], out=np.zeros_like(part), where=total[:, None] > 0)
        for part, total in zip((first, second), totals, strict=True)
    ]
    distance = np.abs(shares[0] - shares[1]).sum(axis=1) / 2
    return np.where((totals[0] > 0) & (totals[1] > 0), distance, 0.0)
