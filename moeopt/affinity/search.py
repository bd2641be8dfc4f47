"""Plans for ``affinity``: annealing, then layers that are moved as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment

from moeopt.affinity.anneal import anneal, host_costs
from moeopt.affinity.anneal_touch import anneal_touch
from moeopt.affinity.data import AffinityData, FloatArray, IntArray
from moeopt.affinity.evaluate import evaluate, gpu_loads
from moeopt.affinity.start import start_plan

Stop = Callable[[], bool]

#: Exchanges tried in a walk, for each pair of experts of each layer; a walk is not interrupted.
STEPS_A_PAIR = 400
#: ... of ``intra``, whose steps look at scenarios.
TOUCH_STEPS_A_PAIR, LEAST_TOUCH_STEPS = 20, 5_000
#: Temperatures as shares of the mean tokens of an expert and GPU: groups of experts that follow
#: each other through many layers only change places while it is hot.
_HOT, _COLD = 4.0, 0.05


def find_plan(
    data: AffinityData,
    *,
    seed: int = 0,
    time_limit_s: float = np.inf,
    rounds: int = 4,
    start: IntArray | None = None,
    stop: Stop = lambda: False,
) -> IntArray | None:
    """Look for a plan, shape (L, E); None if no layer with loads even enough was found.

    Parameters
    ----------
    time_limit_s : float
        Looked at between walks: one of them is always made, unless it is 0.
    rounds : int
        Walks; each starts from the best plan, from half the temperature of the one before.
    start : int array, optional
        A plan with loads even enough.
    """
    begin = time.monotonic()
    best = start_plan(data) if start is None else start
    if best is None or time_limit_s <= 0:
        return best

    def late() -> bool:
        return stop() or time.monotonic() - begin > time_limit_s

    if data.kind == "intra":
        return _touch_plan(data, best, seed, rounds, late)
    value = evaluate(data, best).objective
    for turn in range(rounds):
        if turn and late():
            break
        place = polish(data, walk(data, best, seed + turn, 0.6**turn))
        found = evaluate(data, place).objective
        if found < value:
            best, value = place, found
    return best


def walk(data: AffinityData, place: IntArray, seed: int, heat: float) -> IntArray:
    """Anneal ``inter`` from a plan; ``heat`` 1 forgets where it started."""
    if not data.flow.any():
        return place
    hot, cold = temperatures(data.flow, data.far, data.gpus)
    return anneal(
        data.flow,
        place,
        data.weight,
        data.load,
        data.most_load,
        steps=STEPS_A_PAIR * data.experts**2 * data.layers,
        seed=seed,
        hot=hot * heat,
        cold=cold,
    )


def temperatures(flow: FloatArray, far: float, gpus: int) -> tuple[float, float]:
    """First and last temperature for these tokens, shape (S, E, E), and their largest weight."""
    scale = far * float(flow.sum()) / (len(flow) * flow.shape[1] * gpus)
    return scale * _HOT, scale * _COLD


def polish(data: AffinityData, place: IntArray) -> IntArray:
    """Move whole layers, then whole ends of the chain, while that helps."""
    value = evaluate(data, place).objective
    while True:
        place = sweep(data, relabel(data, place))
        found = evaluate(data, place).objective
        if found >= value:
            return place
        value = found


def relabel(data: AffinityData, place: IntArray) -> IntArray:
    """Rename the GPUs of each layer and all after it: the best way, for the groups as they are.

    Names change inside nodes, and nodes as a whole; that is exact for equal nodes (others stay).
    """
    if not data.even_nodes:
        return place
    place = place.copy()
    nodes, inside = data.nodes, data.gpus // data.nodes
    for l, flow in enumerate(data.flow):
        kept = np.zeros((data.gpus, data.gpus))
        np.add.at(kept, (place[l][:, None], place[l + 1]), flow)
        blocks = kept.reshape(nodes, inside, nodes, inside).swapaxes(1, 2)
        worth = (data.far - data.near) * blocks.sum(axis=(2, 3))
        chosen = np.zeros((nodes, nodes, inside), dtype=np.int64)
        for m, n in np.ndindex(nodes, nodes):
            here, there = linear_sum_assignment(-blocks[m, n])
            worth[m, n] += data.near * blocks[m, n][here, there].sum()
            chosen[m, n, there] = here
        name = np.empty(data.gpus, dtype=np.int64)
        for m, n in zip(*linear_sum_assignment(-worth), strict=True):
            name[n * inside : (n + 1) * inside] = m * inside + chosen[m, n]
        place[l + 1 :] = name[place[l + 1 :]]
    return place


def sweep(data: AffinityData, place: IntArray) -> IntArray:
    """Move whole layers while that helps: each is an assignment of experts to slots.

    Exact for a layer between two layers that stay. A move that breaks the largest load is left.
    """
    place, weight, most = place.copy(), data.weight, data.most_load
    cost = np.zeros((data.layers, data.experts, data.gpus))
    slots = np.repeat(np.arange(data.gpus), data.size)
    gained = True
    while gained:
        gained = False
        for l in range(data.layers):
            host_costs(data.flow, place, weight, l, cost)
            experts, chosen = linear_sum_assignment(cost[l][:, slots])
            row = np.empty(data.experts, dtype=np.int64)
            row[experts] = slots[chosen]
            every = np.arange(data.experts)
            before, after = cost[l, every, place[l]].sum(), cost[l, every, row].sum()
            loads = np.bincount(row, weights=data.load[l], minlength=data.gpus)
            if after < before * (1 - 1e-12) and loads.max() <= most[l]:
                place[l], gained = row, True
    return place


def _touch_plan(data: AffinityData, best: IntArray, seed: int, rounds: int, late: Stop) -> IntArray:
    """Anneal ``intra`` layer by layer: layers have nothing in common."""
    best = best.copy()
    steps = max(LEAST_TOUCH_STEPS, TOUCH_STEPS_A_PAIR * data.experts**2)
    for turn in range(rounds):
        for l, most in enumerate(data.most_load.tolist()):
            if (turn or l) and late():
                return best
            row = anneal_touch(data, l, best[l], most, steps=steps, seed=seed + turn)
            plan = best.copy()
            plan[l] = row
            if evaluate(data, plan).costs[l] < evaluate(data, best).costs[l]:
                best = plan
    return best


def within(data: AffinityData, place: IntArray) -> bool:
    """Whether no GPU has more tokens than allowed."""
    return bool((gpu_loads(data, place).max(axis=1) <= data.most_load).all())
