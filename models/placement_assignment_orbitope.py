"""Placement, assignment formulation with the column inequalities of the partitioning orbitope.

Equations (P1)-(P5), (P7): docs/formulations/placement_assignment_orbitope.md.
Kaibel, Pfetsch, Packing and partitioning orbitopes, Mathematical Programming 114 (2008).
"""

from __future__ import annotations

import pyomo.environ as pyo
from moeopt.models import _parts as parts
from moeopt.models import placement_assignment as base
from moeopt.models import placement_assignment_ordered as ordered

from moeopt.problem import ProblemData

PROBLEM = "placement"
KIND = "exact"
TIGHTER_THAN = ("placement_assignment_ordered",)

kind = parts.kind_of_form
supports = base.supports
solution = base.solution
start = ordered.start


def _bars(data: ProblemData) -> dict[int, list[int]]:
    """For each GPU g that has one of its kind before it: g and the later ones of its kind."""
    return {
        g: [h for h in range(g, data.gpus) if data.gpu_kind[h] == data.gpu_kind[g]]
        for g, _ in parts.successors(data)
    }


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    bars, layers = _bars(data), len(parts.symmetric_layers(data))
    experts = data.experts
    bar = sum(len(gpus) for gpus in bars.values())
    return parts.grown(
        base.size(data),
        rows=layers * len(bars) * experts,
        nonzeros=layers * (bar * experts + len(bars) * experts * (experts - 1) // 2),
    )


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = base.build(data)
    bars = _bars(data)
    m.ORDER = pyo.Set(
        dimen=4,
        initialize=[
            (l, e, g, h)
            for l in parts.symmetric_layers(data)
            for g, h in parts.successors(data)
            for e in range(data.experts)
        ],
    )
    m.UPTO = pyo.Set(m.E, initialize={e: list(range(e)) for e in range(data.experts)})
    m.BAR = pyo.Set(m.G, initialize={g: bars.get(g, []) for g in range(data.gpus)})

    def column_rule(m, l, e, g, h):
        return sum(m.x[l, e, b] for b in m.BAR[g]) - sum(m.x[l, j, h] for j in m.UPTO[e]) <= 0

    m.column_row = pyo.Constraint(m.ORDER, rule=column_rule)  # (P7)
    return m
