"""All layers of ``balance``: plans, checked, with the lower bound of every layer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from moeopt.balance.bounding import LayerBound, bound_layer
from moeopt.balance.check import BalanceReport, check_balance
from moeopt.balance.data import BalanceData, FloatArray, IntArray
from moeopt.balance.eplb import published_plan
from moeopt.balance.even import find_layer, mean_largest
from moeopt.balance.layer import Effort
from moeopt.balance.migration import plan_within_budget
from moeopt.balance.optimal import best_shares, improve_levelled
from moeopt.errors import MoeoptError


@dataclass(frozen=True)
class BalanceOutcome:
    """A checked plan and how good it is.

    Attributes
    ----------
    plan : int array, shape (L, P)
        Expert in every slot.
    shares : float array, shape (W, L, P), or None
        Tokens of each slot under the rule ``optimal``.
    report : BalanceReport
        Of the checker.
    bounds : list of LayerBound
        One for each layer.
    """

    plan: IntArray
    shares: FloatArray | None
    report: BalanceReport
    bounds: list[LayerBound]

    @property
    def lower(self) -> FloatArray:
        """Lower bounds of the layers, in tokens, shape (L,)."""
        return np.array([bound.value for bound in self.bounds])

    @property
    def gap(self) -> FloatArray:
        """(upper − lower) / upper of each layer, shape (L,); 0 where nothing is loaded."""
        upper = self.report.per_layer
        return np.where(upper > 0, (upper - self.lower) / np.where(upper > 0, upper, 1.0), 0.0)


def solve_balance(data: BalanceData, effort: Effort | None = None) -> BalanceOutcome:
    """Find a plan for every layer, check it, and bound every layer.

    Parameters
    ----------
    data : BalanceData
    effort : Effort, optional
        How long to search; `Effort` () if not given.

    Raises
    ------
    InputError
        The migration budget does not even make the plan in use feasible.
    MoeoptError
        A plan fails its check, or a lower bound is above the plan's value: an error of moeopt.
    """
    effort = effort or Effort()
    plan = find_plan(data, effort)
    shares = best_shares(data, plan) if data.rule == "optimal" else None
    report = check_balance(data, plan, shares)
    if report.violations:
        raise MoeoptError(["the plan found is not feasible: report this", *report.violations])
    bounds = [bound_layer(data, l, report.largest[:, l]) for l in range(data.layers)]
    for l, (bound, upper) in enumerate(zip(bounds, report.per_layer.tolist(), strict=True)):
        if bound.value > upper:
            raise MoeoptError(
                f"layer {l}: bound {bound.value} ({bound.method}) above the plan's {upper}: "
                "report this"
            )
    return BalanceOutcome(plan, shares, report, bounds)


def find_plan(data: BalanceData, effort: Effort) -> IntArray:
    """Return a feasible plan, shape (L, P); under even split no worse than the published one."""
    if data.previous is not None and data.most_moves is not None:
        return plan_within_budget(data, effort)
    layers = [find_layer(data, l, effort) for l in range(data.layers)]
    known = _published(data)
    for l in range(data.layers):
        if known is not None and _better(data, l, known[l], layers[l]):
            layers[l] = known[l]
        if data.rule == "optimal":
            layers[l] = improve_levelled(data, l, layers[l], effort)
    plan = np.stack(layers)
    return plan if data.previous is None else keep_slots(data, data.previous, plan)


def keep_slots(data: BalanceData, previous: IntArray, plan: IntArray) -> IntArray:
    """Order the slots of every GPU so that experts that stay keep theirs; plans (L, P)."""
    first = np.concatenate([[0], np.cumsum(data.slots)]).tolist()
    kept = plan.copy()
    for before, row in zip(previous, kept, strict=True):
        for begin, end in itertools.pairwise(first):
            here = set(row[begin:end].tolist())
            stay = {p: e for p, e in enumerate(before[begin:end].tolist()) if e in here}
            # A previous plan may hold an expert twice; it keeps one of its slots.
            stay = {p: e for e, p in {e: p for p, e in stay.items()}.items()}
            come = iter([e for e in row[begin:end].tolist() if e not in set(stay.values())])
            row[begin:end] = [stay[p] if p in stay else next(come) for p in range(end - begin)]
    return kept


def _better(data: BalanceData, l: int, plan: IntArray, other: IntArray) -> bool:
    """Whether a plan (P,) is feasible and better than another one, under even split."""
    if mean_largest(data, l, plan) >= mean_largest(data, l, other):
        return False
    layer = BalanceData(data.loads[:, l : l + 1], data.slots, data.nodes, data.groups)
    return not check_balance(layer, plan[None]).violations


def _published(data: BalanceData) -> IntArray | None:
    """Plan of the published heuristic for the mean load; None where it does not apply."""
    if len(set(data.slots.tolist())) > 1:
        return None
    groups, nodes = (data.groups, data.nodes) if data.parts > 1 else (1, 1)
    return published_plan(data.loads.mean(axis=0), data.replicas, groups, nodes, data.gpus).slots
