"""Layers whose time counts tokens: scenario times under any hosts; annealing of the hosts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moeopt.dispatch_time import FORMS, cost_array
from moeopt.heuristics import counted_kernels as kernels
from moeopt.heuristics.capacity import room, slots
from moeopt.problem import FloatArray, IntArray, LayerTime, ProblemData, Scenarios

BoolArray = npt.NDArray[np.bool_]

#: Most proposals of one annealing.
_MOST = 60_000
#: Proposals that tell how many the time allows.
_PROBE = 200


def counted_layers(data: ProblemData) -> list[CountedLayer]:
    """Return the layers of a problem."""
    return [CountedLayer(data.layer_time, s, data.experts, data.gpus) for s in data.scenarios]


def anneal_layers(
    data: ProblemData,
    hosts: BoolArray,
    *,
    seed: int,
    deadline: float,
    stop: Callable[[], bool] = lambda: False,
) -> BoolArray:
    """Anneal the copies of every layer, within slots and memory; never worse.

    Parameters
    ----------
    hosts : bool array, shape (L, E, G)
    deadline : float
        Of ``time.monotonic``; the time left is shared evenly by the layers that are left.
    """
    hosts = hosts.copy()
    left = room(data) - hosts.sum(axis=(0, 1))
    seeds = np.random.SeedSequence(seed).generate_state(data.layers)
    for l, layer in enumerate(counted_layers(data)):
        limit_s = (deadline - time.monotonic()) / (data.layers - l)
        if limit_s <= 0 or stop():
            break
        held = hosts[l].sum(axis=0)
        limit = held + np.minimum(left, np.maximum(slots(data) - held, 0))
        hosts[l] = layer.anneal(hosts[l], limit, seed=int(seeds[l]), time_limit_s=limit_s)
        left += held - hosts[l].sum(axis=0)
    return hosts


class CountedLayer:
    """Scenarios of one layer, as the compiled code wants them.

    A scenario's experts stand by falling tokens; the times are those of
    :mod:`moeopt.heuristics.counted_kernels`: upper bounds, exact without replicas.
    """

    def __init__(
        self, layer_time: LayerTime, scenarios: Scenarios, experts: int, gpus: int
    ) -> None:
        self.form, self.cost = FORMS[layer_time.form], cost_array(layer_time)
        self.experts, self.gpus = experts, gpus
        row = np.repeat(np.arange(len(scenarios)), scenarios.sizes)
        order = np.lexsort((-scenarios.tokens, row))
        self.ptr, self.weight = scenarios.ptr, scenarios.weight
        self.expert = scenarios.expert[order]
        self.tokens = scenarios.tokens[order].astype(np.float64)
        by_expert = np.argsort(self.expert, kind="stable")
        self.first = np.searchsorted(self.expert[by_expert], np.arange(experts + 1))
        self.row, self.count = row[by_expert], self.tokens[by_expert]

    def state(self, hosts: BoolArray) -> tuple[BoolArray, IntArray, FloatArray, FloatArray]:
        """Return hosts (E, G), copies (E,), and what experts of one copy bring, (S, G) each."""
        hosts = hosts.copy()
        copies = hosts.sum(axis=1)
        activated = np.zeros((len(self.weight), self.gpus))
        tokens = np.zeros((len(self.weight), self.gpus))
        gpu = hosts.argmax(axis=1)
        single = copies[np.repeat(np.arange(self.experts), np.diff(self.first))] == 1
        at = (self.row[single], np.repeat(gpu, np.diff(self.first))[single])
        np.add.at(activated, at, 1.0)
        np.add.at(tokens, at, self.count[single])
        return hosts, copies, activated, tokens

    def times(self, hosts: BoolArray) -> FloatArray:
        """Time of every scenario, shape (S,)."""
        times = np.zeros(len(self.weight))
        kernels.all_times(
            self.ptr, self.expert, self.tokens, *self.state(hosts), self.form, self.cost, times
        )
        return times

    def expected(self, hosts: BoolArray) -> float:
        """Expected time."""
        return float(self.weight @ self.times(hosts))

    def anneal(
        self, hosts: BoolArray, limit: IntArray, *, seed: int, time_limit_s: float
    ) -> BoolArray:
        """Improve the hosts by annealing; never worse.

        Parameters
        ----------
        limit : int array, shape (G,)
            Most copies of the layer on each GPU.
        """
        self._run(hosts, limit, 0, seed)  # loads the compiled code, which is not to be measured
        before = time.monotonic()
        best = self._run(hosts, limit, _PROBE, seed)
        each_s = (time.monotonic() - before) / _PROBE
        left_s = time_limit_s - (time.monotonic() - before)
        iterations = min(_MOST, math.floor(left_s / max(each_s, 1e-9)))
        return best if iterations < _PROBE else self._run(best, limit, iterations, seed)

    def _run(self, hosts: BoolArray, limit: IntArray, iterations: int, seed: int) -> BoolArray:
        state = self.state(hosts)
        best = np.empty_like(state[0])
        kernels.anneal(
            self.ptr, self.expert, self.tokens, self.weight, self.first, self.row, self.count,
            *state, self.times(hosts), limit, self.form, self.cost, iterations,
            np.random.default_rng(seed), best,
        )  # fmt: skip
        return best


class GrowingLayer:
    """One layer whose hosts get copies, one after the other.

    Attributes
    ----------
    hosts : bool array, shape (E, G)
    """

    def __init__(self, layer: CountedLayer, hosts: BoolArray) -> None:
        self._layer = layer
        self._state = layer.state(hosts)
        self._times = layer.times(hosts)
        self.hosts = self._state[0]

    def gains(self, candidates: npt.NDArray[np.int64]) -> FloatArray:
        """Gain of one more copy, for each (expert, GPU) of ``candidates`` (n, 2)."""
        at, found = self._layer, np.zeros(len(candidates))
        kernels.copy_gains(
            candidates, at.ptr, at.expert, at.tokens, at.weight, at.first, at.row, at.count,
            *self._state, at.form, at.cost, self._times, found,
        )  # fmt: skip
        return found

    def add(self, e: int, g: int) -> None:
        """Add a copy of an expert on a GPU."""
        at = self._layer
        kernels.set_copy(e, g, True, at.first, at.row, at.count, *self._state)
        kernels.all_times(at.ptr, at.expert, at.tokens, *self._state, at.form, at.cost, self._times)
