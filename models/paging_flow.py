"""Paging as a network flow: the rows of paging_intervals, each less the one before; exact.

Equations (W1)-(W2): docs/formulations/paging_flow.md.
Two entries a column, of opposite signs: a network matrix, so the LP relaxation is exact.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _paging as paging

from moeopt.paging.intervals import excess, gaps_of
from moeopt.problem import ProblemData

PROBLEM = "paging"
KIND = "exact"
TIGHTER_THAN = ("paging_intervals",)

solution = paging.solution
start = paging.start
supports = paging.why_not


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    requests = paging.paging_of(data).requests
    gaps, rows = len(gaps_of(requests)), len(requests)
    return {
        "rows": rows,
        "columns": gaps + rows,
        "nonzeros": 2 * gaps + 2 * rows - 1,
        "integers": gaps + rows,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    gaps = paging.add_base(m, data)  # (W1)
    instance = paging.paging_of(data)
    over = excess(instance.requests, gaps, instance.cache)
    step = np.diff(over, prepend=0)
    m.BEGIN = pyo.Set(m.T, initialize=_by_request(gaps.begin, len(over)))
    m.END = pyo.Set(m.T, initialize=_by_request(gaps.end, len(over)))
    m.BEFORE = pyo.Set(m.T, initialize={t: [t - 1] * (t > 0) for t in range(len(over))})
    m.step = pyo.Param(m.T, initialize=dict(enumerate(step.tolist())))
    m.s = pyo.Var(m.T, domain=pyo.NonNegativeIntegers, bounds=(0, instance.cache), dense=False)

    def flow_rule(m, t):
        return (
            sum(m.y[i] for i in m.BEGIN[t])
            - sum(m.y[i] for i in m.END[t])
            - m.s[t]
            + sum(m.s[u] for u in m.BEFORE[t])
            == m.step[t]
        )

    m.flow_row = pyo.Constraint(m.T, rule=flow_rule)  # (W2)
    return m


def _by_request(request: np.ndarray, count: int) -> dict[int, list[int]]:
    order = np.argsort(request, kind="stable")
    ends = np.searchsorted(request[order], np.arange(count + 1))
    return {t: order[ends[t] : ends[t + 1]].tolist() for t in range(count)}
