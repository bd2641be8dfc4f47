"""Activation and placement together, with the GPUs' symmetry broken.

Equations (A1)-(A7): docs/formulations/activation_placement_ordered.md. In every choice each GPU is
named by its smallest expert, in increasing order.
"""

from __future__ import annotations

import pyomo.environ as pyo
from moeopt.models import _parts as parts
from moeopt.models import activation_placement as base

from moeopt.activation.data import activation_of
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "activation"
KIND = "exact"
TIGHTER_THAN = ("activation_placement",)

kind = parts.kind_of_form
solution = base.solution


def supports(data: ProblemData) -> str | None:
    """Instances with something to choose, whose experts may be placed."""
    if activation_of(data).hosts is not None:
        return "the plan is fixed: its GPUs have names"
    return base.supports(data)


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    rows, nonzeros = parts.order_size(data, strict=True)
    return parts.grown(base.size(data), rows=data.top_k * rows, nonzeros=data.top_k * nonzeros)


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = base.build(data)
    pairs = [(g, h) for g, h in parts.successors(data)]
    m.NEXT = pyo.Set(dimen=2, initialize=pairs)
    m.BELOW = pyo.Set(m.E, initialize={e: list(range(e)) for e in range(data.experts)})

    def order_rule(m, l, j, e, g, h):
        return m.x[l, j, e, g] - sum(m.x[l, j, i, h] for i in m.BELOW[e]) <= 0

    m.order_row = pyo.Constraint(m.L, m.K, m.E, m.NEXT, rule=order_rule)  # (A7)
    return m


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start, its GPUs renamed to the order of the formulation."""
    hosts = solution.hosts_array(data.gpus)
    for layer in hosts:
        layer[:] = layer[:, parts.gpu_order(data, layer)]
    renamed = Solution.from_arrays(data, hosts, activated=solution.activated)
    return base.start(data, renamed)
