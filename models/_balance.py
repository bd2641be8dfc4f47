"""Pieces that the formulations of balance share: sets, loads, full slots, moves, order of GPUs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _parts as parts

from moeopt.balance.data import BalanceData
from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution


def loads_of(data: ProblemData) -> BalanceData:
    """Return the loads, slots and moves of an instance that `why_not` took."""
    if data.balance is None:
        raise ValueError("there are no loads to balance")
    return data.balance


def why_not(data: ProblemData, rule: str) -> str | None:
    """None if a formulation for this rule takes the instance, else the reason."""
    if data.balance is None:
        return "no plan exists"
    if data.balance.rule != rule:
        return f"its rule is {data.balance.rule}, this formulation is for {rule}"
    if data.balance.parts > 1:
        return "groups on nodes are not modelled"
    return None


def replicas(data: ProblemData) -> int:
    """Most replicas that an expert may have: one a GPU, and all others need one each."""
    balance = loads_of(data)
    return min(data.gpus, balance.replicas - data.experts + 1)


def add_base(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Sets, loads w[t, l, e], hosting x, largest loads T[t, l], full slots, moves, objective."""
    balance = loads_of(data)
    parts.add_sets(m, data)
    m.W = pyo.RangeSet(0, balance.windows - 1)
    m.w = pyo.Param(m.W, m.L, m.E, initialize=dict(np.ndenumerate(balance.loads)))
    m.share = pyo.Param(initialize=1.0 / balance.windows)
    m.slots = pyo.Param(initialize=data.slots)
    m.x = pyo.Var(m.L, m.E, m.G, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(m.W, m.L, domain=pyo.NonNegativeReals, bounds=(0.0, _most(balance)), dense=False)

    def objective_rule(m):
        return sum(m.share * m.T[t, l] for t in m.W for l in m.L)

    m.largest_load = pyo.Objective(rule=objective_rule)

    def slots_rule(m, l, g):
        return sum(m.x[l, e, g] for e in m.E) == m.slots

    m.slots_row = pyo.Constraint(m.L, m.G, rule=slots_rule)
    if balance.previous is not None and balance.most_moves is not None:
        m.NEW = pyo.Set(dimen=3, initialize=_new(data))
        m.most_moves = pyo.Param(initialize=balance.most_moves)

        def moves_rule(m):
            return sum(m.x[l, e, g] for l, e, g in m.NEW) <= m.most_moves

        m.moves_row = pyo.Constraint(rule=moves_rule)


def _most(balance: BalanceData) -> float:
    return float(balance.loads.sum(axis=2).max())


def _new(data: ProblemData) -> list[tuple[int, int, int]]:
    """Places (l, e, g) that the plan in use does not hold."""
    from moeopt.balance.hosts import hosts_of

    balance = loads_of(data)
    assert balance.previous is not None
    held = hosts_of(balance.previous, balance.slots, data.experts)
    return [(l, e, g) for l, e, g in np.argwhere(~held).tolist()]


def base_size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers of `add_base`."""
    balance = loads_of(data)
    hosting = data.layers * data.experts * data.gpus
    limited = balance.previous is not None and balance.most_moves is not None
    new = len(_new(data)) if limited else 0
    return {
        "rows": data.layers * data.gpus + (new > 0),
        "columns": hosting + balance.windows * data.layers,
        "nonzeros": hosting + new,
        "integers": hosting,
    }


def add_order(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """GPUs of one kind in the order of their smallest expert, in every layer."""
    parts.add_order(m, _uncoupled(data), strict=False)


def order_size(data: ProblemData) -> tuple[int, int]:
    """(rows, nonzeros) of `add_order`."""
    return parts.order_size(_uncoupled(data), strict=False)


def in_order(data: ProblemData, solution: Solution) -> Solution:
    """Rename GPUs so that a plan satisfies the rows of `add_order`."""
    return parts.in_order(_uncoupled(data), solution)


def _uncoupled(data: ProblemData) -> ProblemData:
    # All slots are filled whatever the plan: memory does not couple the layers.
    return replace(data, free_mib=None)


def solution(values: Values, data: ProblemData) -> Solution:
    """Read the hosts from x."""
    return Solution.from_arrays(data, values["x"] > 0.5)


def hosts_start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Column x of a warm start."""
    return {"x": solution.hosts_array(data.gpus).astype(np.float64)}
