"""Pieces that the formulations of affinity share: hosting, equal numbers, loads, objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _parts as parts

from moeopt.affinity.data import AffinityData
from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData
from moeopt.solution import Solution


def affinity_of(data: ProblemData) -> AffinityData:
    """Return the arrays of an instance that `why_not` took."""
    if data.affinity is None:
        raise ValueError("no plan exists")
    return data.affinity


def why_not(data: ProblemData, kinds: tuple[str, ...]) -> str | None:
    """None if a formulation for these kinds takes the instance, else the reason."""
    if data.affinity is None:
        return "no plan exists"
    if data.affinity.kind not in kinds:
        return f"its kind is {data.affinity.kind}, this formulation is for {', '.join(kinds)}"
    return None


def flow_keys(affinity: AffinityData) -> list[tuple[int, int, int]]:
    """(l, e, f) with tokens from e of layer l to f of the next, in order."""
    return [(l, e, f) for l, e, f in np.argwhere(affinity.flow > 0).tolist()]


def add_base(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Sets, hosting x, one GPU an expert, equal numbers on GPUs, loads where they are limited."""
    affinity = affinity_of(data)
    parts.add_sets(m, data)
    m.size = pyo.Param(initialize=affinity.size)
    m.x = pyo.Var(m.L, m.E, m.G, domain=pyo.Binary, dense=False)

    def hosted_rule(m, l, e):
        return sum(m.x[l, e, g] for g in m.G) == 1

    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)

    def size_rule(m, l, g):
        return sum(m.x[l, e, g] for e in m.E) == m.size

    m.size_row = pyo.Constraint(m.L, m.G, rule=size_rule)
    if affinity.max_load is not None:
        m.tokens = pyo.Param(m.L, m.E, initialize=dict(np.ndenumerate(affinity.load)))
        m.most = pyo.Param(m.L, initialize=dict(enumerate(affinity.most_load.tolist())))

        def load_rule(m, l, g):
            return sum(m.tokens[l, e] * m.x[l, e, g] for e in m.E) <= m.most[l]

        m.load_row = pyo.Constraint(m.L, m.G, rule=load_rule)


def base_size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers of `add_base`."""
    affinity = affinity_of(data)
    hosting = data.layers * data.experts * data.gpus
    limited = affinity.max_load is not None
    loaded = int((affinity.load != 0).sum()) * data.gpus if limited else 0
    return {
        "rows": data.layers * (data.experts + (1 + limited) * data.gpus),
        "columns": hosting,
        "nonzeros": 2 * hosting + loaded,
        "integers": hosting,
    }


def add_nodes(m: pyo.ConcreteModel, affinity: AffinityData) -> None:
    """Nodes N, their GPUs INSIDE[v], and what a shared GPU and a shared node save."""
    inside = {v: np.flatnonzero(affinity.node == v).tolist() for v in range(affinity.nodes)}
    m.N = pyo.RangeSet(0, affinity.nodes - 1)
    m.INSIDE = pyo.Set(m.N, initialize=inside)
    m.near = pyo.Param(initialize=affinity.near)
    m.farther = pyo.Param(initialize=affinity.far - affinity.near)


def solution(values: Values, data: ProblemData) -> Solution:
    """Read the hosts from x."""
    return Solution.from_arrays(data, values["x"] > 0.5)


def hosts_start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Column x of a warm start."""
    return {"x": solution.hosts_array(data.gpus).astype(np.float64)}


def _renamed(data: ProblemData) -> ProblemData:
    """Data whose layers have their own GPU names (``intra``), or share them (``inter``)."""
    shared = affinity_of(data).kind == "inter"
    return replace(data, free_mib=np.zeros(data.gpus) if shared else None)


def add_order(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """GPUs of a node in the order of their smallest expert, in the layers whose names are free."""
    parts.add_order(m, _renamed(data), strict=True)


def order_size(data: ProblemData) -> tuple[int, int]:
    """(rows, nonzeros) of `add_order`."""
    return parts.order_size(_renamed(data), strict=True)


def in_order(data: ProblemData, solution: Solution) -> Solution:
    """Rename GPUs so that a plan satisfies the rows of `add_order`."""
    return parts.in_order(_renamed(data), solution)
