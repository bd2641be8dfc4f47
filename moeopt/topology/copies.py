"""Copies beyond one of each expert: the greedy plan, with its guarantee, and a search behind it.

The saving of a set of copies added to given first copies is monotone and submodular: a token goes
to the nearest copy. Places of a layer on a server, places on a server and the copies allowed are
nested limits, a matroid: the greedy choice saves at least 1/2 of what any other choice of copies
saves over the same first copies (Fisher, Nemhauser, Wolsey 1978), and at least 1 − 1/e of it where
only the number of copies limits (Nemhauser, Wolsey, Fisher 1978). It says nothing about the choice
of the first copies; that is for the search, and for the lower bound.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numba
import numpy as np

from moeopt.topology.data import BoolArray, TopologyData


def add_greedily(data: TopologyData, plan: BoolArray) -> BoolArray:
    """Add the copy with the largest saving, again and again, as long as one saves anything.

    Parameters
    ----------
    plan : bool array, shape (L, E, S)
        First copies.
    """
    return _greedy(
        plan.copy(), data.way, data.share, data.weight, data.capacity, data.capacity_per_layer,
        data.copies,
    )  # fmt: skip


@numba.njit(cache=True)
def _greedy(
    plan: np.ndarray,
    way: np.ndarray,
    share: np.ndarray,
    weight: np.ndarray,
    capacity: np.ndarray,
    capacity_per_layer: np.ndarray,
    copies: int,
) -> np.ndarray:
    layers, experts, servers = plan.shape
    streams = way.shape[1]
    nearest = np.empty((layers, experts, streams))
    in_layer = np.zeros((layers, servers), dtype=np.int64)
    held = np.zeros(servers, dtype=np.int64)
    total = 0
    for l, e in np.ndindex(layers, experts):
        for i in range(streams):
            nearest[l, e, i] = np.inf
        for s in range(servers):
            if plan[l, e, s]:
                in_layer[l, s] += 1
                held[s] += 1
                total += 1
                for i in range(streams):
                    nearest[l, e, i] = min(nearest[l, e, i], way[l, i, s])
    # Savings only shrink: one that is still the largest after it is computed anew is the largest.
    heap = [
        (-_saving(nearest[l, e], way[l], share, weight[l, e], s), l, e, s)
        for l in range(layers)
        for e in range(experts)
        for s in range(servers)
    ]
    heapify(heap)
    while len(heap) > 0 and total < copies:
        _, l, e, s = heappop(heap)
        if plan[l, e, s] or held[s] >= capacity[s] or in_layer[l, s] >= capacity_per_layer[s]:
            continue
        saving = _saving(nearest[l, e], way[l], share, weight[l, e], s)
        if saving <= 0.0:
            continue
        if len(heap) > 0 and saving < -heap[0][0]:
            heappush(heap, (-saving, l, e, s))
            continue
        plan[l, e, s] = True
        in_layer[l, s] += 1
        held[s] += 1
        total += 1
        for i in range(streams):
            nearest[l, e, i] = min(nearest[l, e, i], way[l, i, s])
    return plan


@numba.njit(cache=True)
def _saving(
    nearest: np.ndarray, way: np.ndarray, share: np.ndarray, weight: float, s: int
) -> float:
    total = 0.0
    for i in range(len(share)):
        total += share[i] * max(0.0, nearest[i] - way[i, s])
    return weight * total
