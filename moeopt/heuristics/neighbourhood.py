"""Large neighbourhoods for the ``unit`` form: free the contents of a few GPUs, plan them anew.

*Split* (single copies, one layer): the experts of two GPUs are dealt out again in the best of all
ways. For scenarios S let a be the number of freed experts in it and m the largest count on the
other GPUs: a split that gives one GPU the set A costs ``max(m, |S ∩ A|, a − |S ∩ A|)``. Scenarios
with the same freed experts and m are merged; all C(2c, c)/2 splits (equal counts; 6,435 for
c = 8) are evaluated.

*Free* (also replicas, and several layers): a few GPUs are annealed at a low temperature while the
others stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from numba import njit

from moeopt.heuristics.anneal_search import Search
from moeopt.heuristics.anneal_times import bit_count
from moeopt.problem import FloatArray, IntArray

#: Most freed experts whose splits are all evaluated.
SPLIT_LIMIT = 18
#: GPUs freed at once, and proposals to plan them anew.
FREE_GPUS = 3
FREE_STEPS = 20_000
#: Freed sets of GPUs without success before the search ends.
PATIENCE = 12
# Temperatures of a low annealing, as shares of the mean change.
_WARM, _COLD = 0.08, 0.004
_LEAST_GAIN = 1e-12


@cache
def _splits(count: int, first: int) -> IntArray:
    """Sets of ``first`` out of ``count`` experts as masks; of equal halves one of each pair."""
    masks = [sum(1 << x for x in chosen) for chosen in combinations(range(count), first)]
    if 2 * first == count:
        masks = [m for m in masks if m & 1]
    return np.array(masks, dtype=np.int64)


@njit(cache=True, nogil=True)
def _split_costs(splits: Any, inside: Any, outer: Any, weight: Any) -> Any:
    """Expected time of every split over the merged scenarios (inside, outer, weight)."""
    costs = np.zeros(len(splits))
    for x in range(len(splits)):
        split = splits[x]
        total = 0.0
        for y in range(len(inside)):
            here = bit_count(inside[y] & split)
            there = bit_count(inside[y] & ~split)
            total += weight[y] * max(outer[y], max(here, there))
        costs[x] = total
    return costs


def split_pair(search: Search, g: int, h: int) -> float:
    """Split the experts of GPUs g and h in the best way; return the gain (0 if there was none).

    Parameters
    ----------
    search : Search
        One layer, single copies.
    g, h : int
        Two GPUs. They keep their numbers of experts; nothing happens if they have more than
        ``SPLIT_LIMIT`` together.
    """
    if search.replicas or len(search.layers) != 1:
        raise ValueError("pairs are split for one layer of single copies")
    plan = search.plan
    cells = np.flatnonzero((plan.gpu == g) | (plan.gpu == h))
    cells = cells[plan.content[cells] >= 0]
    freed = plan.content[cells]
    if not 2 <= len(freed) <= SPLIT_LIMIT:
        return 0.0
    inside, outer, weight = _merged(search, freed, g, h)
    on_g = int((plan.gpu[cells] == g).sum())
    # The split as it is: bit x of a mask is freed expert x.
    now = int((1 << np.flatnonzero(plan.gpu[cells] == g)).sum())
    splits = np.concatenate([[now], _splits(len(freed), on_g)])
    costs = _split_costs(splits.astype(np.uint64), inside.astype(np.uint64), outer, weight)
    x = int(costs.argmin())
    gain = float(costs[0] - costs[x])
    if gain <= _LEAST_GAIN:
        return 0.0
    chosen = (splits[x] >> np.arange(len(freed)) & 1).astype(bool)
    content = plan.content.copy()
    content[cells[plan.gpu[cells] == g]] = freed[chosen]
    content[cells[plan.gpu[cells] == h]] = freed[~chosen]
    search.restore(content)
    return gain


def _merged(
    search: Search, freed: IntArray, g: int, h: int
) -> tuple[IntArray, IntArray, FloatArray]:
    """Scenarios with freed experts, as (mask of these, largest other count, weight), merged."""
    plan, rows = search.plan, search.rows
    bit = np.zeros(search.experts + 1, dtype=np.int64)  # the last for the padding −1
    bit[freed] = 1 << np.arange(len(freed), dtype=np.int64)
    inside = bit[rows.member].sum(axis=1)
    others = np.ones(search.gpus, dtype=bool)
    others[[g, h]] = False
    outer = plan.count[:, : search.gpus][:, others].max(axis=1, initial=0).astype(np.int64)
    width = 1 << 10
    keys, where = np.unique(inside * width + outer, return_inverse=True)
    weight = np.bincount(where, rows.weight, len(keys))
    touched = keys >= width
    merged = (keys // width)[touched], (keys % width)[touched], weight[touched]
    return merged  # type: ignore[return-value]


def split_all(
    search: Search,
    *,
    deadline: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """Split pairs until none gains; return the value. Unchanged pairs are not repeated."""
    stale = np.ones(search.gpus, dtype=bool)
    while stale.any() and not stop() and time.monotonic() < deadline:
        changed = np.zeros(search.gpus, dtype=bool)
        for g, h in combinations(range(search.gpus), 2):
            late = time.monotonic() >= deadline
            if not late and (stale | changed)[[g, h]].any() and split_pair(search, g, h) > 0:
                changed[[g, h]] = True
        stale = changed
    return search.value


def improve(
    search: Search,
    *,
    patience: int = PATIENCE,
    deadline: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """Free the GPUs again and again, from the plan that ``search`` holds; return the best value.

    Parameters
    ----------
    patience : int
        Freed sets without success after which it ends.
    """
    single = not search.replicas and len(search.layers) == 1
    if single:
        split_all(search, deadline=deadline, stop=stop)
    if search.gpus <= FREE_GPUS:
        return search.value
    rng = np.random.default_rng(search.random)
    best_content, best, failed = search.plan.content.copy(), search.value, 0
    scale = search.scale()
    while failed < patience and scale > 0.0 and not stop() and time.monotonic() < deadline:
        free = np.zeros(search.gpus, dtype=bool)
        free[rng.choice(search.gpus, FREE_GPUS, replace=False)] = True
        search.cool(
            FREE_STEPS, _WARM * scale, _COLD * scale, open_gpus=free, deadline=deadline, stop=stop
        )
        if search.value < best - _LEAST_GAIN:
            search.descend()
            if single:
                split_all(search, deadline=deadline, stop=stop)
            best_content[:], best, failed = search.plan.content, search.value, 0
        else:
            failed += 1
            search.restore(best_content)
    return search.restore(best_content)
