"""Compiled annealing of ``intra``: two experts of a layer exchange their GPUs.

``on_gpu[s, g]`` and ``on_node[s, n]`` count the experts of scenario s there; an exchange looks at
the scenarios that have exactly one of the two experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.affinity.data import AffinityData, IntArray
from moeopt.balance.state import below
from moeopt.problem import Scenarios

#: First temperature as a share of ``far``, and last as a share of the first.
HOT, COLD = 0.1, 0.002


@njit(cache=True, nogil=True)
def _moves(
    on_gpu: Any, on_node: Any, node: Any, s: int, a: int, b: int, near: Any, far: Any
) -> Any:
    """Change of the cost of scenario s when one of its experts goes from a to b."""
    gpus = np.int64(on_gpu[s, b] == 0) - np.int64(on_gpu[s, a] == 1)
    nodes = np.int64(0)
    if node[a] != node[b]:
        nodes = np.int64(on_node[s, node[b]] == 0) - np.int64(on_node[s, node[a]] == 1)
    return near * (gpus - nodes) + far * nodes


@njit(cache=True, nogil=True)
def _count(
    on_gpu: Any, on_node: Any, node: Any, first: Any, member: Any, e: int, g: int, by: int
) -> None:
    """Add ``by`` to what the scenarios of expert e have on GPU g and on its node."""
    for i in range(first[e], first[e + 1]):
        on_gpu[member[i], g] += by
        on_node[member[i], node[g]] += by


@njit(cache=True, nogil=True)
def _anneal(
    first: Any,
    member: Any,
    has: Any,
    share: Any,
    place: Any,
    node: Any,
    near: float,
    far: float,
    load: Any,
    most: float,
    steps: int,
    hot: float,
    cold: float,
    random: Any,
) -> Any:
    experts, gpus, count = len(place), len(node), len(share)
    on_gpu = np.zeros((count, gpus), dtype=np.int8)
    on_node = np.zeros((count, node[-1] + 1), dtype=np.int8)
    loads = np.zeros(gpus)
    for e in range(experts):
        loads[place[e]] += load[e]
        _count(on_gpu, on_node, node, first, member, e, place[e], 1)
    value, least = 0.0, 0.0
    best = place.copy()
    cooling = (cold / hot) ** (1.0 / max(1, steps))
    heat = hot
    for _ in range(steps):
        heat *= cooling
        e, f = below(random, experts), below(random, experts)
        a, b = place[e], place[f]
        if a == b:
            continue
        moved = load[f] - load[e]
        if (moved > 0.0 and loads[a] + moved > most) or (moved < 0.0 and loads[b] - moved > most):
            continue
        change = 0.0
        for i in range(first[e], first[e + 1]):
            s = member[i]
            if not has[f, s]:
                change += share[s] * _moves(on_gpu, on_node, node, s, a, b, near, far)
        for i in range(first[f], first[f + 1]):
            s = member[i]
            if not has[e, s]:
                change += share[s] * _moves(on_gpu, on_node, node, s, b, a, near, far)
        if change > 0.0 and random.random() >= np.exp(-change / heat):
            continue
        loads[a] += moved
        loads[b] -= moved
        place[e], place[f] = b, a
        _count(on_gpu, on_node, node, first, member, e, a, -1)
        _count(on_gpu, on_node, node, first, member, e, b, 1)
        _count(on_gpu, on_node, node, first, member, f, b, -1)
        _count(on_gpu, on_node, node, first, member, f, a, 1)
        value += change
        if value < least - 1e-9 * heat:
            least = value
            best[:] = place
    return best


def anneal_touch(
    data: AffinityData, l: int, row: IntArray, most: float, *, steps: int, seed: int
) -> IntArray:
    """Return the best row of GPUs met for layer l on a cooling walk from ``row``, shape (E,)."""
    scenarios: Scenarios = data.scenarios[l]
    scenario = np.repeat(np.arange(len(scenarios)), scenarios.sizes)
    order = np.argsort(scenarios.expert, kind="stable")
    first = np.searchsorted(scenarios.expert[order], np.arange(data.experts + 1))
    has = np.zeros((data.experts, len(scenarios)), dtype=bool)
    has[scenarios.expert, scenario] = True
    hot = max(data.far, 1e-9) * HOT
    return np.asarray(
        _anneal(
            first,
            scenario[order],
            has,
            scenarios.weight,
            row.copy(),
            data.node,
            data.near,
            data.far,
            data.load[l],
            most,
            steps,
            hot,
            hot * COLD,
            np.random.default_rng(seed),
        )
    )
