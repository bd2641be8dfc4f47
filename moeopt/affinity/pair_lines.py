"""Parts that a scenario touches, from below, by pairs of its experts that share one.

k experts with q pairs on a common part touch at least as many parts as the convex hull of the
points (q, t) says, where t parts as equal as possible have q pairs: other sizes have more pairs for
the same t. Every edge of that hull is a line ``t >= constant - slope · q`` that holds for all
plans; which one is used for a scenario is free, and the bound is linear in the pairs.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np

from moeopt.affinity.data import FloatArray
from moeopt.problem import Scenarios


@cache
def lines(k: int, parts: int) -> tuple[tuple[float, float], ...]:
    """(constant, slope) of the lines for k experts, steepest first."""
    points = []
    for t in range(min(k, parts), 0, -1):
        small, larger = divmod(k, t)
        points.append((larger * math.comb(small + 1, 2) + (t - larger) * math.comb(small, 2), t))
    found = []
    for (q, t), (more, _) in pairwise(points):
        slope = 1.0 / (more - q)
        found.append((t + slope * q, slope))
    return tuple(found) or ((1.0, 0.0),)


def best_lines(scenarios: Scenarios, together: FloatArray, parts: int) -> tuple[FloatArray, float]:
    """Choose the line of each scenario that is highest at given pairs.

    Parameters
    ----------
    together : float array, shape (E, E)
        How much two experts share a part.

    Returns
    -------
    slope : float array, shape (S,)
    constant : float
        Expected constant; the bound is it less the expected slope · pairs.
    """
    slope, constant = np.zeros(len(scenarios)), np.zeros(len(scenarios))
    for s, size in enumerate(scenarios.sizes.tolist()):
        members = scenarios.members(s)
        inside = together[np.ix_(members, members)]
        pairs = float(inside.sum() - np.trace(inside)) / 2
        constant[s], slope[s] = max(lines(size, parts), key=lambda line: line[0] - line[1] * pairs)
    return slope, math.fsum((scenarios.weight * constant).tolist())


def pair_worth(scenarios: Scenarios, slope: FloatArray, experts: int) -> FloatArray:
    """Expected slope of every pair of experts, shape (E, E), zero diagonal."""
    from scipy import sparse

    shape = (len(scenarios), experts)
    ones = np.ones(len(scenarios.expert))
    incidence = sparse.csr_array((ones, scenarios.expert, scenarios.ptr), shape=shape)
    scaled = sparse.diags_array(scenarios.weight * slope) @ incidence
    worth = np.asarray(sparse.csr_array(incidence.T @ scaled).todense(), dtype=np.float64)
    np.fill_diagonal(worth, 0.0)
    return worth
