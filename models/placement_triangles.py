"""Placement by pairs of experts that share a GPU, with the triangle inequalities.

Equations (N1), (N5), (N6), (R1): docs/formulations/placement_triangles.md. Exact for scenarios of
any size, without GPU symmetry.
"""

from __future__ import annotations

import math

import pyomo.environ as pyo
from moeopt.models import _patterns as patterns
from moeopt.models import placement_pairs as base

from moeopt.problem import ProblemData

PROBLEM = "placement"
KIND = "exact"
TIGHTER_THAN = ("placement_assignment", "placement_pairs")

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
    triangles = 3 * data.layers * math.comb(patterns.padded(data), 3)
    found = base.size(data)
    return found | {
        "rows": found["rows"] + triangles,
        "nonzeros": found["nonzeros"] + 3 * triangles,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = base.build(data)
    patterns.add_triangles(m, data)  # (R1)
    return m
