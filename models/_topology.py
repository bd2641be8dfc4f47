"""Pieces that the formulations of topology share: servers, hosting, room, and plans for GPUs."""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo

from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution
from moeopt.topology.data import TopologyData
from moeopt.topology.spread import copies_on_servers, hosts_of


def servers_of(data: ProblemData) -> TopologyData:
    """Return servers, streams and room of an instance of topology."""
    if data.topology is None:
        raise ValueError("no servers are known")
    return data.topology


def add_base(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Layers, experts, servers S, hosting x[l, e, s], and the room of the servers."""
    topology = servers_of(data)
    m.L = pyo.RangeSet(0, data.layers - 1)
    m.E = pyo.RangeSet(0, data.experts - 1)
    m.S = pyo.RangeSet(0, topology.servers - 1)
    m.capacity = pyo.Param(m.S, initialize=dict(enumerate(topology.capacity.tolist())))
    m.capacity_per_layer = pyo.Param(
        m.S, initialize=dict(enumerate(topology.capacity_per_layer.tolist()))
    )
    m.w = pyo.Param(m.L, m.E, initialize=dict(np.ndenumerate(topology.weight)))
    m.x = pyo.Var(m.L, m.E, m.S, domain=pyo.Binary, dense=False)

    def capacity_rule(m, s):
        return sum(m.x[l, e, s] for l in m.L for e in m.E) <= m.capacity[s]

    m.capacity_row = pyo.Constraint(m.S, rule=capacity_rule)

    def layer_rule(m, l, s):
        return sum(m.x[l, e, s] for e in m.E) <= m.capacity_per_layer[s]

    m.layer_row = pyo.Constraint(m.L, m.S, rule=layer_rule)


def base_size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers of `add_base`."""
    servers = servers_of(data).servers
    hosting = data.layers * data.experts * servers
    return {
        "rows": servers + data.layers * servers,
        "columns": hosting,
        "nonzeros": 2 * hosting,
        "integers": hosting,
    }


def add_copies(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """At least one copy of each expert, and no more in all than are allowed."""
    m.copies = pyo.Param(initialize=servers_of(data).copies)

    def hosted_rule(m, l, e):
        return sum(m.x[l, e, s] for s in m.S) >= 1

    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)

    def copies_rule(m):
        return sum(m.x[l, e, s] for l in m.L for e in m.E for s in m.S) <= m.copies

    m.copies_row = pyo.Constraint(rule=copies_rule)


def copies_size(data: ProblemData) -> tuple[int, int]:
    """(rows, nonzeros) of `add_copies`."""
    hosting = data.layers * data.experts * servers_of(data).servers
    return data.layers * data.experts + 1, 2 * hosting


def solution(values: Values, data: ProblemData) -> Solution:
    """Read the servers from x and deal their experts out to their GPUs."""
    return Solution.from_arrays(data, hosts_of(servers_of(data), values["x"] > 0.5))


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Column x of a warm start."""
    copies = copies_on_servers(servers_of(data), solution.hosts_array(data.gpus))
    return {"x": (copies > 0).astype(np.float64)}
