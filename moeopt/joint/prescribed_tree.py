"""Least time of one layer over waves that share its hosts: best-first search over the hosts.

A node knows the hosts of the first experts of an order, those with the most tokens first. In each
wave its time is at least

- that of the wave alone with as many additional replicas,
- ``h(S, |Q|)`` for every set Q of GPUs, S the experts confined to Q, and
- that of the experts with known hosts, exact,

(:mod:`moeopt.joint.prescribed_time`), and the node is bounded by the sum over the waves, each
times its steps. GPUs that host the same experts so far are interchangeable: of these, the first
take the next expert. The least bound of the nodes that are left holds for every plan, whenever the
search ends.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.prescribed_time import confined, hosts_time, set_times

#: Most experts and GPUs: sets of either are enumerated.
EXPERTS_LIMIT = 8
GPUS_LIMIT = 8


@njit(cache=True, nogil=True)
def _sets_bound(times: Any, inside: Any, size: Any, steps: Any, least: Any, waves_us: Any) -> Any:
    """Bound of a node by sets of GPUs; the waves' times go to ``waves_us``."""
    total = 0.0
    for w in range(len(steps)):
        time = least[w]
        for q in range(1, len(inside)):
            if inside[q]:
                time = max(time, times[w, inside[q], size[q]])
        waves_us[w] = time
        total += steps[w] * time
    return total


@njit(cache=True, nogil=True)
def hosts_tree(
    cost: Any,
    tokens: Any,
    steps: Any,
    least: Any,
    gpus: int,
    extra: int,
    slots: int,
    resident: bool,
    target: float,
    nodes_limit: int,
) -> Any:
    """Bound the sum over waves of steps times layer time, hosts shared.

    Parameters
    ----------
    tokens : float array, shape (W, E)
        Of a step of each wave; at most :data:`EXPERTS_LIMIT` experts.
    steps : float array, shape (W,)
    least : float array, shape (W,)
        Bound of each wave's time.
    gpus : int
        At most :data:`GPUS_LIMIT`.
    extra : int
        Most replicas beyond one of each expert.
    slots : int
        Most experts on a GPU.
    resident : bool
        Whether all hosted replicas are charged.
    target : float
        The search ends as soon as the bound reaches this.
    nodes_limit : int

    Returns
    -------
    bound : float
        Microseconds times steps.
    masks : int array, shape (E,)
        Hosts that attain it, a bit for each GPU; zeros if the search ended before.
    nodes : int
    """
    waves, experts = tokens.shape
    weight = np.zeros(experts)
    for w in range(waves):
        weight += steps[w] * tokens[w]
    order = np.argsort(-weight, kind="mergesort")
    sorted_tokens = tokens[:, order].copy()
    times = np.empty((waves, 1 << experts, gpus + 1))
    for w in range(waves):
        times[w] = set_times(cost, sorted_tokens[w], gpus)
    everybody = (1 << experts) - 1
    floor = np.empty(waves)
    for w in range(waves):
        floor[w] = max(least[w], times[w, everybody, gpus])
    size = np.zeros(1 << gpus, dtype=np.int64)
    for q in range(1, 1 << gpus):
        size[q] = size[q >> 1] + (q & 1)

    pool = np.zeros((nodes_limit + (1 << gpus), experts), dtype=np.uint8)
    depth_of = np.zeros(len(pool), dtype=np.int8)
    sharp = np.zeros(len(pool), dtype=np.bool_)  # whether known hosts were bounded exactly
    made = 1
    root = float((steps * floor).sum())
    heap = [(root, 0)]
    masks = np.zeros(experts, dtype=np.int64)
    found = np.zeros(experts, dtype=np.int64)
    waves_us = np.empty(waves)
    held = np.zeros(gpus, dtype=np.int64)
    while heap:
        bound, node = heap[0]
        depth = depth_of[node]
        if bound >= target or made >= nodes_limit:
            if depth == experts and sharp[node]:
                found[order] = pool[node]
            return bound, found, made
        heapq.heappop(heap)
        masks[:] = pool[node]
        if not sharp[node]:
            sharp[node] = True
            _sets_bound(times, confined(masks, gpus), size, steps, floor, waves_us)
            exact = 0.0
            for w in range(waves):
                time = hosts_time(cost, sorted_tokens[w], masks, gpus, resident)
                exact += steps[w] * max(time, waves_us[w])
            heapq.heappush(heap, (max(bound, exact), node))
            continue
        if depth == experts:
            found[order] = pool[node]
            return bound, found, made
        masks[:] = pool[node]
        used = 0
        held[:] = 0
        for e in range(depth):
            used += size[masks[e]]
            for g in range(gpus):
                held[g] += masks[e] >> g & 1
        left = extra + depth - used
        for mask in range(1, 1 << gpus):
            if size[mask] - 1 > left:
                continue
            allowed = True
            for g in range(gpus):
                if mask >> g & 1 and held[g] >= slots:
                    allowed = False
                if g > 0 and mask >> g & 1 and not mask >> (g - 1) & 1:
                    same = True
                    for e in range(depth):
                        same = same and (masks[e] >> g & 1) == (masks[e] >> (g - 1) & 1)
                    allowed = allowed and not same
            if not allowed:
                continue
            masks[depth] = mask
            child = max(
                bound, _sets_bound(times, confined(masks, gpus), size, steps, floor, waves_us)
            )
            pool[made] = masks
            depth_of[made] = depth + 1
            heapq.heappush(heap, (child, made))
            made += 1
        masks[depth] = 0
    return np.inf, found, made
