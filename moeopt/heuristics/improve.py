"""The ``unit`` form: simple plans, then annealing, then large neighbourhoods; the best of all.

The annealing repeats its runs until they agree, so most layers end long before their time; the
neighbourhoods then try to improve what they agreed on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from moeopt.heuristics import neighbourhood
from moeopt.heuristics.anneal import exact_value, plan_value, run, shares_memory
from moeopt.heuristics.anneal_search import Search
from moeopt.heuristics.capacity import room, slots
from moeopt.heuristics.greedy import GPUS_LIMIT, greedy
from moeopt.problem import IntArray, ProblemData

BoolArray = npt.NDArray[np.bool_]


def improve_unit(
    data: ProblemData,
    starts: Sequence[BoolArray],
    *,
    replicas: bool,
    seed: int = 0,
    time_limit_s: float | None = None,
    iterations: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BoolArray | None:
    """Improve the best of some plans and of the published greedy.

    Parameters
    ----------
    starts : sequence of bool arrays, shape (L, E, G)
        Plans that fit.
    replicas : bool
        Whether an expert may have several copies.
    time_limit_s : float, optional
        For all layers together; the greedy is not interrupted by it.
    iterations : int, optional
        Proposals of the annealing for each layer. Without a time limit the result depends on the
        seed alone.

    Returns
    -------
    bool array, shape (L, E, G), or None
        None if there is no start and the greedy finds no room.
    """
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    plans = list(starts)
    if data.gpus <= GPUS_LIMIT:
        made = greedy(data, replicas=replicas, stop=stop)
        if made is not None:
            plans.append(made)
    if not plans:
        return None
    if shares_memory(data):
        best = min(plans, key=lambda hosts: plan_value(data, hosts))
        total = None if iterations is None else iterations * data.layers
        found = _improve(
            data, range(data.layers), best, room(data), replicas, seed, deadline, total, stop
        )
        return found if plan_value(data, found) < plan_value(data, best) else best
    threads = max(1, min(data.layers, len(os.sched_getaffinity(0))))
    seeds = np.random.SeedSequence(seed).generate_state(data.layers)
    per_layer = np.full(data.gpus, min(slots(data), data.experts))

    def one(l: int) -> BoolArray:
        before = min((plan[l] for plan in plans), key=lambda h: exact_value(data.scenarios[l], h))
        left = deadline - time.monotonic()
        if left <= 0 or stop():
            return before
        until = time.monotonic() + min(left, left * threads / (data.layers - l))
        after = _improve(
            data,
            range(l, l + 1),
            before[None],
            per_layer,
            replicas,
            int(seeds[l]),
            until,
            iterations,
            stop,
        )[0]
        values = [exact_value(data.scenarios[l], h) for h in (before, after)]
        return after if values[1] < values[0] else before

    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(one, range(data.layers))))


def _improve(
    data: ProblemData,
    layers: range,
    hosts: BoolArray,
    cells: IntArray,
    replicas: bool,
    seed: int,
    deadline: float,
    iterations: int | None,
    stop: Callable[[], bool],
) -> BoolArray:
    """Anneal some layers, then free GPUs until nothing more is gained."""
    search = Search(
        data.scenarios[layers.start : layers.stop],
        data.experts,
        data.gpus,
        min(slots(data), data.experts),
        cells,
        replicas=replicas,
        seed=seed,
    )
    search.load(hosts)
    left = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
    run(search, time_limit_s=left, iterations=iterations, stop=stop)
    if search.value > search.least:
        neighbourhood.improve(search, deadline=deadline, stop=stop)
    return search.hosts()
