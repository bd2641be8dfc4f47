"""``paging``: evictions and a lower bound, without a solver.

Where all loads cost the same both are the offline optimum. Else the evictions are a heuristic's and
the bound adds up optima of the dearer layers.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from moeopt.paging.belady import evictions_by_rank, least_misses
from moeopt.paging.data import PagingData
from moeopt.paging.replay import replay
from moeopt.paging.requests import IntArray


def find_evictions(data: PagingData) -> IntArray:
    """Evictions, rows (request, page): the optimum where all loads cost the same.

    Else the better of two rules: what is next asked for last, whatever it costs, or that among the
    cheapest.

    Raises
    ------
    InputError
        A request asks for more experts than the cache holds.
    """
    whole, _ = data.whole_costs()
    ranks = np.unique(whole, return_inverse=True)[1].astype(np.int64)
    candidates = [np.zeros_like(ranks)] + ([ranks] if ranks.any() else [])
    best, least = None, None
    for rank in candidates:
        found = evictions_by_rank(data.requests, data.cache, rank)
        missed = replay(data.requests, data.cache, found).misses_by_layer(data.requests)
        cost = data.cost(missed)
        if least is None or cost < least:
            best, least = found, cost
    assert best is not None
    return best


def first_loads_bound(data: PagingData) -> Fraction:
    """Cost of loading once every expert that is asked for."""
    return data.cost(data.requests.distinct_by_layer())


def optimum_bound(data: PagingData) -> Fraction:
    """Offline optimum where all loads cost the same, else a lower bound by levels of cost.

    With the distinct costs ``c_1 < c_2 < …`` a load of cost c costs ``Σ_{j: c_j ≤ c} (c_j −
    c_{j−1})``. So the cost of a plan is ``Σ_j (c_j − c_{j−1}) ·`` (its misses of pages of cost at
    least c_j), each at least the fewest such misses of any plan, which is what an eviction of the
    page next asked for last attains where only these pages count (docs/paging.md).

    Raises
    ------
    InputError
        A request asks for more experts than the cache holds.
    """
    whole, unit = data.whole_costs()
    costs = np.array(whole, dtype=object)
    total, before = 0, 0
    for level in sorted(set(whole)):
        counted = np.repeat(costs >= level, data.requests.experts).astype(bool)
        total += (level - before) * least_misses(data.requests, data.cache, counted)
        before = level
    return unit * total
