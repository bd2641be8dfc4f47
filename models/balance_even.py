"""Balance under even split, by replica counts: exact.

Equations (B1)-(B7): docs/formulations/balance_even.md.
"""

from __future__ import annotations

import pyomo.environ as pyo
from moeopt.models import _balance as balance

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "balance"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

solution = balance.solution


def supports(data: ProblemData) -> str | None:
    """Rule ``even``, without groups on nodes."""
    return balance.why_not(data, "even")


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    base = balance.base_size(data)
    loads = balance.loads_of(data).loads
    counts, hosting = balance.replicas(data), data.layers * data.experts * data.gpus
    experts, used = data.layers * data.experts, int((loads > 0).sum())
    pieces = hosting * counts
    return {
        "rows": base["rows"]
        + experts
        + hosting
        + experts * counts
        + loads[..., 0].size * data.gpus,
        "columns": base["columns"] + experts * counts + pieces,
        "nonzeros": base["nonzeros"]
        + experts * counts
        + hosting
        + pieces
        + experts * counts
        + pieces
        + (used * counts + loads[..., 0].size) * data.gpus,
        "integers": base["integers"] + experts * counts + pieces,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    balance.add_base(m, data)  # (B1), (B2), (B3)
    m.K = pyo.RangeSet(1, balance.replicas(data))
    m.copies = pyo.Param(m.K, initialize=lambda m, k: k)
    m.r = pyo.Var(m.L, m.E, m.K, domain=pyo.Binary, dense=False)
    m.y = pyo.Var(m.L, m.E, m.G, m.K, domain=pyo.Binary, dense=False)

    def count_rule(m, l, e):
        return sum(m.r[l, e, k] for k in m.K) == 1

    m.count_row = pyo.Constraint(m.L, m.E, rule=count_rule)  # (B4)

    def place_rule(m, l, e, g):
        return sum(m.y[l, e, g, k] for k in m.K) - m.x[l, e, g] == 0

    m.place_row = pyo.Constraint(m.L, m.E, m.G, rule=place_rule)  # (B5)

    def copies_rule(m, l, e, k):
        return sum(m.y[l, e, g, k] for g in m.G) - m.copies[k] * m.r[l, e, k] == 0

    m.copies_row = pyo.Constraint(m.L, m.E, m.K, rule=copies_rule)  # (B6)

    m.piece = pyo.Param(m.W, m.L, m.E, m.K, initialize=lambda m, t, l, e, k: m.w[t, l, e] / k)

    def load_rule(m, t, l, g):
        return sum(m.piece[t, l, e, k] * m.y[l, e, g, k] for e in m.E for k in m.K) <= m.T[t, l]

    m.load_row = pyo.Constraint(m.W, m.L, m.G, rule=load_rule)  # (B7)
    return m


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    return balance.hosts_start(data, solution)
