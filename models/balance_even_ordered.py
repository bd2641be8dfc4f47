"""Balance under even split, GPUs in the order of their smallest expert: exact.

Equations (B1)-(B8): docs/formulations/balance_even_ordered.md.
"""

from __future__ import annotations

import pyomo.environ as pyo
from moeopt.models import _balance as balance
from moeopt.models import _parts as parts
from moeopt.models import balance_even as plain

from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "balance"
KIND = "exact"
TIGHTER_THAN = ("balance_even",)

supports = plain.supports
solution = plain.solution


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    rows, nonzeros = balance.order_size(data)
    return parts.grown(plain.size(data), rows=rows, nonzeros=nonzeros)


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = plain.build(data)
    balance.add_order(m, data)  # (B8)
    return m


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start, GPUs renamed into the order."""
    return plain.start(data, balance.in_order(data, solution))
