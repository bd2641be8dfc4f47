"""Placement by the contents of the GPUs: set partitioning with exact layer times.

Equations (C1)-(C4): docs/formulations/placement_columns.md.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _parts as parts

from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "placement"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

kind = parts.kind_of_form

#: Coefficients that are still built in seconds.
MOST_NONZEROS = 2_000_000


def supports(data: ProblemData) -> str | None:
    """Layers that memory does not couple, and that have few possible contents of a GPU."""
    if data.slots is None:
        return "needs slots: memory alone does not limit the experts of one layer"
    full = data.layers * min(data.slots, data.experts)
    if data.free_mib is not None and (data.free_mib < full * data.expert_mib).any():
        return "memory may bind before the slots do"
    nonzeros = size(data)["nonzeros"]
    if nonzeros > MOST_NONZEROS:
        return f"{_count(data):,} contents of a GPU make {nonzeros:,} nonzeros; at most 2 million"
    return None


def _sizes(data: ProblemData) -> range:
    """Numbers of experts that a GPU in use may have; all slots where they are just enough."""
    assert data.slots is not None
    most = min(data.slots, data.experts)
    return range(most if data.slots * data.gpus == data.experts else 1, most + 1)


def _count(data: ProblemData) -> int:
    return sum(math.comb(data.experts, d) for d in _sizes(data))


def contents(data: ProblemData) -> list[tuple[int, ...]]:
    """Return all sets of experts that a GPU may host, by size, then in lexicographic order."""
    return [b for d in _sizes(data) for b in itertools.combinations(range(data.experts), d)]


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    sets = _count(data)
    with_one = sum(math.comb(data.experts - 1, d - 1) for d in _sizes(data))
    scenarios = sum(len(layer) for layer in data.scenarios)
    members = sum(len(layer.expert) for layer in data.scenarios)
    whole = scenarios if data.layer_time.form == "unit" else 0
    return {
        "rows": data.layers * (data.experts + 1) + members,
        "columns": data.layers * sets + scenarios,
        "nonzeros": data.layers * (data.experts * with_one + sets) + members * (with_one + 1),
        "integers": data.layers * sets + whole,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    sets = contents(data)
    m = pyo.ConcreteModel()
    parts.add_sets(m, data)
    parts.add_scenarios(m, data)
    m.OE = pyo.Set(dimen=3, initialize=parts.scenario_experts(data))
    m.B = pyo.RangeSet(0, len(sets) - 1)
    having: dict[int, list[int]] = {e: [] for e in range(data.experts)}
    for b, members in enumerate(sets):
        for e in members:
            having[e].append(b)
    m.HAVING = pyo.Set(m.E, initialize=having)
    times = _times(data, sets)
    m.USED = pyo.Set(dimen=3, initialize=list(times))
    m.time = pyo.Param(m.USED, initialize=times)
    m.gpus = pyo.Param(initialize=data.gpus)
    m.x = pyo.Var(m.L, m.B, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(
        m.OMEGA, domain=parts.time_domain(data), bounds=parts.time_bounds(data), dense=False
    )
    m.expected_time = pyo.Objective(rule=parts.expected_time_rule)  # (C1)

    def hosted_rule(m, l, e):
        return sum(m.x[l, b] for b in m.HAVING[e]) == 1

    def gpus_rule(m, l):
        return sum(m.x[l, b] for b in m.B) <= m.gpus

    def time_rule(m, l, s, e):
        return sum(m.time[l, s, b] * m.x[l, b] for b in m.HAVING[e]) <= m.T[l, s]

    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)  # (C2)
    m.gpus_row = pyo.Constraint(m.L, rule=gpus_rule)  # (C3)
    m.time_row = pyo.Constraint(m.OE, rule=time_rule)  # (C4)
    return m


def _times(data: ProblemData, sets: list[tuple[int, ...]]) -> dict[tuple[int, int, int], float]:
    """Time of scenario s of layer l on a GPU with contents b, where they share experts."""
    inside = np.zeros((len(sets), data.experts), dtype=np.float64)
    for row, members in zip(inside, sets, strict=True):
        row[list(members)] = 1.0
    times = {}
    for l, layer in enumerate(data.scenarios):
        for s in range(len(layer)):
            activated = inside[:, layer.members(s)].sum(axis=1)
            tokens = inside[:, layer.members(s)] @ layer.counts(s)
            used = np.flatnonzero(activated)
            value = data.layer_time.of(activated[used], tokens[used])
            times.update({(l, s, b): t for b, t in zip(used.tolist(), value.tolist(), strict=True)})
    return times


def solution(values: Values, data: ProblemData) -> Solution:
    """Give the chosen contents to the GPUs in order."""
    sets = contents(data)
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    for l, row in enumerate(values["x"]):
        for g, b in enumerate(np.flatnonzero(row > 0.5).tolist()):
            hosts[l, list(sets[b]), g] = True
    return Solution.from_arrays(data, hosts)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    number = {members: b for b, members in enumerate(contents(data))}
    x = np.zeros((data.layers, len(number)))
    for l, layer in enumerate(solution.hosts_array(data.gpus)):
        for gpu in layer.T:
            members = tuple(np.flatnonzero(gpu).tolist())
            if members:
                x[l, number[members]] = 1.0
    return {"x": x}
