"""``replication``: greedy and annealing over copies.

``unit`` form: the best of the published greedy, today's default and the single-copy plan filled up
by gain, then annealed. Other forms: from the single copies of the placement descent, add the
replica with the largest gain until none gains (Beaumont et al., Euro-Par 2025, start from nothing;
see ``greedy``). Where no replica gains (for k ≥ 3 two may gain only together) the rest of the room
is left empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moeopt import dispatch
from moeopt.heuristics.capacity import room, slots, spread
from moeopt.heuristics.placement import place_hosts
from moeopt.problem import FloatArray, IntArray, LayerTime, ProblemData, Scenarios
from moeopt.solution import Solution

BoolArray = npt.NDArray[np.bool_]
_LEAST_GAIN = 1e-12
_UNIT_GPUS = 62  # bits of a mask


class LayerTimes:
    """Times of one layer's scenarios under any hosts, for some scenarios at once."""

    def __init__(self, layer_time: LayerTime, scenarios: Scenarios, experts: int) -> None:
        self.layer_time, self.scenarios = layer_time, scenarios
        width = int(scenarios.sizes.max())
        self.members = np.full((len(scenarios), width), -1, dtype=np.int64)
        row = np.repeat(np.arange(len(scenarios)), scenarios.sizes)
        column = np.arange(len(scenarios.expert)) - scenarios.ptr[row]
        self.members[row, column] = scenarios.expert
        self.containing = [
            np.unique(row[scenarios.expert == e]).astype(np.int64) for e in range(experts)
        ]

    def of(self, hosts: BoolArray, rows: IntArray) -> FloatArray:
        """Times of the scenarios ``rows`` under ``hosts`` (E, G)."""
        if self.layer_time.form == "unit":
            bits = hosts.astype(np.int64) @ (1 << np.arange(hosts.shape[1], dtype=np.int64))
            members = self.members[rows]
            masks = np.where(members >= 0, bits[members], -1)
            return dispatch.unit_times(masks).astype(np.float64)
        gpus_of = [tuple(np.flatnonzero(hosts[e]).tolist()) for e in range(hosts.shape[0])]
        return np.array(
            [
                dispatch.rule_time(
                    self.layer_time,
                    [gpus_of[e] for e in self.scenarios.members(s).tolist()],
                    self.scenarios.counts(s),
                    whole=True,
                    gpus=hosts.shape[1],
                ).time
                for s in rows.tolist()
            ]
        )


def add_replicas(
    data: ProblemData,
    hosts: BoolArray,
    *,
    deadline: float,
    stop: Callable[[], bool] = lambda: False,
) -> BoolArray:
    """Add replicas greedily, the one with the largest gain over all layers first."""
    hosts = hosts.copy()
    left = room(data) - hosts.sum(axis=(0, 1))
    layers = [LayerTimes(data.layer_time, s, data.experts) for s in data.scenarios]
    times = [layer.of(hosts[l], np.arange(len(layer.scenarios))) for l, layer in enumerate(layers)]
    best = {l: _best_copy(data, layers[l], hosts[l], times[l], left) for l in range(data.layers)}
    while best and time.monotonic() < deadline and not stop():
        l = max(best, key=lambda l: best[l][0])
        gain, e, g = best[l]
        if gain <= _LEAST_GAIN:
            break
        hosts[l, e, g] = True
        left[g] -= 1
        rows = layers[l].containing[e]
        times[l][rows] = layers[l].of(hosts[l], rows)
        changed = range(data.layers) if left[g] == 0 else [l]
        for other in changed:
            if other == l or best[other][2] == g:
                best[other] = _best_copy(data, layers[other], hosts[other], times[other], left)
    return hosts


def _best_copy(
    data: ProblemData, layer: LayerTimes, hosts: BoolArray, times: FloatArray, left: IntArray
) -> tuple[float, int, int]:
    """Return (gain, expert, GPU) of the best replica of one layer."""
    best = (0.0, -1, -1)
    open_gpus = np.flatnonzero((left > 0) & (hosts.sum(axis=0) < slots(data)))
    for e in range(data.experts):
        rows = layer.containing[e]
        if not len(rows):
            continue
        for g in open_gpus.tolist():
            if hosts[e, g]:
                continue
            hosts[e, g] = True
            gain = float(layer.scenarios.weight[rows] @ (times[rows] - layer.of(hosts, rows)))
            hosts[e, g] = False
            if gain > best[0]:
                best = (gain, e, g)
    return best


def replicate(
    data: ProblemData,
    *,
    seed: int = 0,
    time_limit_s: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
    iterations: int | None = None,
) -> Solution | None:
    """Place copies of every expert.

    Parameters
    ----------
    iterations : int, optional
        Proposals of the annealing for each layer (``unit``).

    Returns
    -------
    Solution or None
        None if no room was found for a first plan.
    """
    begin = time.monotonic()
    if data.layer_time.form == "unit" and data.gpus <= _UNIT_GPUS:
        from moeopt.heuristics.greedy import contiguous
        from moeopt.heuristics.improve import improve_unit

        starts = [hosts for hosts in (contiguous(data), spread(data)) if hosts is not None]
        found = improve_unit(
            data,
            starts,
            replicas=True,
            seed=seed,
            time_limit_s=time_limit_s,
            iterations=iterations,
            stop=stop,
        )
        return None if found is None else Solution.from_arrays(data, found)
    hosts = place_hosts(data, seed=seed, time_limit_s=0.4 * time_limit_s, stop=stop)
    if hosts is None:
        return None
    hosts = add_replicas(data, hosts, deadline=begin + time_limit_s, stop=stop)
    return Solution.from_arrays(data, hosts)
