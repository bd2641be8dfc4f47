"""All small sets of servers of one expert, looked at one by one: what they cost at given rents."""

from __future__ import annotations

import math

import numba
import numpy as np

from moeopt.topology.data import IntArray

#: Sets of servers that are looked at, at most, for the layers of one group.
MOST_SETS = 70_000


def largest_size(servers: int) -> int:
    """Return the size up to which all sets are looked at: all sizes where servers are few."""
    sets, size = 0, 0
    while size < servers and sets + math.comb(servers, size + 1) <= MOST_SETS:
        size += 1
        sets += math.comb(servers, size)
    return max(1, size)


@numba.njit(cache=True)
def least_of_small_sets(way: IntArray, rent: IntArray, knots: IntArray, largest: int) -> IntArray:
    """Return ``min_A w Σ_i min_(s∈A) way[i,s] + Σ_(s∈A) rent[s]`` over all sets of each size.

    Parameters
    ----------
    way : int array, shape (I, S)
    rent : int array, shape (S,)
    knots : int array, shape (m,)
        The weights w.
    largest : int
        Sizes are 1 to ``largest``.

    Returns
    -------
    int array, shape (m, largest)
    """
    streams, servers = way.shape
    best = np.full((len(knots), largest), np.iinfo(np.int64).max)
    nearest = np.full((largest + 1, streams), np.iinfo(np.int64).max)
    paid = np.zeros(largest + 1, dtype=np.int64)
    chosen = np.full(largest + 1, -1, dtype=np.int64)
    depth = 1
    while depth > 0:
        # The next server at this depth; those before it are in sets that were looked at.
        s = chosen[depth] + 1
        if s >= servers:
            depth -= 1
            continue
        chosen[depth] = s
        paid[depth] = paid[depth - 1] + rent[s]
        hops = 0
        for i in range(streams):
            nearest[depth, i] = min(nearest[depth - 1, i], way[i, s])
            hops += nearest[depth, i]
        for m in range(len(knots)):
            best[m, depth - 1] = min(best[m, depth - 1], knots[m] * hops + paid[depth])
        if depth < largest:
            depth += 1
            chosen[depth] = s
    return best
