"""Pieces that the formulations of ``activation`` share: the choice, its budget, its scenarios."""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _parts as parts

from moeopt.activation.data import activation_of
from moeopt.linear import Values
from moeopt.problem import IntArray, ProblemData


def refusal(data: ProblemData) -> str | None:
    """Why there is nothing to choose, in words; None where there is."""
    return "tokens choose one expert: none can be dropped" if data.top_k == 1 else None


def add_choice(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Layers L, kept experts K, c[l, j] and the rows that choose within the budget."""
    activation = activation_of(data)
    parts.add_sets(m, data)
    m.K = pyo.RangeSet(1, data.top_k)
    dropped = {(l, j + 1): int(mass) for (l, j), mass in np.ndenumerate(activation.dropped)}
    m.dropped = pyo.Param(m.L, m.K, initialize=dropped)
    m.budget = pyo.Param(initialize=activation.budget)
    m.attention_base = pyo.Param(initialize=data.attention_base_us)
    m.c = pyo.Var(m.L, m.K, domain=pyo.Binary, dense=False)

    def choice_rule(m, l):
        return sum(m.c[l, j] for j in m.K) == 1

    def budget_rule(m):
        return sum(m.dropped[l, j] * m.c[l, j] for l in m.L for j in m.K) <= m.budget

    m.choice_row = pyo.Constraint(m.L, rule=choice_rule)
    m.budget_row = pyo.Constraint(rule=budget_rule)


def choice_size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers of :func:`add_choice`."""
    choices = data.layers * data.top_k
    massive = int((activation_of(data).dropped > 0).sum())
    return {
        "rows": data.layers + 1,
        "columns": choices,
        "nonzeros": choices + massive,
        "integers": choices,
    }


def kept(values: Values, data: ProblemData) -> IntArray:
    """Kept experts of each layer, shape (L,), from c."""
    return 1 + values["c"].reshape(data.layers, data.top_k).argmax(axis=1)


def add_scenarios(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Scenarios OMEGA = (l, j, s), their experts A, weights p and tokens n."""
    rows = {
        (l, j + 1): scenarios
        for l, layer in enumerate(activation_of(data).scenarios)
        for j, scenarios in enumerate(layer)
    }
    weights = {key: scenarios.weight.tolist() for key, scenarios in rows.items()}
    keys = [(l, j, s, e) for (l, j, s) in _omega(rows) for e in rows[l, j].members(s).tolist()]
    tokens = np.concatenate([scenarios.tokens for scenarios in rows.values()]).tolist()

    def members_rule(m, l, j, s):
        return rows[l, j].members(s).tolist()

    def weight_rule(m, l, j, s):
        return weights[l, j][s]

    m.OMEGA = pyo.Set(dimen=3, initialize=_omega(rows))
    m.A = pyo.Set(m.OMEGA, dimen=1, initialize=members_rule)
    m.p = pyo.Param(m.OMEGA, default=weight_rule)
    m.OE = pyo.Set(dimen=4, initialize=keys)
    m.n = pyo.Param(m.OE, initialize=dict(zip(keys, tokens, strict=True)))


def _omega(rows):
    return [(l, j, s) for (l, j), scenarios in rows.items() for s in range(len(scenarios))]
