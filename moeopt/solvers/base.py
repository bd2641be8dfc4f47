"""What every solver adapter takes and gives. Plain data: it crosses a process boundary.

The vocabulary of results is that of MathOpt (termination reason, limit, primal and dual bound).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from moeopt.linear import LinearModel

FloatArray = npt.NDArray[np.float64]

TerminationReason = Literal[
    "optimal",  # within the gap asked for, says the solver
    "feasible",  # a limit was reached with an incumbent
    "no_solution_found",  # a limit was reached without one
    "infeasible",
    "unbounded",
    "infeasible_or_unbounded",
    "imprecise",
    "numerical_error",
    "other_error",
]
Limit = Literal["time", "memory", "nodes", "iterations", "interrupted"]


@dataclass(frozen=True)
class SolveSettings:
    """Settings common to all solvers; ``options`` are the solver's own, checked strictly.

    ``gap`` is relative. ``time_limit_s`` is the solver's own; the worker's hard limit comes on top.
    """

    time_limit_s: float | None = None
    memory_limit_mib: float | None = None
    gap: float = 1e-6
    threads: int = 1
    seed: int = 0
    node_limit: int | None = None
    options: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """One event of a running solve: a new incumbent or a better bound, in the model's objective."""

    seconds: float
    primal_bound: float | None = None
    dual_bound: float | None = None
    nodes: int | None = None
    values: FloatArray | None = None  # of a new incumbent


@dataclass
class SolveResult:
    """What a solver says. Nothing of it is believed before the checker has seen it.

    ``dual_bound`` is a bound of the *original* model's objective in its own sense, None if none is
    known. ``dual_bound_from`` names its proof. For LPs, ``row_dual`` holds the row duals.
    """

    reason: TerminationReason
    limit: Limit | None = None
    primal_bound: float | None = None
    dual_bound: float | None = None
    dual_bound_from: str | None = None
    values: FloatArray | None = None
    row_dual: FloatArray | None = None
    nodes: int | None = None
    iterations: int | None = None
    seconds: float = 0.0
    message: str = ""


Emit = Callable[[Progress], None]


class Stop(Protocol):
    """Tells an adapter to stop as soon as it can (Ctrl-C, a limit)."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class Adapter(Protocol):
    """A module ``moeopt/solvers/<name>.py``. It imports its solver inside functions only."""

    NAME: str

    def version(self) -> str:
        """Version of the solver."""
        ...

    def supports(self, model: LinearModel) -> str | None:
        """None, or why this solver cannot take the model honestly, in words."""
        ...

    def solve(
        self,
        model: LinearModel,
        settings: SolveSettings,
        start: FloatArray | None,
        emit: Emit,
        stop: Stop,
        log_path: str | None,
    ) -> SolveResult:
        """Solve. ``start`` has one value a column, NaN where unknown (a partial warm start)."""
        ...
