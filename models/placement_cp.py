"""Placement, native CP model: who shares a GPU with whom.

Equations (C1)-(C9): docs/formulations/placement_cp.md. In expert-time units a scenario's time is
one more than the number of GPU mates of its most crowded expert, so the times need the pairs
``same[i, j]`` only: no GPU index, hence no GPU symmetry, in the objective.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from moeopt.models import _cp as cp
from moeopt.models import _parts as parts

from moeopt.problem import ProblemData
from moeopt.solution import Solution

if TYPE_CHECKING:
    from moeopt.solvers.native import NativeCp

PROBLEM = "placement"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

kind = parts.kind_of_form


def supports(data: ProblemData) -> str | None:
    """Every placement instance."""
    return None


def size(data: ProblemData) -> dict[str, int]:
    """Constraints, variables, literals in the constraints on scenarios, integers."""
    scenarios = sum(len(layer) for layer in data.scenarios)
    hosting = data.layers * data.experts * data.gpus
    pairs = sum(len(_pairs(data, l)) for l in range(data.layers))
    if data.layer_time.form == "unit":
        rows = pairs * data.gpus + sum(len(layer.expert) for layer in data.scenarios)
        full = data.layers * data.experts if _full(data) else 0
        rows += full
        literals = (3 * data.gpus + 2 * bool(full)) * pairs + sum(
            int((s.sizes**2).sum()) for s in data.scenarios
        )
    else:
        pieces = len(data.layer_time.pieces())
        rows = scenarios * data.gpus * pieces
        literals = sum(len(layer.expert) for layer in data.scenarios) * data.gpus * pieces + rows
    columns = hosting + scenarios + (pairs if data.layer_time.form == "unit" else 0)
    return {
        "rows": rows
        + parts.capacity_size(data)[0]
        + data.layers * data.experts
        + parts.order_size(data, strict=True)[0],
        "columns": columns,
        "nonzeros": literals,
        "integers": columns,
    }


def _pairs(data: ProblemData, l: int) -> list[tuple[int, int]]:
    """Pairs whose sharing matters: used together, or all where groups must be full."""
    if _full(data):
        return list(itertools.combinations(range(data.experts), 2))
    layer = data.scenarios[l]
    return sorted(
        {
            pair
            for s in range(len(layer))
            for pair in itertools.combinations(layer.members(s).tolist(), 2)
        }
    )


def _full(data: ProblemData) -> bool:
    return data.slots is not None and data.slots * data.gpus == data.experts


def build_cpsat(data: ProblemData) -> NativeCp:
    """Build the model."""
    from ortools.sat.python import cp_model

    from moeopt.solvers.native import NativeCp

    model = cp_model.CpModel()
    x = cp.add_hosting(model, data)  # (C3), (C4)
    for l in range(data.layers):
        for e in range(data.experts):
            model.add_exactly_one(x[l, e, g] for g in range(data.gpus))  # (C2)
    cp.add_precedence(model, data, x, strict=True)  # (C7)
    add_times = _add_times_by_pairs if data.layer_time.form == "unit" else _add_times_by_gpu
    terms = []
    for l in range(data.layers):
        times = add_times(model, data, l, x)
        terms += [
            cp.floor_weight(data, weight) * time
            for weight, time in zip(data.scenarios[l].weight.tolist(), times, strict=True)
        ]
    model.minimize(sum(terms))  # (C1)

    def solution(read: Any) -> Solution:
        hosts = parts.hosts_of(data, {key: read(literal) for key, literal in x.items()})
        return Solution.from_arrays(data, hosts)

    def start(plan: Solution) -> list[tuple[Any, int]]:
        return cp.hinted(data, x, parts.in_order(data, plan).hosts_array(data.gpus))

    return NativeCp(model, solution, lambda value: cp.objective_bound(data, value), start)


def _add_times_by_pairs(model: Any, data: ProblemData, l: int, x: cp.Literals) -> list[Any]:
    """Times of the scenarios in expert-time units, through the pairs that share a GPU."""
    same = {}
    for i, j in _pairs(data, l):
        same[i, j] = same[j, i] = model.new_bool_var(f"same[{l},{i},{j}]")
        for g in range(data.gpus):
            model.add_bool_or([x[l, i, g].negated(), x[l, j, g].negated(), same[i, j]])  # (C5)
    if _full(data):
        assert data.slots is not None
        for i in range(data.experts):
            mates = [same[i, j] for j in range(data.experts) if j != i]
            model.add(sum(mates) == data.slots - 1)  # (C6)
    layer, times = data.scenarios[l], []
    for s in range(len(layer)):
        members = layer.members(s).tolist()
        low, high = cp.time_range(data, len(members), 0)
        time = model.new_int_var(low, high, f"T[{l},{s}]")
        for i in members:
            model.add(time >= 1 + sum(same[i, j] for j in members if j != i))  # (C8)
        times.append(time)
    return times


def _add_times_by_gpu(model: Any, data: ProblemData, l: int, x: cp.Literals) -> list[Any]:
    """Times of the scenarios on the integer grid, rounded down, by GPU and piece of f."""
    layer, times = data.scenarios[l], []
    for s in range(len(layer)):
        members, counts = layer.members(s).tolist(), layer.counts(s).tolist()
        time = model.new_int_var(*cp.time_range(data, len(members), sum(counts)), f"T[{l},{s}]")
        for constant, act, tok in data.layer_time.pieces():
            costs = [cp.floor_cost(data, act, tok, n) for n in counts]
            for g in range(data.gpus):
                load = sum(c * x[l, e, g] for c, e in zip(costs, members, strict=True))
                model.add(time >= cp.floor_time(data, constant) + load)  # (C9)
        times.append(time)
    return times
