"""Lower bounds of ``topology`` by counting: no program, no search."""

from __future__ import annotations

import numpy as np

from moeopt.balance.exact import float_below
from moeopt.topology.classes import groups_of
from moeopt.topology.data import IntArray, TopologyData
from moeopt.topology.exact import on_grid
from moeopt.topology.small_sets import largest_size, least_of_small_sets


def copies_are_useless(data: TopologyData) -> bool:
    """Whether a second copy of an expert never serves a token.

    Where all streams of a layer are at the same distance from each server, all tokens of an expert
    go to the same copy; the others may be dropped.
    """
    return data.replicas == 0 or bool((data.way == data.way[:, :1]).all())


def layers_bound(data: TopologyData) -> float | None:
    """Every layer alone: its heaviest experts on its nearest servers, K[s] on each.

    None where copies may be worth something.
    """
    if not copies_are_useless(data):
        return None
    grid = on_grid(data)
    total = 0
    for weight, cost in zip(grid.weight, grid.cost, strict=True):
        nearest = np.argsort(cost, kind="stable")
        places = np.repeat(cost[nearest], data.capacity_per_layer[nearest])
        heaviest = np.sort(weight)[::-1]
        pairs = zip(heaviest.tolist(), places.tolist(), strict=False)  # more places than experts
        total += sum(w * c for w, c in pairs)
    return float_below(total * grid.unit)


def copies_bound(data: TopologyData) -> float | None:
    """So many copies in all, anywhere.

    With n copies a token of a stream needs ``least[n]`` hops at least on average: the smallest over
    all sets of n servers, looked at one by one while they are few. For any rent λ of a copy,
    ``Σ min_n (w least[n] + λ n) − λ N`` is a lower bound; bisection finds a good λ.

    None where copies are worth nothing.
    """
    if copies_are_useless(data):
        return None
    groups, unit = groups_of(data, classes=2)
    tables = [
        (group.weights, _least_hops(group.way, largest_size(data.servers))) for group in groups
    ]
    # All copies of an expert are on different servers.
    number = np.arange(1, data.servers + 1)

    def dual(rent: int) -> tuple[int, int]:
        value, copies = -rent * data.copies, 0
        for weights, least in tables:
            paid = weights[:, None] * least + rent * number
            value += int(paid.min(axis=1).astype(object).sum())
            copies += int(number[paid.argmin(axis=1)].sum())
        return value, copies

    low, high = 0, max(int(weights[-1]) * int(least[0]) for weights, least in tables) + 1
    best = 0
    while high - low > max(1, high >> 20):
        rent = (low + high) // 2
        value, copies = dual(rent)
        best = max(best, value)
        low, high = (rent, high) if copies > data.copies else (low, rent)
    return float_below(best * unit)


def _least_hops(way: IntArray, largest: int) -> IntArray:
    """Smallest sum over the streams for each number of copies, shape (S,)."""
    least = np.full(way.shape[1], int(way.min(axis=1).sum()), dtype=np.int64)
    free = np.zeros(way.shape[1], dtype=np.int64)
    least[:largest] = least_of_small_sets(way, free, np.ones(1, dtype=np.int64), largest)[0]
    return least
