"""Dispatch of a wave under given hosts by local search: relieve the slowest GPU.

Activated replicas are charged, or all that a GPU hosts. The start is the split that the hosts were
found for, scaled to the wave's tokens. The slowest GPU hands an expert's share, or the part of it
that levels both GPUs, to another host of that expert, as long as both end earlier than it did.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import time_of
from moeopt.joint.layer_search import level_tokens

_GAIN = 1.0 - 1e-10


@njit(cache=True, nogil=True)
def _of_gpu(share: Any, hosts: Any, resident: bool) -> Any:
    """Charged replicas and tokens of one GPU."""
    count, load = 0, 0.0
    for e in range(len(share)):
        if share[e] > 0.0 or (resident and hosts[e]):
            count += 1
        load += share[e]
    return count, load


@njit(cache=True, nogil=True)
def relieve(cost: Any, share: Any, hosts: Any, resident: bool) -> Any:
    """Improve a split in place; return its time."""
    experts, gpus = share.shape
    count = np.zeros(gpus, dtype=np.int64)
    load = np.zeros(gpus)
    time = np.empty(gpus)
    for e in range(experts):  # as _of_gpu of every GPU, but row by row
        for g in range(gpus):
            count[g] += share[e, g] > 0.0 or (resident and hosts[e, g])
            load[g] += share[e, g]
    for g in range(gpus):
        time[g] = time_of(cost, count[g], load[g])
    for _ in range(20 * (experts + gpus)):
        g = int(np.argmax(time))
        best = time[g] * _GAIN
        at_e, at_h, at_n = -1, -1, 0.0
        for e in range(experts):
            s = share[e, g]
            if s <= 0.0:
                continue
            without = time_of(cost, count[g] - (0 if resident else 1), load[g] - s)
            for h in range(gpus):
                if h == g or not hosts[e, h]:
                    continue
                there = count[h] + (0 if resident or share[e, h] > 0.0 else 1)
                t = max(without, time_of(cost, there, load[h] + s))
                if t < best:
                    best, at_e, at_h, at_n = t, e, h, s
                n = level_tokens(cost, count[g], load[g], there, load[h])
                if 0.0 < n < s:
                    t = max(time_of(cost, count[g], load[g] - n), time_of(cost, there, load[h] + n))
                    if t < best:
                        best, at_e, at_h, at_n = t, e, h, n
        if at_e < 0:
            break
        if at_n >= share[at_e, g]:
            at_n = share[at_e, g]
            share[at_e, g] = 0.0
        else:
            share[at_e, g] -= at_n
        share[at_e, at_h] += at_n
        for k in (g, at_h):
            count[k], load[k] = _of_gpu(share[:, k], hosts[:, k], resident)
            time[k] = time_of(cost, count[k], load[k])
    return time.max()


@njit(cache=True, nogil=True)
def dispatch_wave(cost: Any, tokens: Any, hosts: Any, weight: Any, resident: bool) -> Any:
    """Split a wave's tokens over the hosts.

    Parameters
    ----------
    tokens : float array, shape (E,)
    hosts : bool array, shape (E, G)
        At least one for each expert with tokens.
    weight : float array, shape (E, G)
        Shares to start from, as proportions; a row of zeros means the first host.
    resident : bool
        Whether all hosted replicas are charged.

    Returns
    -------
    time : float
    share : float array, shape (E, G)
        Rows sum to ``tokens``.
    """
    experts, gpus = hosts.shape
    best_time = np.inf
    best = np.zeros((experts, gpus))
    for start in range(2):
        share = np.zeros((experts, gpus))
        for e in range(experts):
            if tokens[e] <= 0.0:
                continue
            total = weight[e].sum()
            if start == 1 or total <= 0.0:
                # Whole experts, where their share is largest: nobody is split.
                at = -1
                for g in range(gpus):
                    if hosts[e, g] and (at < 0 or weight[e, g] > weight[e, at]):
                        at = g
                share[e, at] = tokens[e]
            else:
                share[e] = weight[e] * (tokens[e] / total)
        time = relieve(cost, share, hosts, resident)
        if time < best_time:
            best_time, best = time, share
    return best_time, best
