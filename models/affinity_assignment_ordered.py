"""Affinity by hosts, with the GPUs' symmetry broken.

Equations (A1)-(A9): docs/formulations/affinity_assignment_ordered.md. GPUs of a node are named by
their smallest expert: in the first layer where layers follow each other, else in every layer.
"""

from __future__ import annotations

import pyomo.environ as pyo
from moeopt.models import _affinity as affinity
from moeopt.models import _parts as parts
from moeopt.models import affinity_assignment as base

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "affinity"
KIND = "exact"
TIGHTER_THAN = ("affinity_assignment",)

supports = base.supports
solution = base.solution


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    rows, nonzeros = affinity.order_size(data)
    return parts.grown(base.size(data), rows=rows, nonzeros=nonzeros)


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = base.build(data)
    affinity.add_order(m, data)  # (A9)
    return m


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start, its GPUs renamed to the order of the formulation."""
    return base.start(data, affinity.in_order(data, solution))
