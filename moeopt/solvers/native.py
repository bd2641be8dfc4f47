"""NativeCp: what a formulation's ``build_cpsat`` returns, a CP model that is no translated MILP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

    from moeopt.solution import Solution

#: Reads the value of a variable (or literal) in CP-SAT's solution.
Reader = Callable[[Any], int]


@dataclass
class NativeCp:
    """A CP-SAT model that minimises an integer expression.

    Attributes
    ----------
    model : ortools.sat.python.cp_model.CpModel
    solution : callable
        ``solution(read)`` returns the domain solution; ``read(variable)`` is a variable's value.
    bound : callable
        Maps CP-SAT's integer lower bound to a valid lower bound of the true objective.
    start : callable or None
        ``start(solution)`` returns hints ``[(variable, value), …]``.
    """

    model: cp_model.CpModel
    solution: Callable[[Reader], Solution]
    bound: Callable[[int], float]
    start: Callable[[Solution], list[tuple[Any, int]]] | None = None
