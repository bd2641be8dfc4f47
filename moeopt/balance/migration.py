"""Balance against moves: plans near the plan in use.

Each layer is searched with a growing number of copies that may move, each search from the plan
before it. Which layer gets how many of the moves allowed in all is a knapsack, solved exactly over
the plans found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moeopt.balance.data import BalanceData, BoolArray, IntArray, layer_of
from moeopt.balance.even import improve_layer, mean_largest
from moeopt.balance.layer import Effort, free_part
from moeopt.balance.packing import experts_of, packing_of
from moeopt.balance.repair import repaired
from moeopt.errors import InputError
from moeopt.words import counted

#: Moves of a layer that are tried: beyond the first, each so many times the last.
_GROWTH = 1.4


@dataclass(frozen=True)
class Candidate:
    """A plan of one layer (P,), the copies it moves, and its mean largest load up to rounding."""

    plan: IntArray
    moves: int
    value: float


@dataclass(frozen=True)
class FrontPoint:
    """The best plan found with at most ``most_moves`` moves: plan (L, P), and its moves."""

    most_moves: int
    moves: int
    plan: IntArray


def plan_within_budget(data: BalanceData, effort: Effort) -> IntArray:
    """Return a feasible plan (L, P) within the instance's budget of moves.

    Raises
    ------
    InputError
        The budget does not even make the plan in use feasible, or that plan does not keep groups
        on nodes.
    """
    assert data.most_moves is not None
    return balance_front(data, [data.most_moves], effort)[0].plan


def balance_front(data: BalanceData, budgets: list[int], effort: Effort) -> list[FrontPoint]:
    """Return a plan for each number of moves allowed over all layers, under even split.

    Parameters
    ----------
    data : BalanceData
        With the plan in use; its own budget is not looked at.
    budgets : list of int
    effort : Effort
        Of one search; there are many for each layer.

    Raises
    ------
    InputError
        As `plan_within_budget`.
    """
    if data.previous is None:
        raise InputError("the plan in use is needed")
    free = replace(data, most_moves=None)
    first = [_first(free, l) for l in range(data.layers)]
    needed = sum(candidate.moves for candidate in first)
    if needed > min(budgets):
        raise InputError(
            f"{counted(needed, 'copy', 'copies')} must move to make the plan in use feasible: "
            f"{min(budgets)} are not enough"
        )
    spare = max(budgets) - needed
    layers = [_candidates(free, l, first[l], spare, effort) for l in range(data.layers)]
    points = []
    for budget in budgets:
        chosen = _choose(layers, budget)
        plan = np.stack([candidate.plan for candidate in chosen])
        points.append(FrontPoint(budget, sum(c.moves for c in chosen), plan))
    return points


def _first(data: BalanceData, l: int) -> Candidate:
    """The plan in use, made feasible."""
    assert data.previous is not None
    weight = layer_of(data, l).mean(axis=0)
    if data.parts == 1:
        plan = repaired(data.previous[l], data.experts, data.slots, weight)
    elif packing_of(data, data.previous[l]) is None:
        raise InputError(f"layer {l}: the plan in use does not keep each group on one node")
    else:
        plan = _repaired_parts(data, l)
    return _candidate(data, l, plan)


def _repaired_parts(data: BalanceData, l: int) -> IntArray:
    assert data.previous is not None
    plan, weight = data.previous[l].copy(), layer_of(data, l).mean(axis=0)
    packing = packing_of(data, plan)
    assert packing is not None
    each = data.gpus // data.parts
    part = data.gpu_of_slot // each
    for n, groups in enumerate(packing):
        experts = experts_of(data, groups)
        local = np.full(data.experts + 1, -1, dtype=np.int64)  # the last is for empty slots
        local[experts] = np.arange(len(experts))
        slots = data.slots[n * each : (n + 1) * each]
        fixed = repaired(local[plan[part == n]], len(experts), slots, weight[experts])
        plan[part == n] = experts[fixed]
    return plan


def _candidate(data: BalanceData, l: int, plan: IntArray) -> Candidate:
    held = _held(data, l)
    moves = int((~held[plan, data.gpu_of_slot]).sum())
    return Candidate(plan, moves, mean_largest(data, l, plan))


def _held(data: BalanceData, l: int) -> BoolArray:
    assert data.previous is not None
    held = np.zeros((data.experts, data.gpus), dtype=bool)
    before = data.previous[l]
    held[before[before >= 0], data.gpu_of_slot[before >= 0]] = True
    return held


def _candidates(
    data: BalanceData, l: int, first: Candidate, spare: int, effort: Effort
) -> list[Candidate]:
    """Plans of a layer with more and more moves."""
    found = [first]
    floor = float(free_part(layer_of(data, l), data.slots).floor.mean())
    held = _held(data, l)
    for extra in _steps(min(spare, data.replicas - first.moves)):
        if found[-1].value <= floor * (1 + effort.tolerance):
            break
        plan = improve_layer(data, l, found[-1].plan, effort, held, first.moves + extra)
        candidate = _candidate(data, l, plan)
        if candidate.value < found[-1].value:
            found.append(candidate)
    return found


def _steps(most: int) -> list[int]:
    """Numbers from 1 to ``most``, ever further apart."""
    steps, at = [], 1
    while at < most:
        steps.append(at)
        at = max(at + 1, int(at * _GROWTH))
    return [*steps, most] if most > 0 else []


def _choose(layers: list[list[Candidate]], budget: int) -> list[Candidate]:
    """One candidate for each layer, the sum of values least, at most ``budget`` moves."""
    least = np.zeros(budget + 1)  # least[m]: least sum so far with at most m moves
    picks = []
    for candidates in layers:
        values = np.full((len(candidates), budget + 1), np.inf)
        for k, candidate in enumerate(candidates):
            if candidate.moves <= budget:
                values[k, candidate.moves :] = (
                    least[: budget + 1 - candidate.moves] + candidate.value
                )
        picks.append(values.argmin(axis=0))
        least = values.min(axis=0)
    chosen, left = [], budget
    for candidates, pick in zip(reversed(layers), reversed(picks), strict=True):
        candidate = candidates[int(pick[left])]
        chosen.append(candidate)
        left -= candidate.moves
    return chosen[::-1]
