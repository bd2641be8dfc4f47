"""Activation and placement together: a placement for every choice, empty but for the one chosen.

Equations (A1)-(A7): docs/formulations/activation_placement.md. No large constants: what belongs
to a choice is multiplied by its binary.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _activation as activation
from moeopt.models import _parts as parts

from moeopt.activation.data import activation_of
from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution

PROBLEM = "activation"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

kind = parts.kind_of_form


def supports(data: ProblemData) -> str | None:
    """Every instance with something to choose."""
    return activation.refusal(data)


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    given = activation_of(data)
    choices = data.layers * data.top_k
    hosting = choices * data.experts * data.gpus
    rows = [scenarios for layer in given.scenarios for scenarios in layer]
    scenarios = sum(map(len, rows))
    members = sum(len(s.expert) for s in rows)
    pieces = data.layer_time.pieces()
    times = scenarios * data.gpus * len(pieces)
    constant = scenarios * data.gpus * sum(const > 0 for const, _, _ in pieces)
    used = members * data.gpus * sum(act > 0 or tok > 0 for _, act, tok in pieces)
    fixed = 0 if given.hosts is None else choices * data.experts
    made = activation.choice_size(data)
    return {
        "rows": made["rows"] + choices * (data.experts + data.gpus) + times + fixed,
        "columns": made["columns"] + hosting + scenarios,
        "nonzeros": made["nonzeros"]
        + 2 * hosting
        + choices * (data.experts + data.gpus)
        + times
        + constant
        + used
        + 2 * fixed,
        "integers": made["integers"]
        + hosting
        + (scenarios if data.layer_time.form == "unit" else 0),
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    given = activation_of(data)
    m = pyo.ConcreteModel()
    activation.add_choice(m, data)  # (A2), (A3)
    activation.add_scenarios(m, data)
    parts.add_pieces(m, data)
    m.slots = pyo.Param(initialize=data.slots)
    m.x = pyo.Var(m.L, m.K, m.E, m.G, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(
        m.OMEGA, domain=parts.time_domain(data), bounds=(0.0, _longest(data)), dense=False
    )

    def step_rule(m):
        return m.attention_base + sum(m.p[l, j, s] * m.T[l, j, s] for l, j, s in m.OMEGA)

    def hosted_rule(m, l, j, e):
        return sum(m.x[l, j, e, g] for g in m.G) - m.c[l, j] == 0

    def slots_rule(m, l, j, g):
        return sum(m.x[l, j, e, g] for e in m.E) - m.slots * m.c[l, j] <= 0

    def time_rule(m, l, j, s, g, i):
        return (
            m.const[i] * m.c[l, j]
            + sum((m.act[i] + m.tok[i] * m.n[l, j, s, e]) * m.x[l, j, e, g] for e in m.A[l, j, s])
            <= m.T[l, j, s]
        )

    m.step_time = pyo.Objective(rule=step_rule)  # (A1)
    m.hosted_row = pyo.Constraint(m.L, m.K, m.E, rule=hosted_rule)  # (A4)
    m.slots_row = pyo.Constraint(m.L, m.K, m.G, rule=slots_rule)  # (A5)
    m.time_row = pyo.Constraint(m.OMEGA, m.G, m.J, rule=time_rule)  # (A6)
    if given.hosts is not None:
        m.FIXED = pyo.Set(
            dimen=3, initialize=[tuple(at) for at in np.argwhere(given.hosts).tolist()]
        )

        def fixed_rule(m, l, e, g, j):
            return m.x[l, j, e, g] - m.c[l, j] == 0

        m.fixed_row = pyo.Constraint(m.FIXED, m.K, rule=fixed_rule)  # (A7)
    return m


def _longest(data: ProblemData) -> float:
    """A bound of the layer time of every scenario."""
    rows = [scenarios for layer in activation_of(data).scenarios for scenarios in layer]
    return max(
        float(data.layer_time.of(s.sizes, np.add.reduceat(s.tokens, s.ptr[:-1])).max())
        for s in rows
    )


def solution(values: Values, data: ProblemData) -> Solution:
    """Read the choice from c, the hosts from x."""
    kept = activation.kept(values, data)
    x = values["x"].reshape(data.layers, data.top_k, data.experts, data.gpus)
    return Solution.from_arrays(data, x.sum(axis=1) > 0.5, activated=kept.tolist())


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start."""
    kept = np.array(solution.activated)
    c = (kept[:, None] == np.arange(1, data.top_k + 1)).astype(np.float64)
    hosts = solution.hosts_array(data.gpus).astype(np.float64)
    return {"c": c, "x": c[:, :, None, None] * hosts[:, None]}
