"""``replication``: greedy and annealing over copies.

``unit`` form: the best of the published greedy, today's default and the single-copy plan filled up
by gain, then annealed. Other forms: to the single copies of the placement add the replica with the
largest gain until none gains (Beaumont et al., Euro-Par 2025, start from nothing; see ``greedy``),
then anneal. Where no replica gains (for k ≥ 3 two may gain only together) the rest of the room is
left empty.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moeopt.heuristics.capacity import room, slots, spread
from moeopt.heuristics.counted import GrowingLayer, anneal_layers, counted_layers
from moeopt.heuristics.placement import place_hosts
from moeopt.problem import ProblemData
from moeopt.solution import Solution

BoolArray = npt.NDArray[np.bool_]
_LEAST_GAIN = 1e-12
#: Share of the time until single copies are placed, and until replicas are added.
_PLACING, _ADDED = 0.25, 0.6
_UNIT_GPUS = 62  # bits of a mask


def add_replicas(
    data: ProblemData,
    hosts: BoolArray,
    *,
    deadline: float,
    stop: Callable[[], bool] = lambda: False,
) -> BoolArray:
    """Add replicas greedily, the one with the largest gain over all layers first.

    Lazily (Minoux, 1978): gains mostly fall as replicas are added, so a gain computed before stands
    until its replica is the first in line; where they do not fall, the order is not exact.
    """
    left = room(data) - hosts.sum(axis=(0, 1))
    layers = [
        GrowingLayer(layer, held) for layer, held in zip(counted_layers(data), hosts, strict=True)
    ]
    changes = [0] * data.layers
    line: list[tuple[float, int, int, int, int]] = []
    for l, layer in enumerate(layers):
        if time.monotonic() > deadline or stop():
            return hosts.copy()
        candidates = np.argwhere(~layer.hosts)
        gains = layer.gains(candidates)
        line += [
            (-gain, l, e, g, 0)
            for (e, g), gain in zip(candidates.tolist(), gains.tolist(), strict=True)
            if gain > _LEAST_GAIN
        ]
    heapq.heapify(line)
    while line and time.monotonic() < deadline and not stop():
        _, l, e, g, known = heapq.heappop(line)
        if left[g] <= 0 or layers[l].hosts[:, g].sum() >= slots(data):
            continue
        if known == changes[l]:
            layers[l].add(e, g)
            left[g] -= 1
            changes[l] += 1
            continue
        gain = float(layers[l].gains(np.array([[e, g]]))[0])
        if gain > _LEAST_GAIN:
            heapq.heappush(line, (-gain, l, e, g, changes[l]))
    return np.stack([layer.hosts for layer in layers])


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
    hosts = place_hosts(data, seed=seed, time_limit_s=_PLACING * time_limit_s, stop=stop)
    if hosts is None:
        return None
    hosts = add_replicas(data, hosts, deadline=begin + _ADDED * time_limit_s, stop=stop)
    hosts = anneal_layers(data, hosts, seed=seed, deadline=begin + time_limit_s, stop=stop)
    return Solution.from_arrays(data, hosts)
