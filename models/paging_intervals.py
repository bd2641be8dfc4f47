"""Paging by intervals: what lies over a request beyond its room is loaded again; exact.

Equations (G1)-(G2): docs/formulations/paging_intervals.md.
Its matrix has consecutive ones: the LP relaxation is exact.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _paging as paging

from moeopt.paging.intervals import Gaps, excess, gaps_of
from moeopt.problem import ProblemData

PROBLEM = "paging"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

solution = paging.solution
start = paging.start


def supports(data: ProblemData) -> str | None:
    """Every instance with a plan, and something to decide."""
    return paging.why_not(data)


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    instance = paging.paging_of(data)
    gaps = gaps_of(instance.requests)
    crowded = excess(instance.requests, gaps, instance.cache) > 0
    below = np.concatenate(([0], np.cumsum(crowded)))
    return {
        "rows": int(crowded.sum()),
        "columns": len(gaps),
        "nonzeros": int((below[gaps.end] - below[gaps.begin]).sum()),
        "integers": len(gaps),
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    gaps = paging.add_base(m, data)  # (G1)
    instance = paging.paging_of(data)
    over = excess(instance.requests, gaps, instance.cache)
    crowded = np.flatnonzero(over > 0)
    m.FULL = pyo.Set(initialize=crowded.tolist())
    m.GAPS = pyo.Set(m.FULL, initialize=_gaps_over(gaps, crowded))
    m.excess = pyo.Param(
        m.FULL, initialize=dict(zip(crowded.tolist(), over[crowded].tolist(), strict=True))
    )

    def room_rule(m, t):
        return sum(m.y[i] for i in m.GAPS[t]) >= m.excess[t]

    m.room_row = pyo.Constraint(m.FULL, rule=room_rule)  # (G2)
    return m


def _gaps_over(gaps: Gaps, crowded: np.ndarray) -> dict[int, list[int]]:
    over: dict[int, list[int]] = {t: [] for t in crowded.tolist()}
    first = np.searchsorted(crowded, gaps.begin)
    last = np.searchsorted(crowded, gaps.end)
    for i, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for t in crowded[a:b].tolist():
            over[t].append(i)
    return over
