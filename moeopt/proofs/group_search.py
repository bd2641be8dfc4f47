"""Placement without replicas, solved by exhaustion: one layer, few experts, expert-time units.

Depth-first search over partitions of the experts into groups (no GPU labels), in whole numbers, so
that nothing is lost to rounding. Derivation and proof: docs/bounds/group_search.md.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numba
import numpy as np
import numpy.typing as npt

from moeopt.problem import Scenarios

IntArray = npt.NDArray[np.int64]

#: Weights are rounded down to multiples of 2**-GRID_BITS.
GRID_BITS = 50
#: Nodes between two looks at the clock.
NODES_A_PIECE = 500_000
#: Tables over four experts take 8 E**4 bytes.
MOST_EXPERTS = 64


@dataclass(frozen=True)
class GroupSearch:
    """What :func:`group_search` found.

    Attributes
    ----------
    lower : float
        Proved: no placement of the layer is cheaper.
    complete : bool
        Whether the search was exhausted; then no placement is better than ``upper`` or than
        ``hosts``.
    hosts : bool array, shape (E, G), or None
        The best placement found that is better than ``upper``.
    """

    lower: float
    complete: bool
    hosts: npt.NDArray[np.bool_] | None
    nodes: int
    seconds: float


def unsupported(scenarios: Scenarios, experts: int, gpus: int, slots: int) -> str | None:
    """Say why the search cannot take a layer, or None."""
    if int(scenarios.sizes.max(initial=0)) > 4:
        return "scenarios of more than four experts"
    if experts > MOST_EXPERTS:
        return f"more than {MOST_EXPERTS} experts"
    if slots * gpus < experts:
        return f"{gpus} x {slots} slots do not hold {experts} experts"
    return None


def group_search(
    scenarios: Scenarios,
    experts: int,
    gpus: int,
    slots: int,
    *,
    upper: float = math.inf,
    time_limit_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> GroupSearch:
    """Search all placements of one layer that are better than ``upper``.

    Parameters
    ----------
    scenarios : Scenarios
    experts, gpus, slots : int
        ``slots * gpus >= experts``.
    upper : float
        Value of a known placement.

    Raises
    ------
    ValueError
        :func:`unsupported` says why.

    Notes
    -----
    With p rounded down to whole multiples P of 2**-50, the search finds the least
    ``Σ P_S T_S`` among placements below ``upper``, or none. ``Σ P_S T_S · 2**-50`` is at most the
    true value, and below it by less than ``Σ T_S · 2**-50``.
    """
    begin = time.monotonic()
    reason = unsupported(scenarios, experts, gpus, slots)
    if reason is not None:
        raise ValueError(reason)
    whole = np.floor(np.ldexp(scenarios.weight, GRID_BITS)).astype(np.int64)
    # Only values below the upper bound on the grid are looked for: all others are not better.
    # Rounded down, so that what is proved never exceeds the upper bound itself.
    ceiling = 4 * int(whole.sum()) + 1
    if math.isfinite(upper):
        ceiling = min(ceiling, math.floor(Fraction(upper) * 2**GRID_BITS))
    order = _order(scenarios, experts)
    tables = _tables(scenarios, whole, order)
    depths = np.zeros((3, experts + 1), dtype=np.int64)  # groups opened, cost, group tried last
    depths[1, 0], depths[2] = int(whole.sum()), -1
    groups = np.full((gpus, slots), -1, dtype=np.int64)
    sizes, best_group = np.zeros(gpus, dtype=np.int64), np.full(experts, -1, dtype=np.int64)
    counters = np.array([0, ceiling, 0], dtype=np.int64)  # depth, best value so far, nodes
    while counters[0] >= 0 and not stop() and time.monotonic() - begin < time_limit_s:
        _search(*tables, depths, groups, sizes, best_group, counters, NODES_A_PIECE)
    complete = bool(counters[0] < 0)
    hosts = None
    if best_group[0] >= 0:
        hosts = np.zeros((experts, gpus), dtype=np.bool_)
        hosts[order, best_group] = True
    # Placements not seen yet are continuations of a prefix of the current path: of its first one.
    least = int(counters[1]) if complete else min(int(counters[1]), int(depths[1, 0]))
    lower = math.ldexp(least, -GRID_BITS)
    if Fraction(lower) > Fraction(least, 2**GRID_BITS):
        lower = math.nextafter(lower, -math.inf)
    return GroupSearch(lower, complete, hosts, int(counters[2]), time.monotonic() - begin)


def _order(scenarios: Scenarios, experts: int) -> IntArray:
    """Experts by decreasing load: the costly decisions first."""
    load = np.zeros(experts)
    np.add.at(load, scenarios.expert, np.repeat(scenarios.weight, scenarios.sizes))
    return np.argsort(-load, kind="stable")


def _tables(
    scenarios: Scenarios, whole: IntArray, order: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Weight of the scenarios that contain a pair, a triple, a quadruple (in any order)."""
    experts = len(order)
    rank = np.empty(experts, dtype=np.int64)
    rank[order] = np.arange(experts)
    tables = [np.zeros((experts,) * size, dtype=np.int64) for size in (2, 3, 4)]
    for k in range(2, 5):
        rows = np.flatnonzero(scenarios.sizes == k)
        members = rank[scenarios.expert[scenarios.ptr[rows][:, None] + np.arange(k)]]
        for table in tables[: k - 1]:
            for columns in itertools.permutations(range(k), table.ndim):
                np.add.at(table, tuple(members[:, list(columns)].T), whole[rows])
    return tables[0], tables[1], tables[2]


@numba.njit(cache=True)
def _search(pairs, triples, quads, depths, groups, sizes, best_group, counters, nodes):
    """Depth-first search; everything is updated in place. ``counters[0]`` is -1 when exhausted.

    At depth d, experts 0..d-1 are placed in ``opened[d]`` groups, at ``cost[d]``; ``tried[d]`` is
    the group tried last for expert d, -1 for none.
    """
    opened, cost, tried = depths
    experts, (gpus, slots) = len(best_group), groups.shape
    depth, best = counters[0], counters[1]
    end = counters[2] + nodes
    while depth >= 0 and counters[2] < end:
        g = tried[depth]
        if g >= 0:  # take the expert back
            sizes[g] -= 1
        # The next group with room; of the empty ones only the first.
        g += 1
        while g < gpus and g <= opened[depth] and sizes[g] >= slots:
            g += 1
        if g >= gpus or g > opened[depth]:
            tried[depth] = -1
            depth -= 1
            continue
        counters[2] += 1
        total = cost[depth] + _added(pairs, triples, quads, depth, g, opened[depth], groups, sizes)
        tried[depth] = g
        groups[g, sizes[g]] = depth
        sizes[g] += 1
        if total >= best:
            continue
        if depth + 1 == experts:
            best = total
            counters[1] = best
            best_group[:] = tried[:experts]
            continue
        opened[depth + 1] = max(opened[depth], g + 1)
        depth += 1
        cost[depth] = total
    counters[0] = depth


@numba.njit(cache=True)
def _added(pairs, triples, quads, expert, g, opened, groups, sizes):
    """What the time of all scenarios grows by when ``expert`` joins group g."""
    total = 0
    for a in range(sizes[g]):
        i = groups[g, a]
        total += pairs[expert, i]
        for b in range(a):
            j = groups[g, b]
            total -= triples[expert, i, j]
            for d in range(b):
                total += quads[expert, i, j, groups[g, d]]
        for h in range(opened):
            if h != g:
                for b in range(sizes[h]):
                    for d in range(b):
                        total -= quads[expert, i, groups[h, b], groups[h, d]]
    return total
