"""Multiple choice over layers under a budget of dropped mass: a knapsack over whole numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeopt.problem import FloatArray, IntArray


def choose(times: FloatArray, dropped: IntArray, budgets: Sequence[int]) -> IntArray:
    """Choose an entry of each layer, least sum of times, for each budget.

    Parameters
    ----------
    times : float array, shape (L, k)
        Need not be monotone.
    dropped : int array, shape (L, k)
        Not negative; 0 in the last column, so that there is always a choice.
    budgets : sequence of int
        Most dropped mass of all layers together; not negative.

    Returns
    -------
    int array, shape (len(budgets), L)
        Chosen columns. Of equal sums the one of fewer dropped units is not preferred.
    """
    layers, choices = times.shape
    # More than everything cannot be dropped: the table ends there.
    most = int(min(max(budgets), dropped.max(axis=1).sum()))
    best = np.zeros(most + 1)
    came = np.zeros((layers, most + 1), dtype=np.int8)
    for l in range(layers):
        grown = np.full(most + 1, np.inf)
        for j in range(choices):
            cut = int(dropped[l, j])
            if cut > most:
                continue
            value = best[: most + 1 - cut] + times[l, j]
            better = value < grown[cut:]
            grown[cut:][better] = value[better]
            came[l, cut:][better] = j
        best = grown
    chosen = np.zeros((len(budgets), layers), dtype=np.int64)
    for row, budget in zip(chosen, budgets, strict=True):
        left = int(min(budget, most))
        for l in range(layers - 1, -1, -1):
            row[l] = came[l, left]
            left -= int(dropped[l, row[l]])
    return chosen
