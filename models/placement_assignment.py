"""Placement, assignment formulation as published.

Equations (P1)-(P5): docs/formulations/placement_assignment.md.
Beaumont, Bourgouin, Darrin, Marchal, Piantanida, Euro-Par 2025, Problem 1.
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
    """Every placement instance."""
    return None


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    hosting = data.layers * data.experts * data.gpus
    scenarios = sum(len(layer) for layer in data.scenarios)
    members = sum(len(layer.expert) for layer in data.scenarios)
    rows, nonzeros = parts.capacity_size(data)
    time_rows = scenarios * data.gpus * len(data.layer_time.pieces())
    used = sum(members if act > 0 or tok > 0 else 0 for _, act, tok in data.layer_time.pieces())
    return {
        "rows": rows + data.layers * data.experts + time_rows,
        "columns": hosting + scenarios,
        "nonzeros": nonzeros + hosting + time_rows + used * data.gpus,
        "integers": hosting + (scenarios if data.layer_time.form == "unit" else 0),
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    parts.add_sets(m, data)
    parts.add_scenarios(m, data)
    parts.add_pieces(m, data)
    m.x = pyo.Var(m.L, m.E, m.G, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(
        m.OMEGA, domain=parts.time_domain(data), bounds=parts.time_bounds(data), dense=False
    )
    m.expected_time = pyo.Objective(rule=parts.expected_time_rule)  # (P1)

    def hosted_rule(m, l, e):
        return sum(m.x[l, e, g] for g in m.G) == 1

    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)  # (P2)
    parts.add_capacity(m, data)  # (P3), (P4)

    if any((layer.tokens != 1).any() for layer in data.scenarios):
        parts.add_tokens(m, data)

        def time_rule(m, l, s, g, j):
            return (
                m.const[j]
                + sum((m.act[j] + m.tok[j] * m.n[l, s, e]) * m.x[l, e, g] for e in m.A[l, s])
                <= m.T[l, s]
            )
    else:

        def time_rule(m, l, s, g, j):
            return (
                m.const[j] + sum((m.act[j] + m.tok[j]) * m.x[l, e, g] for e in m.A[l, s])
                <= m.T[l, s]
            )

    m.time_row = pyo.Constraint(m.OMEGA, m.G, m.J, rule=time_rule)  # (P5)
    return m


def solution(values: Values, data: ProblemData) -> Solution:
    """Read the hosts from x."""
    return Solution.from_arrays(data, values["x"] > 0.5)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    return {"x": solution.hosts_array(data.gpus).astype(np.float64)}
