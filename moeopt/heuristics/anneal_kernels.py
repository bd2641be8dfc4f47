"""Compiled search for the ``unit`` form: annealing and descent over the moves of ``anneal_plan``.

Random numbers are the kernels' own (xorshift64*): a seed gives the same run everywhere.

numba's cache of this file does not notice changes of ``anneal_plan`` or ``anneal_times``: after
editing one of them, touch this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.heuristics.anneal_plan import apply, can_replace, can_swap, change

#: Smaller improvements of the expected time are rounding.
LEAST_GAIN = 1e-12
_NONE, _SWAP, _REPLACE = 0, 1, 2


@njit(cache=True, nogil=True)
def _next(random: Any) -> Any:
    x = random[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    random[0] = x
    return x * np.uint64(2685821657736338717)


@njit(cache=True, nogil=True)
def _below(random: Any, n: int) -> Any:
    return np.int64(((_next(random) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@njit(cache=True, nogil=True)
def _real(random: Any) -> Any:
    return np.float64(_next(random) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True)
def _propose(rows: Any, plan: Any, replicas: bool, cells: Any, is_open: Any, random: Any) -> Any:
    """Return a random move (kind, cell, other cell or −1, expert or −1)."""
    c = cells[_below(random, len(cells))]
    i = plan.content[c]
    layers = plan.used.shape[0]
    # With several layers an expert of the same layer, mostly: others only exchange room.
    layer = i // rows.experts if i >= 0 and _real(random) < 0.75 else _below(random, layers)
    e = layer * rows.experts + _below(random, rows.experts)
    if replicas and _real(random) < 0.5:
        if can_replace(rows, plan, c, e):
            return _REPLACE, c, -1, e
        return _NONE, c, -1, -1
    if layers == 1 or (i >= 0 and _real(random) < 0.1):
        d = cells[_below(random, len(cells))]
    else:
        gpus = plan.cell.shape[1]
        h = _below(random, gpus)
        while plan.cell[e, h] < 0:
            h = h + 1 if h + 1 < gpus else 0
        d = plan.cell[e, h]
        if not is_open[h]:
            return _NONE, c, -1, -1
    if can_swap(rows, plan, c, d):
        return _SWAP, c, d, -1
    return _NONE, c, -1, -1


@njit(cache=True, nogil=True)
def mean_change(
    rows: Any,
    plan: Any,
    replicas: bool,
    cells: Any,
    is_open: Any,
    tries: int,
    random: Any,
    work: Any,
) -> float:
    """Mean size of the changes of random moves, those without any left out; 0 if there are none."""
    total, found = 0.0, 0
    for _ in range(tries):
        kind, c, d, j = _propose(rows, plan, replicas, cells, is_open, random)
        if kind != _NONE:
            delta = abs(change(rows, plan, replicas, c, d, j, work))
            if delta > LEAST_GAIN:
                total += delta
                found += 1
    return total / found if found else 0.0


@njit(cache=True, nogil=True)
def anneal_steps(
    rows: Any,
    plan: Any,
    replicas: bool,
    cells: Any,
    is_open: Any,
    steps: int,
    hot: float,
    cold: float,
    value: float,
    best: float,
    best_content: Any,
    random: Any,
    work: Any,
) -> Any:
    """Make ``steps`` proposals at temperatures from ``hot`` to ``cold``; return (value, best)."""
    temperature = hot
    factor = (cold / hot) ** (1.0 / steps)
    for _ in range(steps):
        temperature *= factor
        kind, c, d, j = _propose(rows, plan, replicas, cells, is_open, random)
        if kind == _NONE:
            continue
        delta = change(rows, plan, replicas, c, d, j, work)
        if delta < -temperature * np.log(1.0 - _real(random)):
            apply(rows, plan, replicas, c, d, j, work)
            value += delta
            if value < best - LEAST_GAIN:
                best = value
                best_content[:] = plan.content
    return value, best


@njit(cache=True, nogil=True)
def descend(rows: Any, plan: Any, replicas: bool, cells: Any, most: int, work: Any) -> Any:
    """Take improving moves until there is none; return (change of the value, moves evaluated).

    It ends early after evaluating ``most`` moves.
    """
    total, tried = 0.0, 0
    better = True
    while better and tried < most:
        better = False
        for a in range(len(cells)):
            c = cells[a]
            for b in range(a + 1, len(cells)):
                d = cells[b]
                if can_swap(rows, plan, c, d):
                    tried += 1
                    delta = change(rows, plan, replicas, c, d, -1, work)
                    if delta < -LEAST_GAIN:
                        apply(rows, plan, replicas, c, d, -1, work)
                        total += delta
                        better = True
            if replicas:
                for j in range(len(plan.mask)):
                    if can_replace(rows, plan, c, j):
                        tried += 1
                        delta = change(rows, plan, replicas, c, -1, j, work)
                        if delta < -LEAST_GAIN:
                            apply(rows, plan, replicas, c, -1, j, work)
                            total += delta
                            better = True
            if tried >= most:
                break
    return total, tried
