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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from moeopt import dispatch
from moeopt.heuristics import anneal_kernels as kernels
from moeopt.heuristics.anneal_plan import Plan, Rows, Work, set_up
from moeopt.heuristics.capacity import room, slots, spread
from moeopt.problem import IntArray, LayerTime, ProblemData, Scenarios

BoolArray = npt.NDArray[np.bool_]

#: Masks of GPUs have 64 bits; the checker's have 62.
REPLICA_GPUS_LIMIT = 62
#: First and last temperature of the runs in turn, as shares of the mean change of a random move:
#: instances differ in which finds the best plan.
SCHEDULES = ((0.1, 0.005), (0.3, 0.015), (0.05, 0.003))
#: Proposals of one run, for each cell (an expert on a GPU).
CELL_STEPS = 6_000
#: Runs that must end at the best value before the search is over: with one copy, with replicas.
AGREEMENTS = (3, 5)
#: Most runs of one layer.
RUNS = 24
#: Proposals from which the scale of the temperatures is measured.
SCALE_MOVES = 400
# Proposals between two looks at the clock, and moves of one descent.
_CHUNK_STEPS = 5_000
_DESCENT_MOVES = 2_000_000
_SAME = 1e-9


class Search:
    """Plans of some layers that share GPUs, in the arrays of the kernels.

    Parameters
    ----------
    layers : sequence of Scenarios
    experts, gpus : int
    per_layer : int
        Experts of one layer that a GPU may host.
    cells : int array, shape (G,)
        Experts of all layers that each GPU may host.
    replicas : bool
        Whether an expert may have several copies.
    """

    def __init__(
        self,
        layers: Sequence[Scenarios],
        experts: int,
        gpus: int,
        per_layer: int,
        cells: IntArray,
        *,
        replicas: bool,
        seed: int,
    ) -> None:
        if replicas and gpus > REPLICA_GPUS_LIMIT:
            raise ValueError(f"{gpus} GPUs: masks hold at most {REPLICA_GPUS_LIMIT}")
        self.layers, self.experts, self.gpus, self.replicas = layers, experts, gpus, replicas
        self.rows = _rows(layers, experts, gpus, per_layer)
        total, count = len(layers) * experts, len(self.rows.weight)
        width = self.rows.member.shape[1]
        gpu = np.repeat(np.arange(gpus), np.minimum(cells, len(layers) * min(per_layer, experts)))
        self.plan = Plan(
            content=np.full(len(gpu), -1, dtype=np.int32),
            gpu=gpu.astype(np.int32),
            cell=np.full((total, gpus), -1, dtype=np.int32),
            copies=np.zeros(total, dtype=np.int64),
            mask=np.zeros(total, dtype=np.uint64),
            used=np.zeros((len(layers), gpus), dtype=np.int64),
            time=np.zeros(count, dtype=np.int64),
            count=np.zeros((count, gpus + 1), dtype=np.int16),
            served=np.full(len(self.rows.row), -1, dtype=np.int16),
            late=np.zeros(count, dtype=np.bool_),
            full=np.zeros(count, dtype=np.uint64),
        )
        self.work = Work(
            mask=np.zeros(max(width, 4), dtype=np.uint64),
            place=np.zeros(max(width, 4), dtype=np.int64),
            gpus=np.zeros((3, gpus), dtype=np.int64),
        )
        self.random = np.random.SeedSequence(seed).generate_state(1, np.uint64) | np.uint64(1)
        self.all_gpus = np.ones(gpus, dtype=np.bool_)
        self.least = float(self.rows.weight @ self.rows.least)
        self.value = math.nan

    def load(self, hosts: BoolArray) -> float:
        """Take over hosts of shape (L, E, G); return their expected time.

        Raises
        ------
        ValueError
            A GPU has not enough cells.
        """
        flat = hosts.reshape(-1, self.gpus)
        content = self.plan.content
        content[:] = -1
        for g in range(self.gpus):
            here = np.flatnonzero(flat[:, g])
            at = np.flatnonzero(self.plan.gpu == g)
            if len(here) > len(at):
                raise ValueError(f"GPU {g} hosts {len(here)} experts and has room for {len(at)}")
            content[at[: len(here)]] = here
        return self.restore(content)

    def restore(self, content: npt.NDArray[np.int32]) -> float:
        """Take over the contents of all cells; return their expected time."""
        self.plan.content[:] = content
        self.value = float(set_up(self.rows, self.plan, self.replicas, self.work))
        return self.value

    def hosts(self) -> BoolArray:
        """Hosts of the plan, shape (L, E, G)."""
        return (self.plan.cell >= 0).reshape(len(self.layers), self.experts, self.gpus)

    def descend(self, most: int = _DESCENT_MOVES) -> float:
        """Descend to a plan that no single move improves (or ``most`` moves were tried)."""
        cells = np.arange(len(self.plan.content))
        gain, _ = kernels.descend(self.rows, self.plan, self.replicas, cells, most, self.work)
        self.value += gain
        return self.value

    def scale(self, open_gpus: BoolArray | None = None) -> float:
        """Mean change of the expected time by a random move that changes it."""
        cells, is_open = self._open(open_gpus)
        return float(
            kernels.mean_change(
                self.rows,
                self.plan,
                self.replicas,
                cells,
                is_open,
                SCALE_MOVES,
                self.random,
                self.work,
            )
        )

    def cool(
        self,
        steps: int,
        hot: float,
        cold: float,
        *,
        open_gpus: BoolArray | None = None,
        deadline: float = math.inf,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Anneal from ``hot`` to ``cold``, end at the best plan met; return the steps made.

        Parameters
        ----------
        open_gpus : bool array, shape (G,), optional
            Only these GPUs change.
        deadline : float
            On ``time.monotonic``.
        """
        cells, is_open = self._open(open_gpus)
        best_content = self.plan.content.copy()
        value = best = self.value
        done = 0
        while done < steps and not stop() and time.monotonic() < deadline:
            here = min(_CHUNK_STEPS, steps - done)
            value, best = kernels.anneal_steps(
                self.rows,
                self.plan,
                self.replicas,
                cells,
                is_open,
                here,
                hot * (cold / hot) ** (done / steps),
                hot * (cold / hot) ** ((done + here) / steps),
                value,
                best,
                best_content,
                self.random,
                self.work,
            )
            done += here
        self.restore(best_content)
        return done

    def _open(self, open_gpus: BoolArray | None) -> tuple[IntArray, BoolArray]:
        is_open = self.all_gpus if open_gpus is None else open_gpus
        return np.flatnonzero(is_open[self.plan.gpu]), is_open


def _rows(layers: Sequence[Scenarios], experts: int, gpus: int, per_layer: int) -> Rows:
    sizes = np.concatenate([s.sizes for s in layers])
    expert = np.concatenate([s.expert for s in layers])
    layer = np.repeat(np.arange(len(layers)), [len(s.expert) for s in layers])
    row = np.repeat(np.arange(len(sizes)), sizes)
    column = np.arange(len(expert)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    item = layer * experts + expert
    member = np.full((len(sizes), int(sizes.max(initial=1))), -1, dtype=np.int32)
    member[row, column] = item
    bits = np.zeros((len(sizes), -(-experts // 64)), dtype=np.uint64)
    np.bitwise_or.at(bits, (row, expert // 64), np.uint64(1) << (expert % 64).astype(np.uint64))
    order = np.argsort(item, kind="stable")
    occurrence = np.full(member.shape, -1, dtype=np.int32)
    occurrence[row[order], column[order]] = np.arange(len(order))
    return Rows(
        first=np.searchsorted(item[order], np.arange(len(layers) * experts + 1)),
        row=row[order].astype(np.int32),
        occurrence=occurrence,
        member=member,
        bits=bits,
        size=sizes.astype(np.int64),
        least=(-(-sizes // gpus)).astype(np.int64),
        weight=np.concatenate([s.weight for s in layers]),
        experts=experts,
        slots=per_layer,
    )


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
