"""Placement by pairs and triples of experts that share a GPU.

Equations (N1), (N2), (N5)-(N8), (R2): docs/formulations/placement_patterns3.md. Exact; its LP sees
every triple of experts as a mixture of placements.
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
TIGHTER_THAN = ("placement_assignment", "placement_pairs", "placement_triangles")

solution = base.solution
start = base.start


def kind(data: ProblemData) -> str:
    """Exact: the instances that it takes are in expert-time units."""
    return KIND


def supports(data: ProblemData) -> str | None:
    """Expert-time units, and slots that bind before memory does."""
    return patterns.refusal(data) or patterns.too_large(size(data)["nonzeros"])


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    n, c, layers = patterns.padded(data), patterns.group_size(data), data.layers
    pairs, triples = math.comb(n, 2), math.comb(n, 3)
    rows, columns, nonzeros = times.large_size(data, 3)
    columns += layers * (pairs + triples)
    return {
        "rows": rows + layers * (n + pairs + 4 * triples),
        "columns": columns,
        "nonzeros": nonzeros
        + layers * (n * (n - 1) + 3 * triples + (c != 2) * pairs + (3 * 2 + 4) * triples),
        "integers": columns,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    patterns.add_pairs(m, data)  # (N1)
    patterns.add_triples(m, data)  # (N2)
    patterns.add_triple_patterns(m, data)  # (R2)
    times.add_times(m, data, level=3)  # (N5)-(N8)
    return m
