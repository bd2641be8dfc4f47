"""Placement by pairs of experts that share a GPU: a relaxation without transitivity.

Equations (N1), (N5), (N6): docs/formulations/placement_pairs.md. The smallest program without GPU
symmetry; its star rows give the exact time of every placement.
"""

from __future__ import annotations

import math

import pyomo.environ as pyo
from moeopt.models import _patterns as patterns
from moeopt.models import _patterns_times as times

from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "placement"
KIND = "relaxation"
TIGHTER_THAN = ("placement_assignment",)


def kind(data: ProblemData) -> str:
    """Exact where groups have at most two members: then there is no chain i, j, k."""
    return "exact" if patterns.group_size(data) <= 2 else KIND


def supports(data: ProblemData) -> str | None:
    """Expert-time units, and slots that bind before memory does."""
    return patterns.refusal(data) or patterns.too_large(size(data)["nonzeros"])


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    n, layers = patterns.padded(data), data.layers
    rows, columns, nonzeros = times.large_size(data, 2)
    columns += layers * math.comb(n, 2)
    return {
        "rows": rows + layers * n,
        "columns": columns,
        "nonzeros": nonzeros + layers * n * (n - 1),
        "integers": columns,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    patterns.add_pairs(m, data)  # (N1)
    times.add_times(m, data, level=2)  # (N5), (N6)
    return m


def solution(values: Values, data: ProblemData) -> Solution:
    """Round the pairs to groups; exact where they are groups already."""
    z = values["z"].reshape(data.layers, -1)
    return Solution.from_arrays(data, patterns.hosts_from_pairs(data, z))


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start; none where a group is larger than the formulation allows."""
    z = patterns.pairs_from(data, solution)
    return {} if z is None else {"z": z}
