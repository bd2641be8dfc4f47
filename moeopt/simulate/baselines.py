"""What else one might load: the plans a replay compares with.

All are made from the fitted part of the trace alone. Those with replicas get ``extra_slots`` more
slots on every GPU in every layer than one copy of each expert needs, as serving systems do; what
they take is missing in their KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moeopt.balance.eplb import published_plan
from moeopt.errors import InputError
from moeopt.heuristics import greedy as published
from moeopt.make.traces_shipped import Trace
from moeopt.problem import LayerTime, ProblemData, Scenarios
from moeopt.routing import distinct_scenarios
from moeopt.simulate.served import BoolArray

#: Tokens of the trace, evenly spread, that are the scenarios of the published greedy.
GREEDY_TOKENS = 600


def contiguous(data: ProblemData, trace: Trace, extra_slots: int, seed: int) -> BoolArray:
    """Expert e on GPU ``e·G // E``: the default of serving systems."""
    return _fitting(published.contiguous(_open(data)), "contiguous")


def random(data: ProblemData, trace: Trace, extra_slots: int, seed: int) -> BoolArray:
    """Equal numbers of experts on every GPU, in a random order."""
    return _fitting(published.random(_open(data), seed), "random")


def load_balanced(data: ProblemData, trace: Trace, extra_slots: int, seed: int) -> BoolArray:
    """Greedy replicas of the most loaded, greedy packing (DeepSeek EPLB, one node)."""
    slots = _slots(data, extra_slots)
    placed = published_plan(trace.usage(), slots * data.gpus, 1, 1, data.gpus).slots
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    gpu = np.arange(slots * data.gpus) // slots
    hosts[np.arange(data.layers)[:, None], placed, gpu[None, :]] = True
    return hosts


def greedy(data: ProblemData, trace: Trace, extra_slots: int, seed: int) -> BoolArray:
    """Published greedy (Beaumont et al., Euro-Par 2025): copies by gain, on single tokens."""
    count = min(GREEDY_TOKENS, len(trace.ids))
    chosen = trace.ids[np.arange(count) * len(trace.ids) // count]
    slots = _slots(data, extra_slots)
    unit = replace(
        _open(data),
        problem="replication",
        layer_time=LayerTime(),
        slots=slots,
        scenarios=tuple(_scenarios(chosen[:, l]) for l in range(data.layers)),
    )
    return _fitting(published.greedy(unit), "greedy")


BASELINES: dict[str, Callable[[ProblemData, Trace, int, int], BoolArray]] = {
    "contiguous": contiguous,
    "random": random,
    "load-balanced": load_balanced,
    "greedy": greedy,
}


def _open(data: ProblemData) -> ProblemData:
    """The same GPUs limited by slots alone: whether memory holds the plan is seen when served."""
    return replace(data, free_mib=None, slots=_slots(data, 0))


def _slots(data: ProblemData, extra_slots: int) -> int:
    return min(-(-data.experts // data.gpus) + extra_slots, data.experts)


def _scenarios(ids: np.ndarray) -> Scenarios:
    experts, weight = distinct_scenarios(ids)
    return Scenarios(
        np.arange(0, experts.size + 1, experts.shape[1], dtype=np.int64),
        experts.ravel(),
        np.ones(experts.size, dtype=np.int64),
        weight / weight.sum(),
    )


def _fitting(hosts: BoolArray | None, name: str) -> BoolArray:
    if hosts is None:
        raise InputError(f"baseline {name}: the GPUs have not the room")
    return hosts
