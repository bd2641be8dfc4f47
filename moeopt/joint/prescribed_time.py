"""Lower bounds of the times of several waves whose layer has the same hosts, all or some known.

Hosts of an expert are a bit mask of GPUs, 0 where they are not known yet. Within T, the GPUs of a
set Q with A_g activations each compute at most ``Σ_{g in Q} cap(T, A_g)`` tokens, and an expert
whose hosts all lie in Q is computed there and nowhere else.

*Given activations* the layer time is the least T with ``Σ_{g in Q} cap(T, A_g) >= load(Q)`` for
every Q (min cut), load(Q) the tokens of the experts confined to Q: exact. :func:`hosts_time` tries
every choice of activated replicas of the experts that have several; where resident replicas are
charged, there is one: all.

*Sets of experts.* However they are activated, the experts S on k GPUs take at least ``h(S, k)``,
the least over partitions of S into groups with GPUs of their own of the largest
``shared_time(|S_j| + k_j − 1, k_j, tokens of S_j)`` (:mod:`moeopt.joint.partition_bound`):
:func:`set_times` has them all, by dynamic programming over subsets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import MAX, P2, room_of, shared_time, time_of

#: Choices of activated replicas that are tried; beyond, only sets of experts are looked at.
_CHOICES = 81


@njit(cache=True, nogil=True)
def set_times(cost: Any, tokens: Any, gpus: int) -> Any:
    """Least time of each set of experts on 1, …, ``gpus`` GPUs of its own.

    Parameters
    ----------
    tokens : float array, shape (E,)
        Of a step of one wave; experts without any are not charged.

    Returns
    -------
    float array, shape (2**E, gpus + 1)
        Column 0 is not used. Does not increase with the GPUs.
    """
    experts = len(tokens)
    sets = 1 << experts
    alone = np.full((sets, gpus + 1), np.inf)
    best = np.full((sets, gpus + 1), np.inf)
    floor = time_of(cost, 0, 0.0)
    for k in range(1, gpus + 1):
        alone[0, k] = best[0, k] = floor
    for subset in range(1, sets):
        w, p = 0.0, 0
        for e in range(experts):
            if subset >> e & 1 and tokens[e] > 0.0:
                w += tokens[e]
                p += 1
        for k in range(1, gpus + 1):
            time = floor
            if p > 0:
                time = shared_time(cost, p + k - 1, k, w)
            alone[subset, k] = min(time, alone[subset, k - 1])
        first = subset & -subset
        best[subset] = alone[subset]
        part = (subset - 1) & subset
        while part > 0:
            if part & first:
                rest = subset ^ part
                for k in range(2, gpus + 1):
                    for i in range(1, k):
                        time = max(alone[part, i], best[rest, k - i])
                        best[subset, k] = min(best[subset, k], time)
            part = (part - 1) & subset
    return best


@njit(cache=True, nogil=True)
def confined(masks: Any, gpus: int) -> Any:
    """Return the experts, a bit each, whose hosts are known and lie in each set of GPUs."""
    inside = np.zeros(1 << gpus, dtype=np.int64)
    for e in range(len(masks)):
        if masks[e] > 0:
            inside[masks[e]] |= 1 << e
    for g in range(gpus):
        for q in range(1 << gpus):
            if q >> g & 1:
                inside[q] |= inside[q ^ (1 << g)]
    return inside


@njit(cache=True, nogil=True)
def _activated_time(cost: Any, count: Any, load: Any, gpus: int, enough: float) -> Any:
    """Time of given activations, load (2**G,) that of confined experts; early out above enough."""
    form, a, b, c, beta = cost
    most = 0
    for g in range(gpus):
        most = max(most, count[g])
    time = time_of(cost, most, 0.0)
    sum_of = np.zeros(1 << gpus)
    for q in range(1, 1 << gpus):
        low = q & -q
        g, k = 0, 0
        while low >> g != 1:
            g += 1
        rest = q
        while rest:
            rest &= rest - 1
            k += 1
        sum_of[q] = sum_of[q ^ low] + count[g]
        if load[q] <= 0.0:
            continue
        if form == MAX:
            time = max(time, c + beta * load[q] / k)
        elif form != P2:
            time = max(time, a + (b * sum_of[q] + beta * load[q]) / k)
        else:
            time = _raised(cost, count, q, load[q], time, gpus)
        if time >= enough:
            return time
    return time


@njit(cache=True, nogil=True)
def _raised(cost: Any, count: Any, q: int, load: Any, time: Any, gpus: int) -> Any:
    """Least T not below ``time`` within which the GPUs of q compute the load."""
    low, high = time, 0.0
    taken = 0.0
    for g in range(gpus):
        if q >> g & 1:
            taken += room_of(cost, low, count[g])
            high = max(high, time_of(cost, count[g], load))
    if taken >= load:
        return time
    for _ in range(60):
        middle = 0.5 * (low + high)
        if middle <= low or middle >= high:
            break
        taken = 0.0
        for g in range(gpus):
            if q >> g & 1:
                taken += room_of(cost, middle, count[g])
        if taken >= load:
            high = middle
        else:
            low = middle
    return low


@njit(cache=True, nogil=True)
def hosts_time(cost: Any, tokens: Any, masks: Any, gpus: int, resident: bool) -> Any:
    """Layer time of the experts whose hosts are known, the others left out.

    Parameters
    ----------
    tokens : float array, shape (E,)
    masks : int array, shape (E,)
        GPUs that host each expert, a bit each; 0: not known.
    resident : bool
        Whether all hosted replicas are charged.

    Returns
    -------
    float
        Exact, but for rounding; 0 if there are more than :data:`_CHOICES` ways to activate.
    """
    experts = len(tokens)
    choice = np.zeros(experts, dtype=np.int64)  # the replicas that are activated
    ways = 1
    for e in range(experts):
        if resident:
            choice[e] = masks[e]
            continue
        if masks[e] == 0 or tokens[e] <= 0.0:
            continue
        choice[e] = masks[e]
        replicas, rest = 0, masks[e]
        while rest:
            rest &= rest - 1
            replicas += 1
        ways *= (1 << replicas) - 1
        if ways > _CHOICES:
            return 0.0
    best = np.inf
    count = np.zeros(gpus, dtype=np.int64)
    load = np.zeros(1 << gpus)
    while True:
        count[:] = 0
        load[:] = 0.0
        for e in range(experts):
            if choice[e]:
                load[choice[e]] += tokens[e]
                for g in range(gpus):
                    count[g] += choice[e] >> g & 1
        for g in range(gpus):
            for q in range(1 << gpus):
                if q >> g & 1:
                    load[q] += load[q ^ (1 << g)]
        best = min(best, _activated_time(cost, count, load, gpus, best))
        if resident:
            return best
        e = 0
        while e < experts:  # the next non-empty subset of an expert's hosts, or back to all
            if choice[e]:
                choice[e] = (choice[e] - 1) & masks[e]
                if choice[e]:
                    break
                choice[e] = masks[e]
            e += 1
        if e == experts:
            return best
