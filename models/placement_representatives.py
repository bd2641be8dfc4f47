"""Placement without GPU names: every GPU is represented by its smallest expert.

Equations (R1)-(R6): docs/formulations/placement_representatives.md.
Campêlo, Campos, Corrêa, On the asymmetric representatives formulation for the vertex coloring
problem, Discrete Applied Mathematics 156 (2008).
"""

from __future__ import annotations

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


def supports(data: ProblemData) -> str | None:
    """Slots alone limit: memory over several layers needs to know which GPU is which."""
    if data.slots is None or data.free_mib is not None:
        return "takes slots only, no memory limits"
    return None


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    experts, layers = data.experts, data.layers
    pairs = layers * experts * (experts + 1) // 2
    scenarios = sum(len(layer) for layer in data.scenarios)
    pieces = data.layer_time.pieces()
    # An expert e of a scenario stands in the time rows of the representatives 0..e.
    members = sum(int((layer.expert + 1).sum()) for layer in data.scenarios)
    used = sum(members if act > 0 or tok > 0 else 0 for _, act, tok in pieces)
    time_rows = sum(
        int(layer.expert[layer.ptr[s + 1] - 1]) + 1
        for layer in data.scenarios
        for s in range(len(layer))
    ) * len(pieces)
    joins = pairs - layers * experts
    return {
        "rows": layers * (2 * experts + 1) + joins + time_rows,
        "columns": pairs + scenarios,
        "nonzeros": 2 * pairs + layers * experts + 2 * joins + time_rows + used,
        "integers": pairs + (scenarios if data.layer_time.form == "unit" else 0),
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    parts.add_sets(m, data)
    parts.add_scenarios(m, data)
    parts.add_pieces(m, data)
    layers, experts = range(data.layers), range(data.experts)
    m.REP = pyo.Set(
        dimen=3, initialize=[(l, i, e) for l in layers for i in experts for e in experts if i <= e]
    )
    m.JOIN = pyo.Set(
        dimen=3, initialize=[(l, i, e) for l in layers for i in experts for e in experts if i < e]
    )
    m.UPTO = pyo.Set(m.E, initialize={e: list(range(e + 1)) for e in experts})
    m.FROM = pyo.Set(m.E, initialize={e: list(range(e, data.experts)) for e in experts})
    # Representatives that some expert of the scenario may have, with those experts.
    behind = {
        (l, s, i): [int(e) for e in layer.members(s) if e >= i]
        for l, layer in enumerate(data.scenarios)
        for s in range(len(layer))
        for i in range(int(layer.members(s).max()) + 1)
    }
    m.TIME = pyo.Set(dimen=3, initialize=list(behind))
    m.B = pyo.Set(m.TIME, initialize=behind)
    m.r = pyo.Var(m.REP, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(
        m.OMEGA, domain=parts.time_domain(data), bounds=parts.time_bounds(data), dense=False
    )
    m.slots = pyo.Param(initialize=data.slots)
    m.gpus = pyo.Param(initialize=data.gpus)
    m.expected_time = pyo.Objective(rule=parts.expected_time_rule)  # (R1)

    def hosted_rule(m, l, e):
        return sum(m.r[l, i, e] for i in m.UPTO[e]) == 1

    def opened_rule(m, l):
        return sum(m.r[l, i, i] for i in m.E) <= m.gpus

    def slots_rule(m, l, i):
        return sum(m.r[l, i, e] for e in m.FROM[i]) - m.slots * m.r[l, i, i] <= 0

    def join_rule(m, l, i, e):
        return m.r[l, i, e] - m.r[l, i, i] <= 0

    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)  # (R2)
    m.opened_row = pyo.Constraint(m.L, rule=opened_rule)  # (R3)
    m.slots_row = pyo.Constraint(m.L, m.E, rule=slots_rule)  # (R4)
    m.join_row = pyo.Constraint(m.JOIN, rule=join_rule)  # (R5)

    if any((layer.tokens != 1).any() for layer in data.scenarios):
        parts.add_tokens(m, data)

        def time_rule(m, l, s, i, j):
            return (
                m.const[j]
                + sum((m.act[j] + m.tok[j] * m.n[l, s, e]) * m.r[l, i, e] for e in m.B[l, s, i])
                <= m.T[l, s]
            )
    else:

        def time_rule(m, l, s, i, j):
            return (
                m.const[j] + sum((m.act[j] + m.tok[j]) * m.r[l, i, e] for e in m.B[l, s, i])
                <= m.T[l, s]
            )

    m.time_row = pyo.Constraint(m.TIME, m.J, rule=time_rule)  # (R6)
    return m


def solution(values: Values, data: ProblemData) -> Solution:
    """Representatives in ascending order are the GPUs."""
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    chosen = _square(values["r"], data) > 0.5
    for l in range(data.layers):
        for g, i in enumerate(np.flatnonzero(chosen[l].diagonal())):
            hosts[l, chosen[l, i], g] = True
    return Solution.from_arrays(data, hosts)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    hosts = solution.hosts_array(data.gpus)
    upper = np.triu_indices(data.experts)
    together = (hosts @ hosts.transpose(0, 2, 1)).astype(bool)
    smallest = np.zeros((data.layers, data.experts, data.experts))
    for l in range(data.layers):
        first = together[l].argmax(axis=1)
        smallest[l, first, np.arange(data.experts)] = 1.0
    return {"r": np.concatenate([square[upper] for square in smallest])}


def _square(r: FloatArray, data: ProblemData) -> FloatArray:
    """Values by (layer, representative, expert) from the flat vector over REP."""
    full = np.zeros((data.layers, data.experts, data.experts))
    rows, columns = np.triu_indices(data.experts)
    full[:, rows, columns] = r.reshape(data.layers, -1)
    return full
