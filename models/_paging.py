"""Pieces that the formulations of paging share: gaps, what is loaded again, the objective."""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo

from moeopt.linear import Values
from moeopt.paging.data import PagingData
from moeopt.paging.intervals import Gaps, evictions_of, gaps_of, loaded_again
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution
from moeopt.solution_paging import evictions_of_solution, solution_of_evictions


def paging_of(data: ProblemData) -> PagingData:
    """Return the requests and the cache of an instance that `why_not` took."""
    if data.paging is None:
        raise ValueError("there are no requests to serve")
    return data.paging


def why_not(data: ProblemData) -> str | None:
    """None if the formulations take the instance, else the reason."""
    paging = paging_of(data)
    if paging.requests.widest > paging.cache:
        return "no plan exists"
    return None if len(gaps_of(paging.requests)) else "nothing is to be decided"


def add_base(m: pyo.ConcreteModel, data: ProblemData) -> Gaps:
    """Requests T, gaps I, reloads y, cost of the loads."""
    paging = paging_of(data)
    requests, gaps = paging.requests, gaps_of(paging.requests)
    load = np.ones(data.layers) if paging.load_us is None else paging.load_us
    cost = load[requests.page[gaps.use] // data.experts]
    m.T = pyo.RangeSet(0, len(requests) - 1)
    m.I = pyo.RangeSet(0, len(gaps) - 1)
    m.cost = pyo.Param(m.I, initialize=dict(enumerate(cost.tolist())))
    m.first = pyo.Param(initialize=float(requests.distinct_by_layer() @ load))
    m.y = pyo.Var(m.I, domain=pyo.Binary, dense=False)

    def objective_rule(m):
        return m.first + sum(m.cost[i] * m.y[i] for i in m.I)

    m.loads = pyo.Objective(rule=objective_rule)
    return gaps


def solution(values: Values, data: ProblemData) -> Solution:
    """Let a page go where y says that it is loaded again."""
    requests = paging_of(data).requests
    evictions = evictions_of(requests, gaps_of(requests), values["y"] > 0.5)
    return solution_of_evictions(data, evictions)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Column y of a warm start."""
    paging = paging_of(data)
    evictions = evictions_of_solution(data, solution)
    again = loaded_again(paging.requests, gaps_of(paging.requests), paging.cache, evictions)
    return {"y": again.astype(np.float64)}
