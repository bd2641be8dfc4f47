"""Hosts of one layer that suit several given waves: simulated annealing.

A move takes a replica to another GPU, exchanges two, adds one, drops one, or turns one into a
replica of another expert. Every wave's split follows by local search
(:mod:`moeopt.joint.wave_dispatch`) from the split it had; the sum over the waves of steps times
layer time decides. The best hosts are kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.layer_search import below
from moeopt.joint.wave_dispatch import dispatch_wave, relieve

#: Temperatures at the start and at the end, relative to the start's time.
_HOT, _COLD = 3e-3, 1e-4


@njit(cache=True, nogil=True)
def _uniform(random: Any) -> Any:
    return (below(random, 1 << 30) + 0.5) / (1 << 30)


@njit(cache=True, nogil=True)
def _moved(share: Any, e: int, g: int, h: int) -> None:
    """Hand the tokens of e on g to h, a host."""
    share[e, h] += share[e, g]
    share[e, g] = 0.0


@njit(cache=True, nogil=True)
def _pick(hosts: Any, e: int, wanted: bool, random: Any) -> Any:
    """Return a random GPU that hosts e, or that does not; -1 if there is none."""
    gpus = hosts.shape[1]
    first = below(random, gpus)
    for i in range(gpus):
        g = (first + i) % gpus
        if hosts[e, g] == wanted:
            return g
    return -1


@njit(cache=True, nogil=True)
def search_hosts(
    cost: Any,
    tokens: Any,
    steps: Any,
    least: Any,
    start: Any,
    weight: Any,
    extra: int,
    slots: int,
    resident: bool,
    target: float,
    iterations: int,
    seed: int,
) -> Any:
    """Improve hosts for the sum over waves of steps times layer time.

    Parameters
    ----------
    tokens : float array, shape (W, E)
        Of a step of each wave.
    steps : float array, shape (W,)
    least : float array, shape (W,)
        Lower bounds of the waves' layer times; they only end evaluations early.
    start : bool array, shape (E, G)
        At least one host for each expert, at most ``extra`` more in all, within the slots.
    weight : float array, shape (W, E, G)
        Splits to start from, as proportions; a row of zeros means the first host.
    extra : int
        Most replicas beyond one of each expert.
    slots : int
        Most experts on a GPU.
    resident : bool
        Whether all hosted replicas are charged.
    target : float
        The search ends there.

    Returns
    -------
    total : float
    hosts : bool array, shape (E, G)
    share : float array, shape (W, E, G)
        How each wave splits its tokens.
    """
    waves, experts = tokens.shape
    random = np.array([np.uint64(seed * 2 + 1) * np.uint64(0x9E3779B97F4A7C15)], dtype=np.uint64)
    hosts = start.copy()
    gpus = hosts.shape[1]
    share = np.zeros((waves, experts, gpus))
    total, rest = 0.0, np.zeros(waves + 1)
    for w in range(waves):
        time, share[w] = dispatch_wave(cost, tokens[w], hosts, weight[w], resident)
        total += steps[w] * time
    for w in range(waves - 1, -1, -1):
        rest[w] = rest[w + 1] + steps[w] * least[w]
    best, best_hosts, best_share = total, hosts.copy(), share.copy()
    count = hosts.sum(axis=0)
    used = count.sum() - experts
    trial = share.copy()
    cooling = (_COLD / _HOT) ** (1.0 / max(1, iterations))
    heat = _HOT * total
    for _ in range(iterations):
        if best <= target:
            break
        heat *= cooling
        kind = below(random, 5)
        e = below(random, experts)
        i, g, h, q = -1, -1, -1, -1
        if kind == 4 or (kind == 2 and used < extra):  # add one; with 4, drop another
            h = _pick(hosts, e, False, random)
            if h < 0 or count[h] >= slots:
                continue
            if kind == 4 or used >= extra:
                i = below(random, experts)
                if i == e or hosts[i].sum() < 2:
                    continue
                q = _pick(hosts, i, True, random)
        elif kind == 3:  # drop one
            if hosts[e].sum() < 2:
                continue
            g = _pick(hosts, e, True, random)
        else:  # to another GPU, or exchange two
            g = _pick(hosts, e, True, random)
            h = _pick(hosts, e, False, random)
            if h < 0:
                continue
            if kind == 1 or count[h] >= slots:
                i = below(random, experts)
                if i == e or not hosts[i, h] or hosts[i, g]:
                    continue
        to, at = -1, -1  # who takes what e had on g, and what i had on q
        if h >= 0:
            hosts[e, h] = True
        if g >= 0:
            hosts[e, g] = False
            to = h if h >= 0 else _pick(hosts, e, True, random)
        if i >= 0 and q >= 0:
            hosts[i, q] = False
            at = _pick(hosts, i, True, random)
        elif i >= 0:
            hosts[i, h], hosts[i, g] = False, True
        limit = total - heat * math.log(_uniform(random))
        changed = 0.0
        for w in range(waves):
            trial[w] = share[w]
            if g >= 0:
                _moved(trial[w], e, g, to)
            if i >= 0 and q >= 0:
                _moved(trial[w], i, q, at)
            elif i >= 0:
                _moved(trial[w], i, h, g)
            changed += steps[w] * relieve(cost, trial[w], hosts, resident)
            if changed + rest[w + 1] > limit:
                changed = np.inf
                break
        if changed <= limit:
            total = changed
            share, trial = trial, share
            count = hosts.sum(axis=0)
            used = count.sum() - experts
            if total < best:
                best, best_hosts, best_share = total, hosts.copy(), share.copy()
            continue
        if h >= 0:
            hosts[e, h] = False
        if g >= 0:
            hosts[e, g] = True
        if i >= 0 and q >= 0:
            hosts[i, q] = True
        elif i >= 0:
            hosts[i, h], hosts[i, g] = True, False
    return best, best_hosts, best_share
