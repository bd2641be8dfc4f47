"""Topology with copies, distance by distance: a stream pays the next step unless a copy is near.

Equations (T1)-(T6): docs/formulations/topology_distances.md.
S. Elloumi, A tighter formulation of the p-median problem, J. Combinatorial Optimization 19 (2010).
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
    steps = _steps(data)
    pairs = data.experts * len(steps)
    near = data.experts * sum(len(servers) for _, servers in steps.values())
    return {
        "rows": base["rows"] + rows + pairs,
        "columns": base["columns"] + pairs,
        "nonzeros": base["nonzeros"] + nonzeros + pairs + near,
        "integers": base["integers"],
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    topology.add_base(m, data)  # (T2), (T3)
    topology.add_copies(m, data)  # (T4), (T5)
    servers = topology.servers_of(data)
    steps = _steps(data)
    m.P = pyo.Set(dimen=3, initialize=list(steps))
    m.N = pyo.Set(m.P, dimen=1, initialize={key: near for key, (_, near) in steps.items()})
    m.d = pyo.Param(m.P, initialize={key: step for key, (step, _) in steps.items()})
    least = (servers.share * servers.way.min(axis=2)).sum(axis=1)
    m.least = pyo.Param(initialize=float((servers.weight.sum(axis=1) * least).sum()))
    m.z = pyo.Var(m.P, m.E, domain=pyo.NonNegativeReals, bounds=(0.0, 1.0), dense=False)

    def hops_rule(m):
        return m.least + sum(
            m.w[l, e] * m.d[l, i, k] * m.z[l, i, k, e] for l, i, k in m.P for e in m.E
        )

    m.hops = pyo.Objective(rule=hops_rule)  # (T1)

    def near_rule(m, l, i, k, e):
        return m.z[l, i, k, e] + sum(m.x[l, e, s] for s in m.N[l, i, k]) >= 1

    m.near_row = pyo.Constraint(m.P, m.E, rule=near_rule)  # (T6)
    return m


def _steps(data: ProblemData) -> dict[tuple[int, int, int], tuple[float, list[int]]]:
    """For layer, stream and k: the step from the k-th distance to the next, and what is within."""
    servers = topology.servers_of(data)
    steps = {}
    for l, i in np.ndindex(data.layers, servers.streams):
        distances = np.unique(servers.way[l, i])
        for k in range(len(distances) - 1):
            step = servers.share[i] * (distances[k + 1] - distances[k])
            near = np.flatnonzero(servers.way[l, i] <= distances[k]).tolist()
            steps[l, i, k] = (float(step), near)
    return steps
