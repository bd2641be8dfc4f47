"""Compiled annealing of ``inter``: two experts of a layer exchange their GPUs.

``cost[l, e, g]`` is what expert e of layer l costs on GPU g while the layers beside it stay: inside
a layer nothing else matters, so an exchange changes the objective by four of these numbers. After
an accepted one the numbers of both neighbouring layers are updated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.affinity.data import FloatArray, IntArray
from moeopt.balance.state import below


@njit(cache=True, nogil=True)
def host_costs(flow: Any, place: Any, weight: Any, l: int, cost: Any) -> None:
    """Fill ``cost[l]``, shape (E, G), for the places of the neighbouring layers."""
    layers, experts = place.shape
    cost[l] = 0.0
    if l + 1 < layers:
        for e in range(experts):
            for f in range(experts):
                if flow[l, e, f] != 0.0:
                    cost[l, e] += flow[l, e, f] * weight[:, place[l + 1, f]]
    if l > 0:
        for f in range(experts):
            for e in range(experts):
                if flow[l - 1, f, e] != 0.0:
                    cost[l, e] += flow[l - 1, f, e] * weight[place[l - 1, f]]


@njit(cache=True, nogil=True)
def _exchange(flow: Any, place: Any, weight: Any, cost: Any, l: int, e: int, f: int) -> None:
    layers, experts = place.shape
    a, b = place[l, e], place[l, f]
    place[l, e], place[l, f] = b, a
    if l + 1 < layers:
        for x in range(experts):
            moved = flow[l, e, x] - flow[l, f, x]
            if moved != 0.0:
                for g in range(len(weight)):
                    cost[l + 1, x, g] += moved * (weight[b, g] - weight[a, g])
    if l > 0:
        for x in range(experts):
            moved = flow[l - 1, x, e] - flow[l - 1, x, f]
            if moved != 0.0:
                for g in range(len(weight)):
                    cost[l - 1, x, g] += moved * (weight[g, b] - weight[g, a])


@njit(cache=True, nogil=True)
def _anneal(
    flow: Any,
    place: Any,
    weight: Any,
    load: Any,
    most: Any,
    steps: int,
    hot: float,
    cold: float,
    random: Any,
) -> Any:
    layers, experts = place.shape
    gpus = len(weight)
    cost = np.zeros((layers, experts, gpus))
    loads = np.zeros((layers, gpus))
    for l in range(layers):
        host_costs(flow, place, weight, l, cost)
        for e in range(experts):
            loads[l, place[l, e]] += load[l, e]
    value, least = 0.0, 0.0
    best = place.copy()
    cooling = (cold / hot) ** (1.0 / max(1, steps))
    heat = hot
    for _ in range(steps):
        heat *= cooling
        l = below(random, layers)
        e, f = below(random, experts), below(random, experts)
        a, b = place[l, e], place[l, f]
        if a == b:
            continue
        change = cost[l, e, b] + cost[l, f, a] - cost[l, e, a] - cost[l, f, b]
        if change > 0.0 and random.random() >= np.exp(-change / heat):
            continue
        moved = load[l, f] - load[l, e]
        # An overfull GPU may stay overfull, but no GPU becomes so.
        if (moved > 0.0 and loads[l, a] + moved > most[l]) or (
            moved < 0.0 and loads[l, b] - moved > most[l]
        ):
            continue
        loads[l, a] += moved
        loads[l, b] -= moved
        _exchange(flow, place, weight, cost, l, e, f)
        value += change
        if value < least - 1e-9 * heat:
            least = value
            best[:] = place
    return best


def anneal(
    flow: FloatArray,
    place: IntArray,
    weight: FloatArray,
    load: FloatArray,
    most: FloatArray,
    *,
    steps: int,
    seed: int,
    hot: float,
    cold: float,
) -> IntArray:
    """Return the best plan met on a cooling walk from ``place``.

    Parameters
    ----------
    most : float array, shape (L,)
        Most tokens of a GPU in each layer.
    hot, cold : float
        First and last temperature, in weighted tokens.
    """
    args = (np.ascontiguousarray(flow), place.copy(), np.ascontiguousarray(weight), load, most)
    return np.asarray(_anneal(*args, steps, hot, cold, np.random.default_rng(seed)))
