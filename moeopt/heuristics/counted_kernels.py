"""Annealing over copies where tokens count, compiled: one layer, scenarios with token counts.

An expert with one copy has its tokens there. The others follow, largest first, each whole to the
copy whose GPU ends earliest; or all of them evenly split, where that is faster. Both are dispatches
that exist, so the time is an upper bound of the layer time; without replicas it is exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from moeopt.dispatch_time import gpu_time

#: Proposals that set the first temperature.
_TRIALS = 60
#: First temperature over the mean change of a trial, last over first.
_HOT, _COLD = 0.5, 2e-3


@njit(cache=True)
def scenario_time(
    s: int, ptr: Any, expert: Any, tokens: Any, hosts: Any, copies: Any,
    base_a: Any, base_n: Any, form: int, cost: Any, a: Any, n: Any,
) -> float:  # fmt: skip
    """Time of scenario s; ``base_a``, ``base_n`` (S, G) hold what experts of one copy bring.

    ``a`` and ``n`` (G,) are overwritten.
    """
    gpus = len(a)
    for g in range(gpus):
        a[g] = base_a[s, g]
        n[g] = base_n[s, g]
    several = False
    for i in range(ptr[s], ptr[s + 1]):
        e = expert[i]
        if copies[e] == 1:
            continue
        several = True
        best, best_time = -1, 0.0
        for g in range(gpus):
            if hosts[e, g]:
                time = gpu_time(form, cost, a[g] + 1.0, n[g] + tokens[i])
                if best < 0 or time < best_time:
                    best, best_time = g, time
        a[best] += 1.0
        n[best] += tokens[i]
    worst = 0.0
    for g in range(gpus):
        worst = max(worst, gpu_time(form, cost, a[g], n[g]))
    if not several or form == 0:
        return worst
    for g in range(gpus):
        a[g] = base_a[s, g]
        n[g] = base_n[s, g]
    for i in range(ptr[s], ptr[s + 1]):
        e = expert[i]
        # A share of less than one token is none: such a split does not exist.
        if copies[e] == 1:
            continue
        if tokens[i] < copies[e]:
            return worst
        for g in range(gpus):
            if hosts[e, g]:
                a[g] += 1.0
                n[g] += math.ceil(tokens[i] / copies[e])
    even = 0.0
    for g in range(gpus):
        even = max(even, gpu_time(form, cost, a[g], n[g]))
    return min(worst, even)


@njit(cache=True)
def all_times(
    ptr: Any, expert: Any, tokens: Any, hosts: Any, copies: Any, base_a: Any, base_n: Any,
    form: int, cost: Any, times: Any,
) -> None:  # fmt: skip
    """Write the time of every scenario to ``times`` (S,)."""
    a, n = np.zeros(hosts.shape[1]), np.zeros(hosts.shape[1])
    for s in range(len(times)):
        times[s] = scenario_time(
            s, ptr, expert, tokens, hosts, copies, base_a, base_n, form, cost, a, n
        )


@njit(cache=True)
def _shift(e: int, g: int, sign: float, first: Any, row: Any, count: Any, a: Any, n: Any) -> None:
    """Put an expert of one copy on a GPU (or take it off)."""
    for i in range(first[e], first[e + 1]):
        a[row[i], g] += sign
        n[row[i], g] += sign * count[i]


@njit(cache=True)
def _only(hosts: Any, e: int) -> int:
    g = 0
    while not hosts[e, g]:
        g += 1
    return g


@njit(cache=True)
def set_copy(
    e: int, g: int, on: bool, first: Any, row: Any, count: Any, hosts: Any, copies: Any,
    base_a: Any, base_n: Any,
) -> None:  # fmt: skip
    """Add a copy of e on g, or take it away; the bases follow."""
    if copies[e] == 1:
        _shift(e, _only(hosts, e), -1.0, first, row, count, base_a, base_n)
    hosts[e, g] = on
    copies[e] += 1 if on else -1
    if copies[e] == 1:
        _shift(e, _only(hosts, e), 1.0, first, row, count, base_a, base_n)


@njit(cache=True)
def retimed(
    e: int, f: int, ptr: Any, expert: Any, tokens: Any, weight: Any, first: Any, row: Any,
    hosts: Any, copies: Any, base_a: Any, base_n: Any, form: int, cost: Any,
    times: Any, fresh: Any, a: Any, n: Any,
) -> float:  # fmt: skip
    """Change of the expected time; ``fresh`` gets the times of scenarios with e or f (or -1)."""
    change = 0.0
    for which in range(2):
        x = e if which == 0 else f
        if x < 0 or (which == 1 and f == e):
            continue
        for i in range(first[x], first[x + 1]):
            s = row[i]
            if fresh[s] >= 0.0:
                continue
            fresh[s] = scenario_time(
                s, ptr, expert, tokens, hosts, copies, base_a, base_n, form, cost, a, n
            )
            change += weight[s] * (fresh[s] - times[s])
    return change


@njit(cache=True)
def _settle(e: int, f: int, first: Any, row: Any, times: Any, fresh: Any, keep: bool) -> None:
    """Take the fresh times over, or forget them."""
    for which in range(2):
        x = e if which == 0 else f
        if x < 0:
            continue
        for i in range(first[x], first[x + 1]):
            s = row[i]
            if fresh[s] >= 0.0:
                if keep:
                    times[s] = fresh[s]
                fresh[s] = -1.0


@njit(cache=True)
def copy_gains(
    candidates: Any, ptr: Any, expert: Any, tokens: Any, weight: Any, first: Any, row: Any,
    count: Any, hosts: Any, copies: Any, base_a: Any, base_n: Any, form: int, cost: Any,
    times: Any, gains: Any,
) -> None:  # fmt: skip
    """Write what one more copy gains, for each (expert, GPU) of ``candidates`` (n, 2)."""
    a, n = np.zeros(hosts.shape[1]), np.zeros(hosts.shape[1])
    fresh = np.full(len(times), -1.0)
    for i in range(len(candidates)):
        e, g = candidates[i, 0], candidates[i, 1]
        set_copy(e, g, True, first, row, count, hosts, copies, base_a, base_n)
        gains[i] = -retimed(
            e, -1, ptr, expert, tokens, weight, first, row, hosts, copies, base_a, base_n,
            form, cost, times, fresh, a, n,
        )  # fmt: skip
        _settle(e, -1, first, row, times, fresh, False)
        set_copy(e, g, False, first, row, count, hosts, copies, base_a, base_n)


@njit(cache=True)
def anneal(
    ptr: Any, expert: Any, tokens: Any, weight: Any, first: Any, row: Any, count: Any,
    hosts: Any, copies: Any, base_a: Any, base_n: Any, times: Any, limit: Any,
    form: int, cost: Any, iterations: int, random: Any, best: Any,
) -> float:  # fmt: skip
    """Anneal ``hosts`` (E, G); return the gain of ``best``, the best hosts met.

    Moves keep what a GPU holds within ``limit`` (G,): two copies change places, a copy moves, or a
    spare copy gives its place to another expert's.
    """
    experts, gpus = hosts.shape
    a, n = np.zeros(gpus), np.zeros(gpus)
    fresh = np.full(len(times), -1.0)
    held = hosts.sum(axis=0)
    now, lowest = 0.0, 0.0
    best[:] = hosts
    total, tried, temperature, cooling = 0.0, 0, 0.0, 1.0
    for step in range(iterations + _TRIALS):
        trial = step < _TRIALS
        if step == _TRIALS:
            temperature = _HOT * total / max(tried, 1)
            if temperature <= 0.0:
                return 0.0
            cooling = _COLD ** (1.0 / max(iterations, 1))
        temperature *= cooling
        e, f = random.integers(0, experts), random.integers(0, experts)
        g, h = random.integers(0, gpus), random.integers(0, gpus)
        if not hosts[e, g] or e == f:
            continue
        # e leaves g, for h or for good; f, if any, comes to g, from h or as one more copy.
        if hosts[f, h] and not hosts[f, g] and not hosts[e, h]:
            kind = 0
        elif g != h and not hosts[e, h] and held[h] < limit[h]:
            kind, f = 1, -1
        elif copies[e] > 1 and not hosts[f, g]:
            kind = 2
        else:
            continue
        if kind < 2:
            set_copy(e, h, True, first, row, count, hosts, copies, base_a, base_n)
        set_copy(e, g, False, first, row, count, hosts, copies, base_a, base_n)
        if f >= 0:
            set_copy(f, g, True, first, row, count, hosts, copies, base_a, base_n)
        if kind == 0:
            set_copy(f, h, False, first, row, count, hosts, copies, base_a, base_n)
        change = retimed(
            e, f, ptr, expert, tokens, weight, first, row, hosts, copies, base_a, base_n,
            form, cost, times, fresh, a, n,
        )  # fmt: skip
        if trial:
            total += abs(change)
            tried += 1
        keep = change <= 0.0 or (not trial and random.random() < math.exp(-change / temperature))
        _settle(e, f, first, row, times, fresh, keep)
        if keep:
            now += change
            if kind == 1:
                held[g] -= 1
                held[h] += 1
            if now < lowest - 1e-12:
                lowest = now
                best[:] = hosts
            continue
        if kind == 0:
            set_copy(f, h, True, first, row, count, hosts, copies, base_a, base_n)
        if f >= 0:
            set_copy(f, g, False, first, row, count, hosts, copies, base_a, base_n)
        set_copy(e, g, True, first, row, count, hosts, copies, base_a, base_n)
        if kind < 2:
            set_copy(e, h, False, first, row, count, hosts, copies, base_a, base_n)
    return -lowest
