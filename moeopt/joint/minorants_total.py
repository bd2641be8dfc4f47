"""Bounds of a layer's time in the number of a wave's requests alone: ``T(n) >= θ·Σn + F``.

Of the requests n only their number N is known, between ``low`` and ``high``. In a partition of the
experts into groups S_j with k_j GPUs (:mod:`moeopt.joint.partition_bound`) every one of these is a
lower bound of the layer's time, and, with tangents for ``p2``, affine in N:

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

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import MAX, P2, Cost, tangent_of
from moeopt.joint.minorants import TotalCut
from moeopt.joint.partition_bound import EXPERTS_LIMIT, groups_of, next_partition
from moeopt.problem import FloatArray, IntArray

# A few hundred rounded operations: far below this, relative to the largest term.
_ROUNDING = 2.0**-36
#: Slopes of the cuts, as multiples of what a request costs if all GPUs are equally busy.
_SLOPES = (1.0, 1.03, 1.06, 1.1, 1.15, 1.25)
_SLOPES_P2 = (0.92, 0.95, 0.97, 1.0)

#: Where tangents of the fewest tokens are taken, between the fewest and the most requests; ``p2``
#: is curved besides.
_POINTS = (0.1, 0.3, 0.6, 1.0)
_POINTS_P2 = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0)
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
def union_lines(
    cost: Any, usage: Any, most: Any, charges: Any, gpus: int, points: Any
) -> tuple[Any, Any]:
    """Bounds of the layer time by every set of experts that is a union of groups.

    Parameters
    ----------
    usage : float array, shape (C, E)
        At most :data:`moeopt.joint.partition_bound.EXPERTS_LIMIT` experts.
    most : float array, shape (C,)
        Most requests of each class in a wave.
    charges : int array, shape (E,)
        1 for each expert of which a replica is charged in every wave that decodes anything.
    points : float array, shape (P,)
        Numbers of requests at which there are tangents.

    Returns
    -------
    constant, slope : float arrays, shape (2**E, G + 1, E + 1, P + 1)
        ``[S, k, j]``: lines in the number of requests that bound the time of the experts S, in j
        groups, on k GPUs: a group of n experts on k of them is charged n + k − 1 replicas, several
        groups as many together.
    """
    form, a, b, c, beta = cost
    experts = usage.shape[1]
    sets = 1 << experts
    lines = len(points) + 1
    constant = np.full((sets, gpus + 1, experts + 1, lines), -np.inf)
    slope = np.zeros((sets, gpus + 1, experts + 1, lines))
    tokens = np.zeros((len(points), 2))
    use = np.zeros(len(usage))
    for subset in range(1, sets):
        use[:] = 0.0
        charged, size = 0, 0
        for e in range(experts):
            if subset >> e & 1:
                use += usage[:, e]
                charged += charges[e]
                size += 1
        _fewest_tokens(use, most, points, tokens)
        for k in range(1, gpus + 1):
            for j in range(1, min(size, k) + 1):
                replicas = charged + k - j
                constant[subset, k, j, 0] = a + b * (-(-replicas // k))
                for i in range(len(points)):
                    fixed, rise = (c if form == MAX else a + b * replicas / k), beta / k
                    if form == P2:
                        at = tokens[i, 0] + tokens[i, 1] * points[i]
                        fixed, rise = tangent_of(cost, replicas, k, at)
                    constant[subset, k, j, i + 1] = fixed + rise * tokens[i, 0]
                    slope[subset, k, j, i + 1] = rise * tokens[i, 1]
    return constant, slope


@njit(cache=True, nogil=True)
def total_floor(
    constant_of: Any, slope_of: Any, gpus: int, low: float, high: float, theta: float
) -> Any:
    """Lower bound of ``T(n) − theta·Σn`` over waves with ``low`` to ``high`` requests.

    ``constant_of, slope_of``: of :func:`union_lines`.
    """
    sets, each = constant_of.shape[0], constant_of.shape[3]
    experts = constant_of.shape[2] - 1
    together, spread = np.zeros(sets, dtype=np.int64), np.zeros(sets, dtype=np.int64)
    lowest, count = np.zeros(sets, dtype=np.int64), np.zeros(sets, dtype=np.int64)
    for u in range(1, sets):
        lowest[u] = 0 if u & 1 else lowest[u >> 1] + 1
        count[u] = count[u >> 1] + (u & 1)
    best = np.inf
    constant = np.empty(each * sets)
    slope = np.empty(len(constant))
    group = np.zeros(experts, dtype=np.int64)  # restricted growth: group[e] <= 1 + those before
    top = np.zeros(experts + 1, dtype=np.int64)  # groups among the experts before e
    member = np.zeros(experts, dtype=np.int64)
    size = np.zeros(experts, dtype=np.int64)
    while True:
        groups = groups_of(group, top, member)
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
                    for i in range(each):
                        constant[lines] = constant_of[together[u], spread[u], count[u], i]
                        slope[lines] = slope_of[together[u], spread[u], count[u], i] - theta
                        lines += 1
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
    cost: Cost,
    usage: FloatArray,
    most: IntArray,
    charges: IntArray,
    gpus: int,
    low: int,
    high: int,
    ended: Callable[[], bool] = lambda: False,
) -> list[TotalCut]:
    """Cuts ``T[layer] >= slope @ n + floor`` for every wave of ``low`` to ``high`` requests.

    Parameters
    ----------
    usage : float array, shape (C, L, E)
    most : int array, shape (C,)
    charges : int array, shape (L, E)
        Layers with an expert that is not surely charged have none.
    ended : callable
        Whether to leave out the layers that are left.

    Returns
    -------
    list of (layer, slope, floor)
        Empty for many experts, and where tokens cost nothing.
    """
    if usage.shape[2] > EXPERTS_LIMIT or cost[4] == 0.0 or high < 1:
        return []
    cuts = []
    limits = most.astype(np.float64)
    points = low + np.array(_POINTS_P2 if cost[0] == P2 else _POINTS) * (high - low)
    for l in np.flatnonzero(charges.all(axis=1)).tolist():
        if ended():
            break
        use = np.ascontiguousarray(usage[:, l])
        lines = union_lines(cost, use, limits, charges[l], gpus, points)
        for theta in _slopes(cost, use, int(most.sum()), gpus, low, high):
            floor = total_floor(*lines, gpus, float(low), float(high), theta)
            floor -= _ROUNDING * (abs(floor) + theta * high)
            cuts.append((l, np.full(len(most), theta), floor))
    return cuts


def _slopes(cost: Cost, use: FloatArray, total: int, gpus: int, low: int, high: int) -> list[float]:
    """Slopes to try: about what a request costs if all GPUs are equally busy."""
    fewest = float(use.sum(axis=1).min())
    if cost[0] != P2:
        return [times * cost[4] * fewest / gpus for times in _SLOPES]
    # It depends on how many there are: as few waves as possible, or one more.
    waves = -(-total // high)
    requests = {float(np.clip(total / w, low, high)) for w in (waves, waves + 1)}
    levels = [
        tangent_of(cost, use.shape[1], gpus, fewest * n)[1] * fewest for n in sorted(requests)
    ]
    return [times * level for level in levels for times in _SLOPES_P2]
