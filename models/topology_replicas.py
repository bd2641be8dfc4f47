"""Topology with copies, a token going to the nearest: facility location, server by server.

Equations (T1)-(T7): docs/formulations/topology_replicas.md.
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
    """Every instance of topology."""
    return None


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    base = topology.base_size(data)
    rows, nonzeros = topology.copies_size(data)
    streams = topology.servers_of(data).streams
    served = data.layers * data.experts * streams
    columns = streams * base["columns"]
    return {
        "rows": base["rows"] + rows + served + columns,
        "columns": base["columns"] + columns,
        "nonzeros": base["nonzeros"] + nonzeros + 3 * columns,
        "integers": base["integers"],
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    servers = topology.servers_of(data)
    topology.add_base(m, data)  # (T2), (T3)
    topology.add_copies(m, data)  # (T4), (T5)
    m.I = pyo.RangeSet(0, servers.streams - 1)
    way = servers.share[None, :, None] * servers.way
    m.c = pyo.Param(m.L, m.I, m.S, initialize=dict(np.ndenumerate(way)))
    m.y = pyo.Var(m.L, m.E, m.I, m.S, domain=pyo.NonNegativeReals, bounds=(0.0, 1.0), dense=False)

    def hops_rule(m):
        return sum(
            m.w[l, e] * m.c[l, i, s] * m.y[l, e, i, s]
            for l in m.L
            for e in m.E
            for i in m.I
            for s in m.S
        )

    m.hops = pyo.Objective(rule=hops_rule)  # (T1)

    def served_rule(m, l, e, i):
        return sum(m.y[l, e, i, s] for s in m.S) == 1

    m.served_row = pyo.Constraint(m.L, m.E, m.I, rule=served_rule)  # (T6)

    def there_rule(m, l, e, i, s):
        return m.y[l, e, i, s] - m.x[l, e, s] <= 0

    m.there_row = pyo.Constraint(m.L, m.E, m.I, m.S, rule=there_rule)  # (T7)
    return m
