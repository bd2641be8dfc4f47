"""Affinity by pairs of experts that share a GPU, with the triangle inequalities.

Equations (T1)-(T7): docs/formulations/affinity_pairs.md. Exact for layers that follow each other
where all links weigh the same, without GPU symmetry.
"""

from __future__ import annotations

import math

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _affinity as affinity
from scipy import sparse

from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "affinity"
KIND = "exact"
TIGHTER_THAN = ("affinity_assignment",)


def supports(data: ProblemData) -> str | None:
    """Layers that follow each other, and one weight for all links."""
    if (reason := affinity.why_not(data, ("inter",))) is not None:
        return reason
    given = affinity.affinity_of(data)
    if given.nodes > 1 and given.far != given.near:
        return "links between nodes have a weight of their own"
    return None


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    given = affinity.affinity_of(data)
    e, layers = data.experts, data.layers
    steps, pairs, triples = layers - 1, math.comb(e, 2), math.comb(e, 3)
    columns = layers * pairs + steps * e * e
    loaded = int((given.load != 0).sum()) * (e - 1) if given.max_load is not None else 0
    limited = given.max_load is not None
    return {
        "rows": (1 + limited) * layers * e + steps * (2 * e + 6 * pairs * e) + 3 * layers * triples,
        "columns": columns,
        "nonzeros": layers * e * (e - 1)
        + steps * (2 * e * e + 18 * pairs * e)
        + 9 * layers * triples
        + loaded,
        "integers": columns,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    given = affinity.affinity_of(data)
    m = pyo.ConcreteModel()
    e = data.experts
    m.L = pyo.RangeSet(0, data.layers - 1)
    m.E = pyo.RangeSet(0, e - 1)
    m.STEP = pyo.Set(dimen=2, initialize=[(l, l + 1) for l in range(data.layers - 1)])
    m.PAIR = pyo.Set(dimen=2, initialize=[(i, j) for i in range(e) for j in range(i + 1, e)])
    m.BELOW = pyo.Set(m.E, initialize={i: list(range(i)) for i in range(e)})
    m.ABOVE = pyo.Set(m.E, initialize={i: list(range(i + 1, e)) for i in range(e)})
    m.size = pyo.Param(initialize=given.size)
    m.near = pyo.Param(initialize=given.near)
    flow = {(l, l + 1, i, f): float(r) for (l, i, f), r in np.ndenumerate(given.flow)}
    m.R = pyo.Param(m.STEP, m.E, m.E, initialize=flow)
    m.z = pyo.Var(m.L, m.PAIR, domain=pyo.Binary, dense=False)
    m.y = pyo.Var(m.STEP, m.E, m.E, domain=pyo.Binary, dense=False)

    def crossing_rule(m):
        return sum(
            m.R[l, n, i, f] * m.near * (1 - m.y[l, n, i, f])
            for l, n in m.STEP
            for i in m.E
            for f in m.E
        )

    m.crossing = pyo.Objective(rule=crossing_rule)  # (T1)

    def mates_rule(m, l, i):
        below = sum(m.z[l, j, i] for j in m.BELOW[i])
        return below + sum(m.z[l, i, j] for j in m.ABOVE[i]) == m.size - 1

    m.mates_row = pyo.Constraint(m.L, m.E, rule=mates_rule)  # (T2)

    def leaves_rule(m, l, n, i):
        return sum(m.y[l, n, i, f] for f in m.E) == m.size

    m.leaves_row = pyo.Constraint(m.STEP, m.E, rule=leaves_rule)  # (T3)

    def enters_rule(m, l, n, f):
        return sum(m.y[l, n, i, f] for i in m.E) == m.size

    m.enters_row = pyo.Constraint(m.STEP, m.E, rule=enters_rule)  # (T3)
    if given.max_load is not None:
        m.tokens = pyo.Param(m.L, m.E, initialize=dict(np.ndenumerate(given.load)))
        m.most = pyo.Param(m.L, initialize=dict(enumerate(given.most_load.tolist())))

        def load_rule(m, l, i):
            below = sum(m.tokens[l, j] * m.z[l, j, i] for j in m.BELOW[i])
            above = sum(m.tokens[l, j] * m.z[l, i, j] for j in m.ABOVE[i])
            return below + above <= m.most[l] - m.tokens[l, i]

        m.load_row = pyo.Constraint(m.L, m.E, rule=load_rule)  # (T4)
    _add_triangles(m, data)
    return m


def _add_triangles(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Two shared GPUs make a third, inside a layer and over two."""
    e = data.experts
    triples = [(i, j, k) for i in range(e) for j in range(i + 1, e) for k in range(j + 1, e)]
    m.TRIPLE = pyo.Set(dimen=3, initialize=triples)

    def low_rule(m, l, i, j, k):
        return m.z[l, i, j] + m.z[l, i, k] - m.z[l, j, k] <= 1

    def middle_rule(m, l, i, j, k):
        return m.z[l, i, j] + m.z[l, j, k] - m.z[l, i, k] <= 1

    def high_rule(m, l, i, j, k):
        return m.z[l, i, k] + m.z[l, j, k] - m.z[l, i, j] <= 1

    m.low_row = pyo.Constraint(m.L, m.TRIPLE, rule=low_rule)  # (T5)
    m.middle_row = pyo.Constraint(m.L, m.TRIPLE, rule=middle_rule)  # (T5)
    m.high_row = pyo.Constraint(m.L, m.TRIPLE, rule=high_rule)  # (T5)

    def meet_rule(m, l, n, i, j, f):
        return m.y[l, n, i, f] + m.y[l, n, j, f] - m.z[l, i, j] <= 1

    def follow_rule(m, l, n, i, j, f):
        return m.z[l, i, j] + m.y[l, n, i, f] - m.y[l, n, j, f] <= 1

    def lead_rule(m, l, n, i, j, f):
        return m.z[l, i, j] + m.y[l, n, j, f] - m.y[l, n, i, f] <= 1

    m.meet_row = pyo.Constraint(m.STEP, m.PAIR, m.E, rule=meet_rule)  # (T6)
    m.follow_row = pyo.Constraint(m.STEP, m.PAIR, m.E, rule=follow_rule)  # (T6)
    m.lead_row = pyo.Constraint(m.STEP, m.PAIR, m.E, rule=lead_rule)  # (T6)

    def next_meet_rule(m, l, n, i, j, e):
        return m.y[l, n, e, i] + m.y[l, n, e, j] - m.z[n, i, j] <= 1

    def next_follow_rule(m, l, n, i, j, e):
        return m.z[n, i, j] + m.y[l, n, e, i] - m.y[l, n, e, j] <= 1

    def next_lead_rule(m, l, n, i, j, e):
        return m.z[n, i, j] + m.y[l, n, e, j] - m.y[l, n, e, i] <= 1

    m.next_meet_row = pyo.Constraint(m.STEP, m.PAIR, m.E, rule=next_meet_rule)  # (T7)
    m.next_follow_row = pyo.Constraint(m.STEP, m.PAIR, m.E, rule=next_follow_rule)  # (T7)
    m.next_lead_row = pyo.Constraint(m.STEP, m.PAIR, m.E, rule=next_lead_rule)  # (T7)


def solution(values: Values, data: ProblemData) -> Solution:
    """Read the hosts: experts that are joined, over all layers, are on one GPU."""
    layers, experts = data.layers, data.experts
    first, second = np.triu_indices(experts, 1)
    l, p = np.nonzero(values["z"].reshape(layers, -1) > 0.5)
    rows, columns = [l * experts + first[p]], [l * experts + second[p]]
    l, i, f = np.nonzero(values["y"].reshape(layers - 1, experts, experts) > 0.5)
    rows.append(l * experts + i)
    columns.append((l + 1) * experts + f)
    row, column = np.concatenate(rows), np.concatenate(columns)
    count = layers * experts
    joined = sparse.coo_array((np.ones(len(row)), (row, column)), shape=(count, count))
    _, label = sparse.csgraph.connected_components(joined, directed=False)
    hosts = np.zeros((layers, experts, data.gpus), dtype=bool)
    # Whole solutions have exactly G groups; the checker refuses what else may come.
    hosts.reshape(count, -1)[np.arange(count), label % data.gpus] = True
    return Solution.from_arrays(data, hosts)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    place = solution.hosts_array(data.gpus).argmax(axis=2)
    first, second = np.triu_indices(data.experts, 1)
    z = place[:, first] == place[:, second]
    y = place[:-1, :, None] == place[1:, None, :]
    return {"z": z.astype(np.float64), "y": y.astype(np.float64)}
