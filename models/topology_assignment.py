"""Topology with one copy of each expert: the published integer program; its LP is integral.

Equations (T1)-(T4): docs/formulations/topology_assignment.md.
Sivtsov, Katrutsa, Oseledets, arXiv 2508.09229.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _topology as topology

from moeopt.problem import ProblemData

PROBLEM = "topology"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

solution = topology.solution
start = topology.start


def supports(data: ProblemData) -> str | None:
    """One copy of each expert."""
    copies = topology.servers_of(data).replicas
    return f"it has one copy of each expert, {copies} more may be there" if copies else None


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    base = topology.base_size(data)
    rows = base["rows"] + data.layers * data.experts
    return base | {"rows": rows, "nonzeros": base["nonzeros"] + base["columns"]}


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    topology.add_base(m, data)  # (T3), (T4)
    cost = topology.servers_of(data).cost
    m.c = pyo.Param(m.L, m.S, initialize=dict(np.ndenumerate(cost)))

    def hops_rule(m):
        return sum(m.w[l, e] * m.c[l, s] * m.x[l, e, s] for l in m.L for e in m.E for s in m.S)

    m.hops = pyo.Objective(rule=hops_rule)  # (T1)

    def hosted_rule(m, l, e):
        return sum(m.x[l, e, s] for s in m.S) == 1

    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)  # (T2)
    return m
