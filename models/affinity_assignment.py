"""Affinity by hosts: who shares a GPU with whom, or which GPUs a scenario touches.

Equations (A1)-(A8): docs/formulations/affinity_assignment.md. Exact for both kinds, with nodes and
a largest load; the published integer programs have this form.
"""

from __future__ import annotations

import pyomo.environ as pyo
from moeopt.models import _affinity as affinity
from moeopt.models import _parts as parts

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "affinity"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

solution = affinity.solution


def supports(data: ProblemData) -> str | None:
    """Both kinds."""
    return affinity.why_not(data, ("inter", "intra"))


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    given = affinity.affinity_of(data)
    base = affinity.base_size(data)
    gpus, nodes = data.gpus, given.nodes
    if given.kind == "inter":
        pairs = len(affinity.flow_keys(given))
        added = pairs * (1 + (nodes > 1))
        rows = pairs * (gpus + nodes * (nodes > 1))
        nonzeros = 3 * pairs * gpus + pairs * (nodes + 2 * gpus) * (nodes > 1)
    else:
        cases = sum(len(layer) for layer in data.scenarios)
        members = len(parts.scenario_experts(data))
        added = cases * (gpus + nodes * (nodes > 1))
        rows = members * (gpus + nodes * (nodes > 1))
        nonzeros = members * (2 * gpus + (nodes + gpus) * (nodes > 1))
    return {
        "rows": base["rows"] + rows,
        "columns": base["columns"] + added,
        "nonzeros": base["nonzeros"] + nonzeros,
        "integers": base["integers"] + added,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    affinity.add_base(m, data)  # (A2), (A3), (A4)
    given = affinity.affinity_of(data)
    affinity.add_nodes(m, given)
    if given.kind == "inter":
        _add_flow(m, data)
    else:
        _add_touch(m, data)
    return m


def _add_flow(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Shared GPUs y and nodes h of every pair with tokens, and the tokens that change."""
    given = affinity.affinity_of(data)
    keys = affinity.flow_keys(given)
    m.FLOW = pyo.Set(dimen=4, initialize=[(l, e, l + 1, f) for l, e, f in keys])
    tokens = {(l, e, l + 1, f): float(given.flow[l, e, f]) for l, e, f in keys}
    m.R = pyo.Param(m.FLOW, initialize=tokens)
    m.y = pyo.Var(m.FLOW, domain=pyo.Binary, dense=False)

    def share_rule(m, l, e, n, f, g):
        return m.y[l, e, n, f] + m.x[l, e, g] - m.x[n, f, g] <= 1

    m.share_row = pyo.Constraint(m.FLOW, m.G, rule=share_rule)  # (A5)
    if given.nodes == 1:

        def moved_rule(m):
            return sum(m.R[k] * m.near * (1 - m.y[k]) for k in m.FLOW)

        m.crossing = pyo.Objective(rule=moved_rule)  # (A1)
        return
    m.h = pyo.Var(m.FLOW, domain=pyo.Binary, dense=False)

    def node_rule(m, l, e, n, f, v):
        here = sum(m.x[l, e, g] for g in m.INSIDE[v])
        return m.h[l, e, n, f] + here - sum(m.x[n, f, g] for g in m.INSIDE[v]) <= 1

    m.node_row = pyo.Constraint(m.FLOW, m.N, rule=node_rule)  # (A6)

    def crossing_rule(m):
        return sum(m.R[k] * (m.near * (1 - m.y[k]) + m.farther * (1 - m.h[k])) for k in m.FLOW)

    m.crossing = pyo.Objective(rule=crossing_rule)  # (A1)


def _add_touch(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Touched GPUs t and nodes w of every scenario, and the further ones."""
    parts.add_scenarios(m, data)
    m.OE = pyo.Set(dimen=3, initialize=parts.scenario_experts(data))
    m.t = pyo.Var(m.OMEGA, m.G, domain=pyo.Binary, dense=False)

    def touch_rule(m, l, s, e, g):
        return m.x[l, e, g] - m.t[l, s, g] <= 0

    m.touch_row = pyo.Constraint(m.OE, m.G, rule=touch_rule)  # (A7)
    if affinity.affinity_of(data).nodes == 1:

        def gpus_rule(m):
            return sum(
                m.p[l, s] * m.near * (sum(m.t[l, s, g] for g in m.G) - 1) for l, s in m.OMEGA
            )

        m.touched = pyo.Objective(rule=gpus_rule)  # (A1)
        return
    m.w = pyo.Var(m.OMEGA, m.N, domain=pyo.Binary, dense=False)

    def reach_rule(m, l, s, e, v):
        return sum(m.x[l, e, g] for g in m.INSIDE[v]) - m.w[l, s, v] <= 0

    m.reach_row = pyo.Constraint(m.OE, m.N, rule=reach_rule)  # (A8)

    def touched_rule(m):
        return sum(
            m.p[l, s]
            * (
                m.near * (sum(m.t[l, s, g] for g in m.G) - 1)
                + m.farther * (sum(m.w[l, s, v] for v in m.N) - 1)
            )
            for l, s in m.OMEGA
        )

    m.touched = pyo.Objective(rule=touched_rule)  # (A1)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    return affinity.hosts_start(data, solution)
