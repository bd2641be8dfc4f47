"""Bounds of a layer's time in the number of a wave's requests alone: ``T(n) >= θ·Σn + F``.

Of the requests n only their number N is known, between ``low`` and ``high``. In a partition of the
experts into groups S_j with k_j GPUs (:mod:`moeopt.joint.partition_bound`), for ``sum`` and
``max``, every one of these is a lower bound of the layer's time, affine in N:

- of group j: ``shared_time(|S_j| + k_j − 1, k_j, ·)`` of its fewest tokens, N times the least share
  ``min over classes of Σ_{e in S_j} a_ce``;
- of all GPUs together: the mean over the groups, each weighted by its GPUs. Every token is computed
  somewhere, so it knows all N·k of them whatever the classes are: this is what charges the
  ``Σ(k_j − 1)`` splits of the partition.

F is the least, over all partitions and numbers of GPUs, of ``min over N of (their largest − θ·N)``:
on a line the minimum of a maximum of affine functions is attained by two of them, or by one at an
end. Summed over waves, θ·Σ_w N_w is known, so one such bound is enough for any number of waves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import MAX, Cost
from moeopt.joint.partition_bound import EXPERTS_LIMIT, next_partition
from moeopt.problem import FloatArray, IntArray

# A few hundred rounded operations: far below this, relative to the largest term.
_ROUNDING = 2.0**-36
#: Slopes of the cuts, as multiples of what a request costs if all GPUs are equally busy.
_SLOPES = (1.0, 1.02, 1.04, 1.07, 1.1, 1.15, 1.25)

#: Where tangents of the fewest tokens are taken, between the fewest and the most requests.
_POINTS = (0.1, 0.3, 0.6, 1.0)
#: Crossings of two lines that are looked at.
_CROSSINGS = 40


@njit(cache=True, nogil=True)
def _least_of_lines(
    constant: Any, slope: Any, lines: int, low: float, high: float, enough: float
) -> Any:
    """Least, between low and high, of the largest line; early out at ``enough``.

    The best line with a falling and that with a rising slope, again and again at their crossing:
    every value on the way is a lower bound.
    """
    fall, rise = 0, 0
    for i in range(1, lines):
        if constant[i] + slope[i] * low > constant[fall] + slope[fall] * low:
            fall = i
        if constant[i] + slope[i] * high > constant[rise] + slope[rise] * high:
            rise = i
    if slope[fall] >= 0.0:
        return constant[fall] + slope[fall] * low
    if slope[rise] <= 0.0:
        return constant[rise] + slope[rise] * high
    best = -np.inf
    for _ in range(_CROSSINGS):
        share = slope[rise] / (slope[rise] - slope[fall])
        value = share * constant[fall] + (1.0 - share) * constant[rise]
        if value <= best or value >= enough:
            return max(best, value)
        best = value
        at = (constant[fall] - constant[rise]) / (slope[rise] - slope[fall])
        top = 0
        for i in range(1, lines):
            if constant[i] + slope[i] * at > constant[top] + slope[top] * at:
                top = i
        if slope[top] < 0.0:
            fall = top
        else:
            rise = top
    return best


@njit(cache=True, nogil=True)
def _fewest_tokens(use: Any, most: Any, points: Any, line: Any) -> None:
    """Tangents, at some numbers of requests, of the fewest tokens that so many bring along.

    ``use``, shape (C,): tokens of a request of each class; ``line``, shape (points, 2): constant
    and slope. Requests with few tokens come first, at most ``most`` of each class: convex.
    """
    order = np.argsort(use)
    for i in range(len(points)):
        number, tokens = 0.0, 0.0
        for c in order:
            line[i, 0], line[i, 1] = tokens - use[c] * number, use[c]
            if number + most[c] >= points[i]:
                break
            number += most[c]
            tokens += use[c] * most[c]


@njit(cache=True, nogil=True)
def _lines_of(
    cost: Any, replicas: int, gpus: int, tokens: Any, at: int, constant: Any, slope: Any
) -> Any:
    """Write the lines of :func:`moeopt.joint.cost.shared_time` from ``at`` on."""
    form, a, b, c, beta = cost
    constant[at], slope[at] = a + b * (-(-replicas // gpus)), 0.0
    for i in range(len(tokens)):
        at += 1
        fixed = c if form == MAX else a + b * replicas / gpus
        constant[at] = fixed + beta * tokens[i, 0] / gpus
        slope[at] = beta * tokens[i, 1] / gpus
    return at + 1


@njit(cache=True, nogil=True)
def total_floor(
    cost: Any, usage: Any, most: Any, charges: Any, gpus: int, low: float, high: float, theta: float
) -> Any:
    """Lower bound of ``T(n) − theta·Σn`` over waves with ``low`` to ``high`` requests.

    Parameters
    ----------
    cost : tuple
        Of the form ``unit``, ``sum`` or ``max``.
    usage : float array, shape (C, E)
        At most :data:`moeopt.joint.partition_bound.EXPERTS_LIMIT` experts.
    most : float array, shape (C,)
        Most requests of each class in a wave.
    charges : int array, shape (E,)
        1 for each expert of which a replica is charged in every wave that decodes anything.
    """
    classes, experts = usage.shape
    sets = 1 << experts
    charged = np.zeros(sets, dtype=np.int64)
    tokens = np.zeros((sets, len(_POINTS), 2))
    points = np.empty(len(_POINTS))
    for i in range(len(_POINTS)):
        points[i] = low + _POINTS[i] * (high - low)
    use = np.zeros(classes)
    for subset in range(1, sets):
        use[:] = 0.0
        for e in range(experts):
            if subset >> e & 1:
                use += usage[:, e]
                charged[subset] += charges[e]
        _fewest_tokens(use, most, points, tokens[subset])
    together, spread = np.zeros(sets, dtype=np.int64), np.zeros(sets, dtype=np.int64)
    lowest, count = np.zeros(sets, dtype=np.int64), np.zeros(sets, dtype=np.int64)
    for u in range(1, sets):
        lowest[u] = 0 if u & 1 else lowest[u >> 1] + 1
        count[u] = count[u >> 1] + (u & 1)
    best = np.inf
    constant = np.empty((1 + len(_POINTS)) * sets)
    slope = np.empty(len(constant))
    group = np.zeros(experts, dtype=np.int64)  # restricted growth: group[e] <= 1 + those before
    top = np.zeros(experts + 1, dtype=np.int64)  # groups among the experts before e
    member = np.zeros(experts, dtype=np.int64)
    size = np.zeros(experts, dtype=np.int64)
    while True:
        for e in range(experts):
            top[e + 1] = max(top[e], group[e] + 1)
        groups = top[experts]
        if groups <= gpus:
            member[:] = 0
            for e in range(experts):
                member[group[e]] |= 1 << e
            size[:] = 1
            size[0] = gpus - groups + 1
            while True:  # every way to share the GPUs out; more of them never hurt
                unions = 1 << groups
                together[0] = spread[0] = 0
                for few in (True, False):
                    lines = 0
                    for u in range(1, unions):
                        j = lowest[u]
                        together[u] = together[u & (u - 1)] | member[j]
                        spread[u] = spread[u & (u - 1)] + size[j]
                        single = u & (u - 1) == 0
                        if few and not single and u != unions - 1:
                            continue
                        # A group of n experts on k GPUs is charged n + k − 1, several as many.
                        replicas = charged[together[u]] + spread[u] - count[u]
                        lines = _lines_of(
                            cost, replicas, spread[u], tokens[together[u]], lines, constant, slope
                        )
                    for i in range(lines):
                        slope[i] -= theta
                    value = _least_of_lines(constant, slope, lines, low, high, best)
                    if value >= best:
                        break
                best = min(best, value)
                # The next composition: one GPU from the first group that can spare it to the next.
                j = 0
                while j < groups and size[j] == 1:
                    j += 1
                if j >= groups - 1:
                    break
                spare = size[j] - 1
                size[j] = 1
                size[j + 1] += 1
                size[0] = spare
        if not next_partition(group, top, gpus):
            break
    return best


def total_cuts(
    cost: Cost, usage: FloatArray, most: IntArray, charges: IntArray, gpus: int, high: int
) -> list[tuple[int, FloatArray, float]]:
    """Cuts ``T[layer] >= slope @ n + floor`` that hold for every wave of 1 to ``high`` requests.

    Parameters
    ----------
    usage : float array, shape (C, L, E)
    most : int array, shape (C,)
    charges : int array, shape (L, E)
        Layers with an expert that is not surely charged have none.

    Returns
    -------
    list of (layer, slope, floor)
        Empty for many experts, and for forms without lines.
    """
    if usage.shape[2] > EXPERTS_LIMIT or cost[0] > MAX or cost[4] == 0.0 or high < 1:
        return []
    cuts = []
    limits = most.astype(np.float64)
    for l in np.flatnonzero(charges.all(axis=1)).tolist():
        use = np.ascontiguousarray(usage[:, l])
        level = cost[4] * float(use.sum(axis=1).min()) / gpus  # if all GPUs are equally busy
        for times in _SLOPES:
            theta = times * level
            floor = total_floor(cost, use, limits, charges[l], gpus, 1.0, float(high), theta)
            floor -= _ROUNDING * (abs(floor) + theta * high)
            cuts.append((l, np.full(len(most), theta), floor))
    return cuts
