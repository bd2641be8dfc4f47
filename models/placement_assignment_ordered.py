"""Placement, assignment formulation with the GPUs' symmetry broken.

Equations (P1)-(P6): docs/formulations/placement_assignment_ordered.md. Each interchangeable GPU
is named by its smallest expert, in increasing order.
"""

from __future__ import annotations

import pyomo.environ as pyo
from moeopt.models import _parts as parts
from moeopt.models import placement_assignment as base

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "placement"
KIND = "exact"
TIGHTER_THAN = ("placement_assignment",)

kind = parts.kind_of_form
supports = base.supports
solution = base.solution


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    rows, nonzeros = parts.order_size(data, strict=True)
    return parts.grown(base.size(data), rows=rows, nonzeros=nonzeros)


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = base.build(data)
    parts.add_order(m, data, strict=True)  # (P6)
    return m


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start, its GPUs renamed to the order of the formulation."""
    return base.start(data, parts.in_order(data, solution))
