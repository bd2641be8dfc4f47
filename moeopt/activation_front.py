"""Step time against kept gate mass: checked plans and bounds at many budgets of one instance.

Four ways stand side by side: experts placed anew or as they lie today (contiguous), and kept
experts chosen layer by layer or equally many in all layers, as has been published.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeopt.activating import (
    Choice,
    LayerValues,
    choices,
    fixed_values,
    uniform,
    value_layers,
)
from moeopt.activation.data import activation_of, dropped_of, kept_share, placement_of
from moeopt.checker import check_solution
from moeopt.errors import InputError, SolverError
from moeopt.heuristics.greedy import contiguous
from moeopt.problem import ProblemData
from moeopt.solution import Solution


@dataclass(frozen=True)
class Point:
    """A checked plan within a budget, and what no plan within it is below.

    Attributes
    ----------
    budget_share : float
        Mean gate mass of a layer that has to be kept: 1 less the budget's share.
    kept_share : float
        Mean gate mass that the plan keeps.
    step : float
        The checker's objective, in its unit.
    lower : float
    solution : Solution
        Of the problem with this budget.
    """

    budget_share: float
    kept_share: float
    step: float
    lower: float
    solution: Solution

    @property
    def mean_kept(self) -> float:
        """Kept experts, mean over the layers."""
        return float(np.mean(self.solution.activated or [0]))


def budgets_of(data: ProblemData, points: int) -> list[int]:
    """Budgets from nothing to all that can be dropped, equally spaced (at least two)."""
    most = int(activation_of(data).dropped[:, 0].sum())
    return [most * i // (points - 1) for i in range(points)]


def front(data: ProblemData, values: LayerValues, budgets: Sequence[int]) -> list[Point]:
    """Return the best plan and the bound of each budget.

    Raises
    ------
    SolverError
        A plan breaks a rule, or is below its bound: a bug.
    """
    return [_checked(data, choice) for choice in choices(data, values, budgets)]


def uniform_points(data: ProblemData, values: LayerValues) -> list[Point]:
    """Return the plan of 1, 2, … k kept experts in every layer, with the bound of its budget."""
    return [_checked(data, uniform(data, values, j)) for j in range(1, data.top_k + 1)]


def _checked(data: ProblemData, choice: Choice) -> Point:
    activation = activation_of(data)
    # Hosts to be kept are part of the instance, not of this comparison.
    asked = replace(data, activation=replace(activation, budget=choice.budget, hosts=None))
    plan = Solution.from_arrays(asked, choice.hosts, activated=choice.kept)
    report = check_solution(asked, plan)
    if report.violations or report.objective is None:
        raise SolverError(f"a plan breaks a rule: {report.violations[0].message}")
    if choice.lower > report.objective:
        raise SolverError(
            f"a lower bound exceeds a checked plan: {choice.lower!r} ({choice.source}) > "
            f"{report.objective!r}; one of them is wrong: please report the instance"
        )
    return Point(
        kept_share(activation, choice.budget),
        kept_share(activation, dropped_of(activation, choice.kept)),
        report.objective,
        choice.lower,
        plan.model_copy(update={"objective": report.objective}),
    )


def four_ways(
    data: ProblemData, points: int, *, time_limit_s: float, seed: int = 0
) -> dict[str, list[Point]]:
    """Return ``placed``, ``contiguous``, ``uniform_placed`` and ``uniform_contiguous`` points.

    Budgets are equally spaced, and those that equally many experts in every layer drop. ``placed``
    is bounded over all placements; the bounds of ``contiguous`` ones are of that placement.

    Raises
    ------
    InputError
        Contiguous groups do not fit into the slots.
    """
    free = replace(data, activation=replace(activation_of(data), hosts=None))
    today = contiguous(placement_of(free, [data.top_k] * data.layers))
    if today is None:
        raise InputError(f"{data.name}: contiguous groups of experts do not fit into the slots")
    begin = time.monotonic()
    fixed = fixed_values(free, today)
    placed = value_layers(free, seed=seed, time_limit_s=time_limit_s - (time.monotonic() - begin))
    uniform_budgets = activation_of(data).dropped.sum(axis=0).tolist()
    budgets = sorted({*budgets_of(data, points), *uniform_budgets})
    return {
        "placed": front(free, placed, budgets),
        "contiguous": front(free, fixed, budgets),
        "uniform_placed": uniform_points(free, placed),
        "uniform_contiguous": uniform_points(free, fixed),
    }
