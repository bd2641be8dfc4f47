"""Replication, matching formulation with the GPUs' symmetry broken.

Equations (R1)-(R9): docs/formulations/replication_matching_ordered.md. Interchangeable GPUs stand
in the order of their smallest expert; ties are allowed, since replicas may share it.
"""

from __future__ import annotations

import pyomo.environ as pyo
from moeopt.models import _parts as parts
from moeopt.models import replication_matching as base

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "replication"
KIND = "exact"
TIGHTER_THAN = ("replication_matching",)

kind = parts.kind_of_form
supports = base.supports
solution = base.solution


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    rows, nonzeros = parts.order_size(data, strict=False)
    return parts.grown(base.size(data), rows=rows, nonzeros=nonzeros)


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = base.build(data)
    parts.add_order(m, data, strict=False)  # (R9)
    return m


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start, its GPUs renamed to the order of the formulation."""
    return base.start(data, parts.in_order(data, solution))
