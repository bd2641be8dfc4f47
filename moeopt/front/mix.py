"""A fixed mix of request classes: how many of n requests in flight are of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from moeopt.problem import IntArray


def whole_weights(shares: Sequence[float]) -> list[int]:
    """Return integers in the same proportions, exactly (a double is a fraction)."""
    exact = [Fraction(share) for share in shares]
    scale = math.lcm(*(share.denominator for share in exact))
    weights = [int(share * scale) for share in exact]
    common = math.gcd(*weights)
    return [weight // common for weight in weights]


def rounded_counts(weights: Sequence[int], most: int) -> IntArray:
    """Divide n = 0, 1, …, ``most`` requests in proportion to the weights, by largest remainders.

    Parameters
    ----------
    weights : sequence of int
        At least one is positive.

    Returns
    -------
    int array, shape (most + 1, C)
        Row n sums to n and is less than one away from the proportions; ties go to the first.
        A row may be smaller somewhere than the one before it (the Alabama paradox).
    """
    total = sum(weights)
    # Python's integers where the products do not fit into 64 bits: the rounding is exact.
    kind = np.int64 if (most + 1) * total < 2**62 else object
    product = np.arange(most + 1).astype(kind)[:, None] * np.array(weights, dtype=kind)
    counts = (product // total).astype(np.int64)
    order = np.argsort(-(product % total), axis=1, kind="stable")
    rank = np.empty_like(counts)
    np.put_along_axis(rank, order, np.arange(len(weights))[None, :], axis=1)
    missing = np.arange(most + 1) - counts.sum(axis=1)
    return counts + (rank < missing[:, None])
