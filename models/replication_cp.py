"""Replication, native CP model: exactly one serving replica an expert, as clauses.

Equations (D1)-(D8): docs/formulations/replication_cp.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeopt.models import _cp as cp
from moeopt.models import _parts as parts
from moeopt.models import replication_matching as milp

from moeopt.problem import ProblemData
from moeopt.solution import Solution

if TYPE_CHECKING:
    from moeopt.solvers.native import NativeCp

PROBLEM = "replication"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

kind = parts.kind_of_form


def supports(data: ProblemData) -> str | None:
    """Every replication instance."""
    return None


def size(data: ProblemData) -> dict[str, int]:
    """About the size of the matching formulation, whose variables it has as literals."""
    return milp.size(data)


def build_cpsat(data: ProblemData) -> NativeCp:
    """Build the model."""
    from ortools.sat.python import cp_model

    from moeopt.solvers.native import NativeCp

    model = cp_model.CpModel()
    x = cp.add_hosting(model, data)  # (D3), (D4)
    for l in range(data.layers):
        for e in range(data.experts):
            model.add_at_least_one(x[l, e, g] for g in range(data.gpus))  # (D2)
    cp.add_precedence(model, data, x, strict=False)  # (D8)
    add_scenario = _add_split if milp.splits(data) else _add_whole
    terms = []
    for l, layer in enumerate(data.scenarios):
        for s in range(len(layer)):
            members, counts = layer.members(s).tolist(), layer.counts(s).tolist()
            low, high = cp.time_range(data, len(members), sum(counts))
            time = model.new_int_var(low, high, f"T[{l},{s}]")
            add_scenario(model, data, l, members, counts, time, x)
            terms.append(cp.floor_weight(data, float(layer.weight[s])) * time)
    model.minimize(sum(terms))  # (D1)

    def solution(read: Any) -> Solution:
        hosts = parts.hosts_of(data, {key: read(literal) for key, literal in x.items()})
        return Solution.from_arrays(data, hosts)

    def start(plan: Solution) -> list[tuple[Any, int]]:
        return cp.hinted(data, x, parts.in_order(data, plan).hosts_array(data.gpus))

    return NativeCp(model, solution, lambda value: cp.objective_bound(data, value), start)


def _add_whole(
    model: Any,
    data: ProblemData,
    l: int,
    members: list[int],
    counts: list[int],
    time: Any,
    x: cp.Literals,
) -> None:
    """One replica serves each expert of the scenario."""
    serves = {}
    for e in members:
        for g in range(data.gpus):
            serves[e, g] = model.new_bool_var("")
            model.add_implication(serves[e, g], x[l, e, g])  # (D6)
        model.add_exactly_one(serves[e, g] for g in range(data.gpus))  # (D5)
    for constant, act, tok in data.layer_time.pieces():
        costs = [cp.floor_cost(data, act, tok, n) for n in counts]
        for g in range(data.gpus):
            load = sum(c * serves[e, g] for c, e in zip(costs, members, strict=True))
            model.add(time >= cp.floor_time(data, constant) + load)  # (D7)


def _add_split(
    model: Any,
    data: ProblemData,
    l: int,
    members: list[int],
    counts: list[int],
    time: Any,
    x: cp.Literals,
) -> None:
    """Whole tokens of an expert on the replicas that are activated."""
    active, tokens = {}, {}
    for e, n in zip(members, counts, strict=True):
        for g in range(data.gpus):
            active[e, g] = model.new_bool_var("")
            tokens[e, g] = model.new_int_var(0, n, "")
            model.add_implication(active[e, g], x[l, e, g])  # (D6)
            model.add(tokens[e, g] == 0).only_enforce_if(active[e, g].negated())
        model.add(sum(tokens[e, g] for g in range(data.gpus)) == n)  # (D5)
    for constant, act, tok in data.layer_time.pieces():
        a, b = cp.floor_time(data, act), cp.floor_time(data, tok)
        for g in range(data.gpus):
            load = sum(a * active[e, g] + b * tokens[e, g] for e in members)
            model.add(time >= cp.floor_time(data, constant) + load)  # (D7)
