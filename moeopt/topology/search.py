"""Simulated annealing of copies: relocate one, exchange two, give one to another expert."""

from __future__ import annotations

import time
from collections.abc import Callable

import numba
import numpy as np

from moeopt.topology.data import BoolArray, TopologyData
from moeopt.topology.exact import value_above

#: Proposals a copy, and rounds of equal temperature.
PROPOSALS, ROUNDS = 400, 100

#: Temperatures, as a share of the mean weight times the mean hops.
_HOTTEST, _COLDEST = 5e-2, 2e-3


def anneal(
    data: TopologyData,
    plan: BoolArray,
    *,
    seed: int = 0,
    time_limit_s: float = np.inf,
    stop: Callable[[], bool] = lambda: False,
) -> BoolArray:
    """Search around a plan with copies; return the best of the plan and where the search ends.

    Parameters
    ----------
    plan : bool array, shape (L, E, S)
        Within all limits.
    time_limit_s : float
        The same seed finds the same plan where the time suffices.
    """
    end = time.monotonic() + time_limit_s
    state = _State(data, plan)
    scale = float(data.weight.mean() * data.way.mean())
    rng = np.random.default_rng(seed)
    proposals = -(-PROPOSALS * data.copies // ROUNDS)
    for done in range(ROUNDS):
        if stop() or time.monotonic() > end:
            break
        temperature = scale * _HOTTEST * (_COLDEST / _HOTTEST) ** (done / ROUNDS)
        _propose(*state.arrays, temperature, proposals, int(rng.integers(2**31)))
    _propose(*state.arrays, 0.0, 5 * proposals, int(rng.integers(2**31)))
    found = state.plan
    return found if value_above(data, found) < value_above(data, plan) else plan


class _State:
    """Copies as lists: server of each copy, copies of each expert, room left."""

    def __init__(self, data: TopologyData, plan: BoolArray) -> None:
        layers, experts, servers = plan.shape
        self.shape = plan.shape
        l, e, s = np.nonzero(plan)
        owner = l * experts + e
        self.owner, self.server = owner, s
        hosts = plan.reshape(layers * experts, servers).copy()
        left = data.capacity - plan.sum(axis=(0, 1))
        free = data.capacity_per_layer - plan.sum(axis=1)
        self.hosts = hosts
        self.arrays = (
            self.owner,
            self.server,
            hosts,
            hosts.sum(axis=1),
            left,
            free,
            np.ascontiguousarray(data.way),
            data.share,
            data.weight.ravel(),
            experts,
        )

    @property
    def plan(self) -> BoolArray:
        return self.hosts.reshape(self.shape)


@numba.njit(cache=True)
def _mean(hosts: np.ndarray, way: np.ndarray, share: np.ndarray, out: int, into: int) -> float:
    """Mean hops with the copy on ``out`` gone and one on ``into``; -1 for neither."""
    servers = len(hosts)
    total = 0.0
    for i in range(len(share)):
        least = way[i, into] if into >= 0 else np.inf
        for s in range(servers):
            if hosts[s] and s != out and way[i, s] < least:
                least = way[i, s]
        total += share[i] * least
    return total


@numba.njit(cache=True)
def _propose(
    owner, server, hosts, count, left, free, way, share, weight, experts, temperature, steps, seed
):
    """Propose so many changes, accept by Metropolis."""
    np.random.seed(seed)  # noqa: NPY002 - the generator of compiled code
    copies, servers = len(owner), hosts.shape[1]
    for _ in range(steps):
        c = np.random.randint(copies)  # noqa: NPY002
        x, s = owner[c], server[c]
        l = x // experts
        t = np.random.randint(servers)  # noqa: NPY002
        kind = np.random.randint(3)  # noqa: NPY002
        if kind == 0 and t != s and not hosts[x, t] and left[t] > 0 and free[l, t] > 0:
            change = _mean(hosts[x], way[l], share, s, t) - _mean(hosts[x], way[l], share, -1, -1)
            if _accept(weight[x] * change, temperature):
                hosts[x, s], hosts[x, t] = False, True
                server[c] = t
                left[s] += 1
                left[t] -= 1
                free[l, s] += 1
                free[l, t] -= 1
        elif kind == 1:
            d = np.random.randint(copies)  # noqa: NPY002
            y, t = owner[d], server[d]
            if y == x or t == s or hosts[x, t] or hosts[y, s]:
                continue
            m = y // experts
            if m != l and (free[l, t] < 1 or free[m, s] < 1):
                continue
            change = weight[x] * (
                _mean(hosts[x], way[l], share, s, t) - _mean(hosts[x], way[l], share, -1, -1)
            ) + weight[y] * (
                _mean(hosts[y], way[m], share, t, s) - _mean(hosts[y], way[m], share, -1, -1)
            )
            if _accept(change, temperature):
                hosts[x, s], hosts[x, t] = False, True
                hosts[y, t], hosts[y, s] = False, True
                server[c], server[d] = t, s
                free[l, s] += 1
                free[l, t] -= 1
                free[m, t] += 1
                free[m, s] -= 1
        elif kind == 2 and count[x] > 1:
            y = owner[np.random.randint(copies)]  # noqa: NPY002
            if y == x:
                continue
            if np.random.random() < 0.5:  # noqa: NPY002
                t = s
            m = y // experts
            if hosts[y, t] or (t != s and left[t] < 1):
                continue
            if free[m, t] < 1 and not (t == s and m == l):
                continue
            change = weight[x] * (
                _mean(hosts[x], way[l], share, s, -1) - _mean(hosts[x], way[l], share, -1, -1)
            ) + weight[y] * (
                _mean(hosts[y], way[m], share, -1, t) - _mean(hosts[y], way[m], share, -1, -1)
            )
            if _accept(change, temperature):
                hosts[x, s], hosts[y, t] = False, True
                owner[c], server[c] = y, t
                count[x] -= 1
                count[y] += 1
                left[s] += 1
                left[t] -= 1
                free[l, s] += 1
                free[m, t] -= 1


@numba.njit(cache=True)
def _accept(change: float, temperature: float) -> bool:
    if change <= 0.0:
        return True
    return temperature > 0.0 and np.random.random() < np.exp(-change / temperature)  # noqa: NPY002
