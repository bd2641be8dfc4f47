"""Activation where the plan is fixed: a multiple choice over the layers' times.

Equations (A1)-(A3): docs/formulations/activation_choice.md.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _activation as activation
from moeopt.models import _parts as parts

from moeopt.activation.data import activation_of
from moeopt.dispatch import layer_times
from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "activation"
KIND = "exact"
TIGHTER_THAN = ("activation_placement",)

kind = parts.kind_of_form


def supports(data: ProblemData) -> str | None:
    """Instances whose plan is fixed."""
    if activation_of(data).hosts is None:
        return "no plan is fixed: experts may be placed"
    return activation.refusal(data)


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    return activation.choice_size(data)


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    m = pyo.ConcreteModel()
    activation.add_choice(m, data)  # (A2), (A3)
    m.v = pyo.Param(m.L, m.K, initialize=_times(data))

    def step_rule(m):
        return m.attention_base + sum(m.v[l, j] * m.c[l, j] for l in m.L for j in m.K)

    m.step_time = pyo.Objective(rule=step_rule)  # (A1)
    return m


def _times(data: ProblemData) -> dict[tuple[int, int], float]:
    """Expected times of the fixed plan, by layer and kept experts."""
    given = activation_of(data)
    assert given.hosts is not None
    return {
        (l, j + 1): float(
            scenarios.weight @ layer_times(data.layer_time, scenarios, given.hosts[l])[0]
        )
        for l, layer in enumerate(given.scenarios)
        for j, scenarios in enumerate(layer)
    }


def solution(values: Values, data: ProblemData) -> Solution:
    """Read the choice from c."""
    kept = activation.kept(values, data)
    hosts = activation_of(data).hosts
    return Solution.from_arrays(data, np.asarray(hosts), activated=kept.tolist())


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    kept = np.array(solution.activated)
    return {"c": (kept[:, None] == np.arange(1, data.top_k + 1)).astype(np.float64)}
