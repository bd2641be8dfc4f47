"""Simulated annealing for ``placement`` and ``replication`` in the ``unit`` form.

Runs start hot, cool geometrically and end in a descent; they are repeated until the same best value
has come out several times, no plan can be better, or time is out. Layers that share no memory are
searched one by one, on as many threads as there are cores; otherwise all of them together.

With a limit on the iterations only (no time limit) the result depends on the seed alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from moeopt import dispatch
from moeopt.heuristics.anneal_search import SCALE_MOVES, Search
from moeopt.heuristics.capacity import room, slots, spread
from moeopt.problem import LayerTime, ProblemData, Scenarios

BoolArray = npt.NDArray[np.bool_]

#: First and last temperature of the runs in turn, as shares of the mean change of a random move:
#: instances differ in which finds the best plan.
SCHEDULES = ((0.1, 0.005), (0.3, 0.015), (0.05, 0.003))
#: Proposals of one run, for each cell (an expert on a GPU).
CELL_STEPS = 6_000
#: Runs that must end at the best value before the search is over: with one copy, with replicas.
AGREEMENTS = (3, 5)
#: Most runs of one layer.
RUNS = 24
_SAME = 1e-9


def run(
    search: Search,
    *,
    time_limit_s: float | None = None,
    iterations: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """Anneal again and again from the loaded plan; end at the best plan, return its value.

    Parameters
    ----------
    iterations : int, optional
        Proposals of all runs together.
    """
    begin = time.monotonic()
    deadline = math.inf if time_limit_s is None else begin + time_limit_s
    search.descend()
    best_content, best = search.plan.content.copy(), search.value
    agreements = AGREEMENTS[search.replicas]
    full = CELL_STEPS * max(len(search.rows.first) - 1, min(len(search.plan.content), 2**10))
    left = RUNS * full if iterations is None else iterations
    found, made = 0, 0
    while left > 0 and found < agreements and best > search.least + _SAME and not stop():
        now = time.monotonic()
        scale = search.scale()
        speed = SCALE_MOVES / max(time.monotonic() - now, 1e-9)
        fitting = min(full, left, speed * (deadline - time.monotonic()))
        # A last run that is much too short only disturbs.
        if scale == 0.0 or fitting < 1 or (made > 0 and fitting < 0.1 * full):
            break
        steps = math.ceil(fitting)
        hot, cold = SCHEDULES[made % len(SCHEDULES)]
        left -= search.cool(steps, hot * scale, cold * scale, deadline=deadline, stop=stop)
        made += 1
        search.descend()
        if search.value < best - _SAME:
            best, found = search.value, 1
            best_content[:] = search.plan.content
        elif search.value < best + _SAME:
            found += 1
    return search.restore(best_content)


def anneal_layer(
    scenarios: Scenarios,
    hosts: BoolArray,
    slots: int,
    *,
    replicas: bool,
    seed: int = 0,
    time_limit_s: float | None = None,
    iterations: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[BoolArray, float]:
    """Anneal one layer whose GPUs are limited by slots.

    Parameters
    ----------
    scenarios : Scenarios
    hosts : bool array, shape (E, G)
        A plan that fits, to be improved.
    slots : int
    replicas : bool
        Whether an expert may have several copies (then G <= 62).
    iterations : int, optional
        Proposals of all runs; without ``time_limit_s`` the result depends on the seed alone.

    Returns
    -------
    hosts : bool array, shape (E, G)
        Never worse than the given.
    value : float
        Its expected layer time, by :func:`moeopt.dispatch.layer_times`.
    """
    experts, gpus = hosts.shape
    search = Search(
        [scenarios],
        experts,
        gpus,
        slots,
        np.full(gpus, slots),
        replicas=replicas,
        seed=seed,
    )
    search.load(hosts[None])
    run(search, time_limit_s=time_limit_s, iterations=iterations, stop=stop)
    found = search.hosts()[0]
    before, after = exact_value(scenarios, hosts), exact_value(scenarios, found)
    return (found, after) if after < before else (hosts.copy(), before)


def exact_value(scenarios: Scenarios, hosts: BoolArray) -> float:
    """Expected layer time of hosts (E, G) in the ``unit`` form."""
    times, _ = dispatch.layer_times(LayerTime(), scenarios, hosts)
    return math.fsum((scenarios.weight * times).tolist())


def shares_memory(data: ProblemData) -> bool:
    """Whether memory can bind before the slots do: then layers cannot be planned apart."""
    return bool((room(data) < data.layers * min(slots(data), data.experts)).any())


def anneal(
    data: ProblemData,
    hosts: BoolArray | None = None,
    *,
    replicas: bool | None = None,
    seed: int = 0,
    time_limit_s: float | None = None,
    iterations: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BoolArray | None:
    """Anneal all layers.

    Parameters
    ----------
    hosts : bool array, shape (L, E, G), optional
        A plan that fits. Default: one copy of every expert, spread evenly.
    replicas : bool, optional
        Default: whether the problem is ``replication``.
    time_limit_s : float, optional
        For all layers together.
    iterations : int, optional
        Proposals for each layer.

    Returns
    -------
    bool array, shape (L, E, G), or None
        Never worse than ``hosts``; None if none were given and none were found.
    """
    if hosts is None:
        hosts = spread(data)
        if hosts is None:
            return None
    many = data.problem == "replication" if replicas is None else replicas
    if shares_memory(data):
        return _anneal_together(data, hosts, many, seed, time_limit_s, iterations, stop)
    threads = max(1, min(data.layers, len(os.sched_getaffinity(0))))
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    seeds = np.random.SeedSequence(seed).generate_state(data.layers)

    def one(l: int) -> BoolArray:
        share = None
        if time_limit_s is not None:  # what is left, over the layers left
            left = max(0.0, deadline - time.monotonic())
            share = min(left, left * threads / (data.layers - l))
        found, _ = anneal_layer(
            data.scenarios[l],
            hosts[l],
            min(slots(data), data.experts),
            replicas=many,
            seed=int(seeds[l]),
            time_limit_s=share,
            iterations=iterations,
            stop=stop,
        )
        return found

    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(one, range(data.layers))))


def _anneal_together(
    data: ProblemData,
    hosts: BoolArray,
    replicas: bool,
    seed: int,
    time_limit_s: float | None,
    iterations: int | None,
    stop: Callable[[], bool],
) -> BoolArray:
    search = Search(
        data.scenarios,
        data.experts,
        data.gpus,
        min(slots(data), data.experts),
        room(data),
        replicas=replicas,
        seed=seed,
    )
    search.load(hosts)
    total = None if iterations is None else iterations * data.layers
    run(search, time_limit_s=time_limit_s, iterations=total, stop=stop)
    found = search.hosts()
    return found if plan_value(data, found) < plan_value(data, hosts) else hosts.copy()


def plan_value(data: ProblemData, hosts: BoolArray) -> float:
    """Expected time of all layers in the ``unit`` form, hosts of shape (L, E, G)."""
    return math.fsum(
        exact_value(scenarios, layer)
        for scenarios, layer in zip(data.scenarios, hosts, strict=True)
    )
