"""``placement``: annealing and large neighbourhoods (``unit``), descent and annealing (others).

The plan is never worse than the contiguous one, nor (``unit``) than the published greedy.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moeopt.heuristics.capacity import room, slots, spread
from moeopt.heuristics.counted import anneal_layers
from moeopt.problem import FloatArray, IntArray, ProblemData, Scenarios
from moeopt.solution import Solution

BoolArray = npt.NDArray[np.bool_]

#: Share of the time that the descent may take before the annealing.
_DESCENT = 0.5
#: Smaller improvements of the expected time are rounding.
_LEAST_GAIN = 1e-12


class LayerState:
    """Activations and tokens of one layer's scenarios on every GPU, for single copies."""

    def __init__(self, data: ProblemData, scenarios: Scenarios, gpu_of: IntArray) -> None:
        self.data, self.scenarios, self.gpu_of = data, scenarios, gpu_of.copy()
        count = len(scenarios)
        row = np.repeat(np.arange(count), scenarios.sizes)
        self.activated = np.zeros((count, data.gpus))
        self.tokens = np.zeros((count, data.gpus))
        np.add.at(self.activated, (row, gpu_of[scenarios.expert]), 1.0)
        np.add.at(self.tokens, (row, gpu_of[scenarios.expert]), scenarios.tokens)
        order = np.argsort(scenarios.expert, kind="stable")
        first = np.searchsorted(scenarios.expert[order], np.arange(data.experts + 1))
        #: scenarios (and token counts) that contain each expert
        self.rows = [row[order[first[e] : first[e + 1]]] for e in range(data.experts)]
        self.counts = [
            scenarios.tokens[order[first[e] : first[e + 1]]].astype(np.float64)
            for e in range(data.experts)
        ]
        self.times = self._times(np.arange(count))

    def _times(self, rows: IntArray) -> FloatArray:
        f = self.data.layer_time.of(self.activated[rows], self.tokens[rows])
        return np.asarray(f.max(axis=1))

    @property
    def expected(self) -> float:
        """Expected layer time."""
        return float(self.scenarios.weight @ self.times)

    def _shift(self, e: int, g: int, sign: float) -> None:
        self.activated[self.rows[e], g] += sign
        self.tokens[self.rows[e], g] += sign * self.counts[e]

    def _reassign(self, moves: list[tuple[int, int]]) -> None:
        for e, target in moves:
            self._shift(e, int(self.gpu_of[e]), -1.0)
            self._shift(e, target, 1.0)
            self.gpu_of[e] = target

    def improve(self, moves: list[tuple[int, int]]) -> bool:
        """Apply the moves (expert, GPU) if they lower the expected time; else leave all."""
        back = [(e, int(self.gpu_of[e])) for e, _ in moves]
        rows = np.unique(np.concatenate([self.rows[e] for e, _ in moves]))
        self._reassign(moves)
        times = self._times(rows)
        gain = float(self.scenarios.weight[rows] @ (self.times[rows] - times))
        if gain > _LEAST_GAIN:
            self.times[rows] = times
            return True
        self._reassign(back)
        return False


def descend(
    state: LayerState, free: IntArray, deadline: float, stop: Callable[[], bool]
) -> tuple[LayerState, IntArray]:
    """Descend to a plan in which no swap and no move helps (or time is out).

    Parameters
    ----------
    free : int array, shape (G,)
        Experts that still fit on each GPU (slots of the layer and memory), updated by moves.
    """
    experts, gpus = state.data.experts, state.data.gpus
    better = True
    while better:
        better = False
        for e in range(experts):
            if time.monotonic() > deadline or stop():
                return state, free
            for g in range(gpus):
                at = int(state.gpu_of[e])
                if g != at and free[g] > 0 and state.improve([(e, g)]):
                    free[at] += 1
                    free[g] -= 1
                    better = True
            for other in range(e + 1, experts):
                g, h = int(state.gpu_of[e]), int(state.gpu_of[other])
                if g != h and state.improve([(e, h), (other, g)]):
                    better = True
    return state, free


def place(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
    iterations: int | None = None,
) -> Solution | None:
    """Place one copy of every expert.

    Parameters
    ----------
    iterations : int, optional
        Proposals of the annealing for each layer (``unit``).

    Returns
    -------
    Solution or None
        None if no room was found for a first plan.
    """
    hosts = place_hosts(
        data, seed=seed, time_limit_s=time_limit_s, stop=stop, iterations=iterations
    )
    return None if hosts is None else Solution.from_arrays(data, hosts)


def place_hosts(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
    iterations: int | None = None,
) -> BoolArray | None:
    """Like :func:`place`; the hosts as an array of shape (L, E, G)."""
    from moeopt.heuristics.greedy import contiguous

    starts = [hosts for hosts in (contiguous(data), spread(data)) if hosts is not None]
    if not starts:
        return None
    if data.layer_time.form == "unit":
        from moeopt.heuristics.improve import improve_unit

        return improve_unit(
            data,
            starts,
            replicas=False,
            seed=seed,
            time_limit_s=time_limit_s,
            iterations=iterations,
            stop=stop,
        )
    deadline = time.monotonic() + time_limit_s
    hosts = _descend_from(data, starts, seed, _DESCENT * time_limit_s, stop)
    if sum(len(scenarios) for scenarios in data.scenarios) <= data.layers:
        return hosts  # one scenario a layer: a balance of loads, which the descent meets
    return anneal_layers(data, hosts, seed=seed, deadline=deadline, stop=stop)


def _descend_from(
    data: ProblemData,
    starts: list[BoolArray],
    seed: int,
    time_limit_s: float,
    stop: Callable[[], bool],
) -> BoolArray:
    """Descend layer by layer, each within its share of the time; the last start has the totals."""
    hosts = starts[-1].copy()
    begin = time.monotonic()
    left = room(data) - hosts.sum(axis=(0, 1))
    rng = np.random.default_rng(seed)
    for l, scenarios in enumerate(data.scenarios):
        share = time_limit_s * (l + 1) / data.layers
        before = hosts[l].sum(axis=0)
        free = np.minimum(left, slots(data) - before)
        gpu_of = hosts[l].argmax(axis=1)
        first = [gpu_of]
        if len(set(data.gpu_kind.tolist())) == 1:  # a second start: the same counts, shuffled
            first.append(rng.permutation(gpu_of))
        for start in starts[:-1]:
            if (start[l].sum(axis=0) <= before + free).all():
                first.append(start[l].argmax(axis=1))
        states = [
            descend(
                LayerState(data, scenarios, at),
                free + before - np.bincount(at, minlength=data.gpus),
                begin + share,
                stop,
            )[0]
            for at in first
        ]
        best = min(states, key=lambda state: state.expected)
        hosts[l] = np.arange(data.gpus) == best.gpu_of[:, None]
        left += before - hosts[l].sum(axis=0)
    return hosts
