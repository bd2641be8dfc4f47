"""How a solve ended, in one word."""

from __future__ import annotations

from typing import Literal

from moeopt.choosing import Choice
from moeopt.problem import ProblemData
from moeopt.record import Status
from moeopt.solvers.supervise import WorkerOutcome

Limit = Literal["time", "memory", "nodes"]

#: A run without a search that took this share of its limit was ended by it.
_NEARLY = 0.9


def status_of(
    data: ProblemData,
    choice: Choice | None,
    outcome: WorkerOutcome | None,
    *,
    gap: float | None,
    gap_asked: float,
    has_plan: bool,
    was_rejected: bool,
) -> Status:
    """Return the status of a run for which no reason is known why there is no plan."""
    if gap is not None and gap <= gap_asked:
        return "optimal"
    if outcome is not None and outcome.cause in ("killed", "crashed"):
        return "error"
    if has_plan:
        return "feasible"
    result = outcome.result if outcome is not None else None
    if result is None or choice is None:
        return "no_solution_found"
    if result.reason in ("numerical_error", "imprecise", "other_error") or was_rejected:
        return "error"
    if choice.proves(data) and result.reason == "infeasible":
        return "infeasible"
    return "no_solution_found"


def limit_of(outcome: WorkerOutcome | None) -> Limit | None:
    """Return the limit that ended a search in a worker."""
    if outcome is None:
        return None
    if outcome.cause in ("time", "memory"):
        return outcome.cause
    if outcome.result is not None and outcome.result.limit in ("time", "memory", "nodes"):
        return outcome.result.limit
    return None


def limit_without_search(status: Status, seconds: float, time_limit_s: float) -> Limit | None:
    """Return the limit that ended a run that has no search in a worker."""
    return "time" if status == "feasible" and seconds >= _NEARLY * time_limit_s else None
