"""Replication, matching formulation as published.

Equations (R1)-(R8): docs/formulations/replication_matching.md.
Beaumont, Bourgouin, Darrin, Marchal, Piantanida, Euro-Par 2025, Problem 2 (placement and dispatch
together); the rows with activations extend it to scenarios of several tokens.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _parts as parts

from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "replication"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

kind = parts.kind_of_form


def splits(data: ProblemData) -> bool:
    """Whether the tokens of one expert may be worth splitting over its replicas."""
    return data.layer_time.counts_tokens and any(
        (layer.tokens != 1).any() for layer in data.scenarios
    )


def supports(data: ProblemData) -> str | None:
    """Every replication instance."""
    return None


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    hosting = data.layers * data.experts * data.gpus
    scenarios = sum(len(layer) for layer in data.scenarios)
    members = sum(len(layer.expert) for layer in data.scenarios)
    served = members * data.gpus
    rows, nonzeros = parts.capacity_size(data)
    rows += data.layers * data.experts + members + served
    nonzeros += hosting + served + 2 * served
    time_rows = scenarios * data.gpus * len(data.layer_time.pieces())
    columns, integers = hosting + scenarios + served, hosting + served
    if splits(data):
        rows, nonzeros = rows + served, nonzeros + 2 * served
        columns, integers = columns + served, integers + served
        used = sum((act > 0) + (tok > 0) for _, act, tok in data.layer_time.pieces())
    else:
        used = sum(act > 0 or tok > 0 for _, act, tok in data.layer_time.pieces())
    return {
        "rows": rows + time_rows,
        "columns": columns,
        "nonzeros": nonzeros + time_rows + used * served,
        "integers": integers + (scenarios if data.layer_time.form == "unit" else 0),
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    parts.add_sets(m, data)
    parts.add_scenarios(m, data)
    parts.add_pieces(m, data)
    parts.add_tokens(m, data)
    m.x = pyo.Var(m.L, m.E, m.G, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(
        m.OMEGA, domain=parts.time_domain(data), bounds=parts.time_bounds(data), dense=False
    )
    m.expected_time = pyo.Objective(rule=parts.expected_time_rule)  # (R1)

    def hosted_rule(m, l, e):
        return sum(m.x[l, e, g] for g in m.G) >= 1

    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)  # (R2)
    parts.add_capacity(m, data)  # (R3), (R4)
    if splits(data):
        _add_split_dispatch(m, data)
    else:
        _add_whole_dispatch(m)
    return m


def _add_whole_dispatch(m: pyo.ConcreteModel) -> None:
    """One replica serves an expert: y[l, s, e, g] = 1."""
    m.y = pyo.Var(m.OE, m.G, domain=pyo.Binary, dense=False)

    def dispatched_rule(m, l, s, e):
        return sum(m.y[l, s, e, g] for g in m.G) == 1

    def link_rule(m, l, s, e, g):
        return m.y[l, s, e, g] <= m.x[l, e, g]

    def time_rule(m, l, s, g, j):
        return (
            m.const[j]
            + sum((m.act[j] + m.tok[j] * m.n[l, s, e]) * m.y[l, s, e, g] for e in m.A[l, s])
            <= m.T[l, s]
        )

    m.dispatched_row = pyo.Constraint(m.OE, rule=dispatched_rule)  # (R5)
    m.link_row = pyo.Constraint(m.OE, m.G, rule=link_rule)  # (R6)
    m.time_row = pyo.Constraint(m.OMEGA, m.G, m.J, rule=time_rule)  # (R8)


def _add_split_dispatch(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Whole tokens y[l, s, e, g] on activated replicas u[l, s, e, g]."""
    most = max(int(layer.tokens.max()) for layer in data.scenarios)
    m.y = pyo.Var(m.OE, m.G, domain=pyo.NonNegativeIntegers, bounds=(0, most), dense=False)
    m.u = pyo.Var(m.OE, m.G, domain=pyo.Binary, dense=False)

    def dispatched_rule(m, l, s, e):
        return sum(m.y[l, s, e, g] for g in m.G) == m.n[l, s, e]

    def activated_rule(m, l, s, e, g):
        return m.y[l, s, e, g] <= m.n[l, s, e] * m.u[l, s, e, g]

    def link_rule(m, l, s, e, g):
        return m.u[l, s, e, g] <= m.x[l, e, g]

    def time_rule(m, l, s, g, j):
        return (
            m.const[j]
            + sum(m.act[j] * m.u[l, s, e, g] + m.tok[j] * m.y[l, s, e, g] for e in m.A[l, s])
            <= m.T[l, s]
        )

    m.dispatched_row = pyo.Constraint(m.OE, rule=dispatched_rule)  # (R5)
    m.link_row = pyo.Constraint(m.OE, m.G, rule=link_rule)  # (R6)
    m.activated_row = pyo.Constraint(m.OE, m.G, rule=activated_rule)  # (R7)
    m.time_row = pyo.Constraint(m.OMEGA, m.G, m.J, rule=time_rule)  # (R8)


def solution(values: Values, data: ProblemData) -> Solution:
    """Read the hosts from x; who serves what the checker finds out itself."""
    return Solution.from_arrays(data, values["x"] > 0.5)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start (the solver completes the dispatch)."""
    return {"x": solution.hosts_array(data.gpus).astype(np.float64)}
