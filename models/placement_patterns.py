"""Placement by the patterns of every four experts: which of them share a GPU.

Equations (N1)-(N8), (R3): docs/formulations/placement_patterns.md. Exact; its LP sees every four
experts as a mixture of placements, and is tight for groups of up to four experts.
"""

from __future__ import annotations

import math

import pyomo.environ as pyo
from moeopt.models import _patterns as patterns
from moeopt.models import _patterns_times as times
from moeopt.models import placement_pairs as base

from moeopt.problem import ProblemData

PROBLEM = "placement"
KIND = "exact"
TIGHTER_THAN = (
    "placement_assignment",
    "placement_pairs",
    "placement_triangles",
    "placement_patterns3",
)

solution = base.solution
start = base.start


def kind(data: ProblemData) -> str:
    """Exact: the instances that it takes are in expert-time units."""
    return KIND


def supports(data: ProblemData) -> str | None:
    """Expert-time units, and slots that bind before memory does; at least four experts."""
    reason = patterns.refusal(data)
    if reason is not None:
        return reason
    if patterns.padded(data) < 4:
        return "fewer than four slots: there are no quadruples"
    return patterns.too_large(size(data)["nonzeros"])


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    n, c, layers = patterns.padded(data), patterns.group_size(data), data.layers
    pairs, triples, quads = (math.comb(n, s) for s in (2, 3, 4))
    rows, columns, nonzeros = times.large_size(data, 4)
    columns += layers * (pairs + triples + 4 * quads)
    counting = (
        n * (n - 1)
        + 3 * triples
        + (c != 2) * pairs
        + 4 * quads
        + (c != 3) * triples
        + 12 * quads
        + 2 * (c != 1) * 3 * triples
    )
    return {
        "rows": rows + layers * (n + pairs + triples + 3 * triples + 11 * quads),
        "columns": columns,
        "nonzeros": nonzeros + layers * (counting + (4 * 2 + 6 * 5 + 14) * quads),
        "integers": columns,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    patterns.add_pairs(m, data)  # (N1)
    patterns.add_triples(m, data)  # (N2)
    patterns.add_quadruples(m, data)  # (N3), (N4)
    patterns.add_quadruple_patterns(m, data)  # (R3)
    times.add_times(m, data, level=4)  # (N5)-(N8)
    return m
