"""Layer bound for any number of experts: what a target time T demands of the replicas.

*Charged replicas* (``tree`` = 1). Within T a replica takes at most cap(T, 1) tokens, so expert e
needs ``k_e = max(1, ceil(w_e / cap(T, 1)))`` replicas. T cannot be met if ``Σ(k_e − 1) > r``, or if
G GPUs with ``E + Σ(k_e − 1)`` activations need more than T for all tokens.

*Mean over waves* (``tree`` = 0). Only one activation an expert is charged. A component of the
hosts' graph (see :mod:`moeopt.joint.partition_bound`) with k GPUs needs
``k >= ceil(Σ_{e in S} κ_e)``, where ``κ_e`` is what the tokens of e (for ``sum`` its activation,
too) take of T. Because ``ceil(x + y) − 1 >= ceil(x) − 1 + ceil(y) − 1``, experts in one component
need no fewer additional replicas than apart: T cannot be met if ``Σ max(0, ceil(κ_e) − 1) > r``.

Both are monotone in T: bisection ends with a T that cannot be met.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import MAX, SUM, UNIT, room_of, shared_time, time_of

# Quotients are lowered by this before they are rounded up: rounding must not add a replica.
_SHRINK = 1.0 - 1e-12


@njit(cache=True, nogil=True)
def _needed(cost: Any, tokens: Any, charges: Any, tree: int, time: Any) -> Any:
    """Additional replicas that a target demands; a huge number where it cannot be met at all."""
    form, a, b, c, beta = cost
    extra = 0
    if tree == 1:
        room = room_of(cost, time, 1)
        for w in tokens:
            if w <= 0.0:
                continue
            if room <= 0.0:
                return 1 << 40
            need = math.ceil(w / room * _SHRINK)
            if need > 1e9:
                return 1 << 40
            extra += max(0, int(need) - 1)
        return extra
    over = time - (c if form == MAX else a)
    for e in range(len(tokens)):
        cost_e = beta * tokens[e]
        if form in (SUM, UNIT):
            cost_e += b * charges[e]
        if cost_e <= 0.0:
            continue
        if over <= 0.0 or cost_e / over > 1e9:
            return 1 << 40
        extra += max(0, math.ceil(cost_e / over * _SHRINK) - 1)
    return extra


@njit(cache=True, nogil=True)
def _possible(
    cost: Any, tokens: Any, charges: Any, tree: int, gpus: int, replicas: int, time: Any
) -> Any:
    extra = _needed(cost, tokens, charges, tree, time)
    if extra > replicas:
        return False
    activations = charges.sum() + tree * extra
    return shared_time(cost, activations, gpus, tokens.sum()) <= time * (1.0 + 1e-13)


@njit(cache=True, nogil=True)
def threshold_bounds(cost: Any, tokens: Any, charges: Any, tree: int, gpus: int) -> Any:
    """Least layer time with r = 0, 1, …, G − 1 additional replicas, shape (G,).

    Parameters as for :func:`moeopt.joint.partition_bound.partition_bounds`, any number of experts.
    """
    times = np.empty(gpus)
    activations, total = charges.sum(), tokens.sum()
    least = shared_time(cost, activations, gpus, total)
    for replicas in range(gpus - 1, -1, -1):
        low = least
        if not _possible(cost, tokens, charges, tree, gpus, replicas, low):
            high = time_of(cost, activations + len(tokens) * gpus, total)
            high = max(high, 2.0 * low)
            while high - low > 1e-12 * high:
                middle = 0.5 * (low + high)
                if middle <= low or middle >= high:
                    break
                if _possible(cost, tokens, charges, tree, gpus, replicas, middle):
                    high = middle
                else:
                    low = middle
        times[replicas] = low
        least = low  # fewer replicas never help
    return times
