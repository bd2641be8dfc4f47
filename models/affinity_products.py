"""Affinity by products of hosts: both experts of a pair on GPU g, with equal numbers on each GPU.

Equations (A1)-(A4), (A10)-(A16): docs/formulations/affinity_products.md. The level-1
linearisation of the quadratic program: as every GPU holds equally many experts, products add up to
known sums.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _affinity as affinity

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "affinity"
KIND = "exact"
TIGHTER_THAN = ("affinity_assignment",)

solution = affinity.solution


def supports(data: ProblemData) -> str | None:
    """Layers that follow each other."""
    return affinity.why_not(data, ("inter",))


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    given = affinity.affinity_of(data)
    base = affinity.base_size(data)
    e, g, n, steps = data.experts, data.gpus, given.nodes, data.layers - 1
    products, nodes = steps * e * e * g, steps * e * e * n * (n > 1)
    rows = 2 * steps * e * g + steps * e * e
    nonzeros = 3 * products + 2 * steps * e * g
    if n > 1:
        rows += 2 * steps * e * n + steps * e * e + nodes
        nonzeros += 4 * nodes + 2 * steps * e * g + products
    return {
        "rows": base["rows"] + rows,
        "columns": base["columns"] + products + nodes,
        "nonzeros": base["nonzeros"] + nonzeros,
        "integers": base["integers"] + products + nodes,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    affinity.add_base(m, data)  # (A2), (A3), (A4)
    given = affinity.affinity_of(data)
    affinity.add_nodes(m, given)
    m.STEP = pyo.Set(dimen=2, initialize=[(l, l + 1) for l in range(data.layers - 1)])
    flow = {(l, l + 1, e, f): float(r) for (l, e, f), r in np.ndenumerate(given.flow)}
    m.R = pyo.Param(m.STEP, m.E, m.E, initialize=flow)
    m.q = pyo.Var(m.STEP, m.E, m.E, m.G, domain=pyo.Binary, dense=False)

    def first_rule(m, l, n, e, g):
        return sum(m.q[l, n, e, f, g] for f in m.E) - m.size * m.x[l, e, g] == 0

    m.first_row = pyo.Constraint(m.STEP, m.E, m.G, rule=first_rule)  # (A10)

    def second_rule(m, l, n, f, g):
        return sum(m.q[l, n, e, f, g] for e in m.E) - m.size * m.x[n, f, g] == 0

    m.second_row = pyo.Constraint(m.STEP, m.E, m.G, rule=second_rule)  # (A11)

    def together_rule(m, l, n, e, f):
        return sum(m.q[l, n, e, f, g] for g in m.G) <= 1

    m.together_row = pyo.Constraint(m.STEP, m.E, m.E, rule=together_rule)  # (A12)
    if given.nodes == 1:

        def moved_rule(m):
            return sum(
                m.R[l, n, e, f] * m.near * (1 - sum(m.q[l, n, e, f, g] for g in m.G))
                for l, n in m.STEP
                for e in m.E
                for f in m.E
            )

        m.crossing = pyo.Objective(rule=moved_rule)  # (A1)
        return m
    _add_nodes(m, data)
    return m


def _add_nodes(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Products r of nodes, tied to hosts and to the products of their GPUs; the objective."""
    given = affinity.affinity_of(data)
    held = np.bincount(given.node) * given.size
    m.held = pyo.Param(m.N, initialize=dict(enumerate(held.tolist())))
    m.r = pyo.Var(m.STEP, m.E, m.E, m.N, domain=pyo.Binary, dense=False)

    def leaves_rule(m, l, n, e, v):
        here = sum(m.x[l, e, g] for g in m.INSIDE[v])
        return sum(m.r[l, n, e, f, v] for f in m.E) - m.held[v] * here == 0

    m.leaves_row = pyo.Constraint(m.STEP, m.E, m.N, rule=leaves_rule)  # (A13)

    def enters_rule(m, l, n, f, v):
        here = sum(m.x[n, f, g] for g in m.INSIDE[v])
        return sum(m.r[l, n, e, f, v] for e in m.E) - m.held[v] * here == 0

    m.enters_row = pyo.Constraint(m.STEP, m.E, m.N, rule=enters_rule)  # (A14)

    def neighbours_rule(m, l, n, e, f):
        return sum(m.r[l, n, e, f, v] for v in m.N) <= 1

    m.neighbours_row = pyo.Constraint(m.STEP, m.E, m.E, rule=neighbours_rule)  # (A15)

    def inside_rule(m, l, n, e, f, v):
        return sum(m.q[l, n, e, f, g] for g in m.INSIDE[v]) - m.r[l, n, e, f, v] <= 0

    m.inside_row = pyo.Constraint(m.STEP, m.E, m.E, m.N, rule=inside_rule)  # (A16)

    def crossing_rule(m):
        return sum(
            m.R[l, n, e, f]
            * (
                m.near * (1 - sum(m.q[l, n, e, f, g] for g in m.G))
                + m.farther * (1 - sum(m.r[l, n, e, f, v] for v in m.N))
            )
            for l, n in m.STEP
            for e in m.E
            for f in m.E
        )

    m.crossing = pyo.Objective(rule=crossing_rule)  # (A1)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    return affinity.hosts_start(data, solution)
