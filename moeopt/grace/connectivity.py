"""Groups that few tokens leave: annealing of the expected transmissions, loads under a limit.

Where homes are equally likely, a token that uses the experts S is sent, under hierarchical
communication, to ``(1 − 1/N)`` of the nodes that hold an expert of S and, in each of them, to
``(1 − 1/H)`` of the GPUs that do (H: GPUs of a node): its home, or the GPU that received it for the
node, needs no copy. The expected cost of a grouping is therefore a weighted hypergraph
connectivity, ``Σ_S w_S (a · nodes(S) + b · GPUs(S))``, whatever the sizes of the groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numba import njit

from moeopt.balance.state import below
from moeopt.grace.data import IntArray, Nodes, Profile

#: What one more copy to another node costs, where one to a GPU of the same node costs 1.
REMOTE_COST = 10.0
#: Exchanges proposed in a run; runs of a layer, of which the best is kept.
PROPOSALS, RUNS = 20_000, 2
#: Temperatures at the beginning and the end, in mean changes of an exchange.
_HOT, _COLD = 0.5, 0.005
#: All divisions of groups among nodes are tried up to so many groups.
_MOST_GROUPS = 16


@dataclass(frozen=True)
class Effort:
    """How long to search, and what a copy to another node costs."""

    proposals: int = PROPOSALS
    runs: int = RUNS
    remote_cost: float = REMOTE_COST


def prices(nodes: Nodes, remote_cost: float) -> tuple[float, float]:
    """Cost of a node, and of a GPU, that holds an expert of a token: a and b."""
    return remote_cost * (1 - 1 / nodes.count), 1 - 1 / nodes.gpus_per_node


def expected_cost(
    sets: IntArray, weight: IntArray, gpu: IntArray, nodes: Nodes, remote_cost: float = REMOTE_COST
) -> float:
    """Cost of a grouping (E,) of one layer, summed over its tokens."""
    per_node, per_gpu = prices(nodes, remote_cost)
    used = np.zeros((len(sets), nodes.gpus), dtype=bool)
    np.put_along_axis(used, gpu[sets], True, axis=1)
    touched = used.reshape(len(sets), nodes.count, nodes.gpus_per_node)
    of_set = per_node * touched.any(axis=2).sum(axis=1) + per_gpu * used.sum(axis=1)
    return float(weight @ of_set)


@njit(cache=True, nogil=True)
def _change(
    sets: Any,
    weight: Any,
    rows: Any,
    on_gpu: Any,
    on_node: Any,
    e: int,
    f: int,
    g: int,
    h: int,
    m: int,
    n: int,
    per_node: float,
    per_gpu: float,
    apply: bool,
) -> float:
    """Change of the cost if expert e goes from GPU g (node m) to h (node n), where f stays away."""
    delta = 0.0
    for at in range(len(rows)):
        s = rows[at]
        both = False
        for i in range(sets.shape[1]):
            both = both or sets[s, i] == f
        if both:
            continue
        change = 0.0
        if on_gpu[s, g] == 1:
            change -= per_gpu
        if on_gpu[s, h] == 0:
            change += per_gpu
        if m != n:
            if on_node[s, m] == 1:
                change -= per_node
            if on_node[s, n] == 0:
                change += per_node
        delta += weight[s] * change
        if apply:
            on_gpu[s, g] -= 1
            on_gpu[s, h] += 1
            on_node[s, m] -= 1
            on_node[s, n] += 1
    return delta


@njit(cache=True, nogil=True)
def _anneal(
    sets: Any,
    weight: Any,
    first: Any,
    rows: Any,
    load: Any,
    limit: float,
    node_of: Any,
    gpu: Any,
    per_node: float,
    per_gpu: float,
    proposals: int,
    random: np.random.Generator,
) -> None:
    """Exchange experts of two GPUs; ``gpu`` (E,) becomes the best grouping met."""
    experts, nodes = len(gpu), node_of.max() + 1
    on_gpu = np.zeros((len(sets), len(node_of)), dtype=np.int8)
    on_node = np.zeros((len(sets), nodes), dtype=np.int8)
    loads = np.zeros(len(node_of))
    for s in range(len(sets)):
        for i in range(sets.shape[1]):
            on_gpu[s, gpu[sets[s, i]]] += 1
            on_node[s, node_of[gpu[sets[s, i]]]] += 1
    for e in range(experts):
        loads[gpu[e]] += load[e]
    best, cost, best_cost = gpu.copy(), 0.0, 0.0
    scale, seen, sample = 0.0, 0, min(400, proposals // 10)
    temperature, factor = 0.0, 1.0
    for step in range(proposals):
        if step == sample and seen > 0:
            temperature = _HOT * scale / seen
            factor = (_COLD / _HOT) ** (1.0 / max(1, proposals - sample))
        temperature *= factor
        e, f = below(random, experts), below(random, experts)
        g, h = gpu[e], gpu[f]
        if g == h:
            continue
        move = load[f] - load[e]
        # Loads that were above the limit from the beginning may stay so, but not rise.
        if (loads[g] + move > limit and move > 0) or (loads[h] - move > limit and move < 0):
            continue
        m, n = node_of[g], node_of[h]
        mine, theirs = rows[first[e] : first[e + 1]], rows[first[f] : first[f + 1]]
        delta = _change(
            sets, weight, mine, on_gpu, on_node, e, f, g, h, m, n, per_node, per_gpu, False
        )
        delta += _change(
            sets, weight, theirs, on_gpu, on_node, f, e, h, g, n, m, per_node, per_gpu, False
        )
        if step < sample:
            scale += abs(delta)
            seen += 1
        if delta > 0.0 and (temperature <= 0.0 or random.random() >= np.exp(-delta / temperature)):
            continue
        _change(sets, weight, mine, on_gpu, on_node, e, f, g, h, m, n, per_node, per_gpu, True)
        _change(sets, weight, theirs, on_gpu, on_node, f, e, h, g, n, m, per_node, per_gpu, True)
        gpu[e], gpu[f] = h, g
        loads[g] += move
        loads[h] -= move
        cost += delta
        if cost < best_cost:
            best_cost = cost
            best[:] = gpu
    gpu[:] = best


def anneal_layer(
    profile: Profile, l: int, start: IntArray, nodes: Nodes, limit: float, effort: Effort, seed: int
) -> IntArray:
    """Improve the grouping (E,) of a layer; the sizes of its groups stay.

    Parameters
    ----------
    start : int array, shape (E,)
        GPU of each expert.
    limit : float
        Largest load of a GPU, in tokens of the profile; infinite: none. No exchange lifts a load
        above it.

    Returns
    -------
    int array, shape (E,)
        Never dearer than ``start``.
    """
    sets, weight = profile.sets[l], profile.weight[l].astype(np.float64)
    order = np.argsort(sets, axis=None, kind="stable")
    first = np.searchsorted(sets.ravel()[order], np.arange(profile.experts + 1))
    best, least = start, expected_cost(sets, profile.weight[l], start, nodes, effort.remote_cost)
    for run in range(effort.runs):
        gpu = start.astype(np.int64).copy()
        _anneal(
            sets,
            weight,
            first,
            order // sets.shape[1],
            profile.load[l].astype(np.float64),
            limit,
            nodes.node_of,
            gpu,
            *prices(nodes, effort.remote_cost),
            effort.proposals,
            np.random.default_rng([seed, l, run]),
        )
        cost = expected_cost(sets, profile.weight[l], gpu, nodes, effort.remote_cost)
        if cost < least:
            best, least = gpu, cost
    return best


def into_nodes(profile: Profile, l: int, gpu: IntArray, nodes: Nodes) -> IntArray:
    """Rename the GPUs of a grouping (E,) so that groups used together are on one node.

    The division of the groups among the nodes is the best one, by the tokens of the profile, where
    there are two nodes and at most 16 groups; else nodes are filled one after the other, each with
    the groups that share most tokens with those on it.
    """
    used = np.zeros((len(profile.sets[l]), nodes.gpus), dtype=bool)
    np.put_along_axis(used, gpu[profile.sets[l]], True, axis=1)
    weight = profile.weight[l]
    size, left = nodes.gpus_per_node, list(range(nodes.gpus))
    if nodes.count == 2 and nodes.gpus <= _MOST_GROUPS:

        def both(half: tuple[int, ...]) -> int:
            rest = [g for g in left if g not in half]
            return int(weight @ (used[:, half].any(axis=1) & used[:, rest].any(axis=1)))

        halves = [(0, *rest) for rest in combinations(left[1:], size - 1)]
        chosen = min(halves, key=both)
        order = [*chosen, *(g for g in left if g not in chosen)]
    else:
        together = (used * weight[:, None]).T.astype(np.float64) @ used
        order = []
        while left:
            node = [left.pop(0)]
            while len(node) < size:
                node.append(max(left, key=lambda g: float(together[g, node].sum())))
                left.remove(node[-1])
            order += node
    place = np.empty(nodes.gpus, dtype=np.int64)
    place[order] = np.arange(nodes.gpus)
    return place[gpu]
