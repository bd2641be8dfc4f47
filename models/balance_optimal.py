"""Balance under the best split of each window: exact.

Equations (B1)-(B7): docs/formulations/balance_optimal.md.
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
    """Rule ``optimal``, without groups on nodes."""
    return balance.why_not(data, "optimal")


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    base = balance.base_size(data)
    loads = balance.loads_of(data).loads
    hosting, experts = data.layers * data.experts * data.gpus, data.layers * data.experts
    columns = loads.size * data.gpus
    largest = loads[..., 0].size
    used = int((loads > 0).sum())
    return {
        "rows": base["rows"] + experts + loads.size + columns + largest * data.gpus,
        "columns": base["columns"] + columns,
        "nonzeros": base["nonzeros"]
        + hosting
        + columns
        + columns
        + used * data.gpus
        + columns
        + largest * data.gpus,
        "integers": base["integers"],
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    balance.add_base(m, data)  # (B1), (B2), (B3)
    m.y = pyo.Var(m.W, m.L, m.E, m.G, domain=pyo.NonNegativeReals, bounds=_tokens, dense=False)

    def hosted_rule(m, l, e):
        return sum(m.x[l, e, g] for g in m.G) >= 1

    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)  # (B4)

    def served_rule(m, t, l, e):
        return sum(m.y[t, l, e, g] for g in m.G) == m.w[t, l, e]

    m.served_row = pyo.Constraint(m.W, m.L, m.E, rule=served_rule)  # (B5)

    def resident_rule(m, t, l, e, g):
        return m.y[t, l, e, g] - m.w[t, l, e] * m.x[l, e, g] <= 0

    m.resident_row = pyo.Constraint(m.W, m.L, m.E, m.G, rule=resident_rule)  # (B6)

    def load_rule(m, t, l, g):
        return sum(m.y[t, l, e, g] for e in m.E) <= m.T[t, l]

    m.load_row = pyo.Constraint(m.W, m.L, m.G, rule=load_rule)  # (B7)
    return m


def _tokens(m: pyo.ConcreteModel, t: int, l: int, e: int, g: int) -> tuple[float, float]:
    return 0.0, pyo.value(m.w[t, l, e])


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    return balance.hosts_start(data, solution)
