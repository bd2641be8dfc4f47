"""Additional replicas of all layers under one limit: a multiple-choice knapsack, solved exactly."""

from __future__ import annotations

import numpy as np

from moeopt.problem import FloatArray, IntArray


def share_out(
    times: FloatArray, replicas: int, price: FloatArray | None = None
) -> tuple[float, IntArray]:
    """Choose replicas of each layer so that the sum of their times and the price is least.

    Parameters
    ----------
    times : float array, shape (L, K)
        ``times[l, r]`` with r additional replicas; need not be monotone or convex; ``inf`` where
        there is no plan.
    replicas : int
        Most additional replicas in all.
    price : float array, shape (at least replicas + 1,), optional
        Added for so many replicas in all; must not decrease.

    Returns
    -------
    total : float
        With the price.
        ``inf`` if some layer has no plan within the limit.
    chosen : int array, shape (L,)
    """
    layers, choices = times.shape
    limit = min(replicas, layers * (choices - 1))
    best = np.zeros(limit + 1)
    came = np.zeros((layers, limit + 1), dtype=np.int64)
    for l in range(layers):
        grown = np.full(limit + 1, np.inf)
        for r in range(min(choices, limit + 1)):
            value = best[: limit + 1 - r] + times[l, r]
            better = value < grown[r:]
            grown[r:][better] = value[better]
            came[l, r:][better] = r
        best = grown
    if price is not None:
        best = best + price[: limit + 1]
    chosen = np.zeros(layers, dtype=np.int64)
    left = int(best.argmin())
    total = float(best[left])
    for l in range(layers - 1, -1, -1):
        chosen[l] = came[l, left]
        left -= int(chosen[l])
    return total, chosen
