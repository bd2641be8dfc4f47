"""Copies of experts: a lower bound from rents of places.

Let a place on server s rent for q[s] ≥ 0. An expert of weight w with copies on A pays
``U(w) = min_A w Σ_i p[i] min_(s∈A) c[i,s] + Σ_(s∈A) q[s]`` at least, and

    Σ_(l,e) U(w[l,e])  −  Σ_s μ[s] C[s]  −  Σ_(g,s) ν[g,s] |g| K[s]  −  λ N                     (1)

is a lower bound of every plan, with q = μ[s] + ν[g,s] + λ, g the layers with the same streams, |g|
their number, and N the copies allowed. U is a minimum of linear functions of w, so it is concave:
between two weights it lies above the line through bounds of it there. Sets A of few servers are
looked at one by one; for those of at least n servers, with distances D_0 < D_1 < … of each stream
and ``near(i,k)`` the servers at most D_k away, any a ≥ 0 and
0 ≤ u[i,k] ≤ w p[i] (D_(k+1) − D_k) prove

    U(w) ≥ Σ_i w p[i] D_0 + Σ u + n a + Σ_s min(0, q[s] − a − Σ_((i,k): s ∈ near(i,k)) u[i,k])   (2)

since a stream pays the next step unless near(i,k) holds a copy. Rents come from a linear program
over classes of weights and are rounded to whole numbers first: (1) and (2) are exact whatever the
program says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from moeopt.balance.exact import float_below
from moeopt.topology.classes import Group, groups_of
from moeopt.topology.data import FloatArray, IntArray, TopologyData
from moeopt.topology.prices_program import Prices, solve_prices, solve_streams
from moeopt.topology.small_sets import largest_size, least_of_small_sets

#: Knots of the weights: more make the program larger and the bound a little tighter.
CLASSES = 100


def price_bound(
    data: TopologyData,
    *,
    classes: int = CLASSES,
    time_limit_s: float = np.inf,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return a lower bound of the hops of every plan.

    Parameters
    ----------
    classes : int
        See :func:`moeopt.topology.classes.groups_of`.
    time_limit_s : float
        For the program, and looked at between weights behind it.

    Returns
    -------
    float or None
        None if the time did not suffice.
    """
    end = time.monotonic() + time_limit_s
    groups, unit = groups_of(data, classes)
    prices = solve_prices(data, groups, time_limit_s)
    if prices is None:
        return None
    return certified(data, groups, prices, unit, late=lambda: stop() or time.monotonic() > end)


def certified(
    data: TopologyData,
    groups: Sequence[Group],
    prices: Prices,
    unit: Fraction,
    late: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return (1) in whole numbers, rounded down and not below 0; None where it became late."""
    server, copy = _whole(prices.server), int(_whole(np.array(prices.copy)))
    total = -copy * data.copies - _rented(server, data.capacity)
    for g, group in enumerate(groups):
        extra = _whole(prices.group[g])
        total -= group.layers * _rented(extra, data.capacity_per_layer)
        rent = server + extra + copy
        largest = largest_size(data.servers)
        small = least_of_small_sets(group.way, rent, group.knots, largest).min(axis=1).tolist()
        least = []
        for m, knot in enumerate(group.knots.tolist()):
            if late():
                return None
            fewest = largest + 1
            large = small[m] if fewest > data.servers else _large_sets(group, knot, rent, fewest)
            least.append(min(small[m], large))
        total += _between_knots(group, least)
    return max(0.0, float_below(total * unit))


def _rented(rent: IntArray, places: IntArray) -> int:
    return sum(int(r) * int(n) for r, n in zip(rent, places, strict=True))


def _between_knots(group: Group, least: list[int]) -> int:
    """Sum of the bounds of all weights, given those of the knots."""
    knots, total = group.knots.tolist(), 0
    for m, weight in zip(group.knot_below.tolist(), group.weights.tolist(), strict=True):
        total += least[m]
        if weight > knots[m]:
            rise = (least[m + 1] - least[m]) * (weight - knots[m])
            total += rise // (knots[m + 1] - knots[m])
    return total


def _large_sets(group: Group, knot: int, rent: IntArray, fewest: int) -> int:
    """Right side of (2), in whole numbers."""
    streams, one = solve_streams(group, knot, rent, fewest)
    u = np.clip(_whole(streams), 0, knot * group.step)
    a = int(_whole(np.array(one)))
    left = rent - a - (u[:, None] * group.near).sum(axis=0)
    return knot * group.base + int(u.sum()) + fewest * a + int(np.minimum(0, left).sum())


def _whole(values: FloatArray) -> IntArray:
    """Whole numbers that are not negative; what is no number, or very large, counts as 0."""
    sane = np.where(np.isfinite(values) & (values < 2.0**55), values, 0.0)
    return np.maximum(0, np.rint(sane)).astype(np.int64)
