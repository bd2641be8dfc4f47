"""The run record: one JSON line for each (instance, problem, formulation, solver, settings)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["optimal", "feasible", "no_solution_found", "infeasible", "unbounded", "error"]


class Record(BaseModel):
    """``moeopt-record/1``. All problems of this version are minimised.

    Attributes
    ----------
    upper_bound : float or None
        The checker's value of the best checked plan.
    lower_bound : float or None
        The best proved bound; ``lower_bound_from`` names its proof.
    lower_bounds : dict of str to float
        All of them, by proof.
    gap : float or None
        (upper − lower) / max(|upper|, 1e-9).
    claimed_objective : float or None
        What the solver said; reported, never used.
    status : str
        ``optimal`` only if ``gap`` is at most the gap asked for.
    reasons : list of str
        Why there is no feasible plan, in the user's words.
    trajectory : list of [seconds, upper or None, lower or None]
        Bounds over time, thinned; no point is better than the final bounds.
    machine : dict or None
        ``cpu``, ``cores``, ``memory_mib``.
    lp_bound, root_bound : float or None
        Of the formulation alone, where a study asks for them: safe bound of its LP relaxation, the
        solver's bound after its root node.
    key : str or None
        Of the cell, where the record is of a study.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: Literal["moeopt-record/1"] = Field(default="moeopt-record/1", alias="schema")
    instance: str
    instance_sha256: str
    problem: str
    formulation: str | None
    kind: Literal["exact", "relaxation", "restriction", "approximation", "heuristic"]
    solver: str | None
    solver_version: str | None
    moeopt_version: str
    status: Status
    limit: Literal["time", "memory", "nodes"] | None = None
    interrupted: bool = False
    sense: Literal["minimise", "maximise"] = "minimise"
    objective_unit: str
    upper_bound: float | None = None
    upper_bound_from: str | None = None
    lower_bound: float | None = None
    lower_bound_from: str | None = None
    lower_bounds: dict[str, float] = Field(default_factory=dict)
    evaluated_by: str | None = None
    charged: Literal["resident", "activated"] | None = None
    gap: float | None = None
    claimed_objective: float | None = None
    violations: list[dict[str, Any]] = Field(default_factory=list)
    reasons: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    size: dict[str, int] | None = None
    nodes: int | None = None
    peak_memory_mib: float | None = None
    seed: int
    settings: dict[str, Any] = Field(default_factory=dict)
    log: str | None = None
    trajectory: list[tuple[float, float | None, float | None]] = Field(default_factory=list)
    machine: dict[str, str | int] | None = None
    lp_bound: float | None = None
    root_bound: float | None = None
    key: str | None = None

    def json_line(self) -> str:
        """Return the record as one line of JSON (null, never inf or nan)."""
        return self.model_dump_json(by_alias=True)


def relative_gap(upper: float | None, lower: float | None) -> float | None:
    """(upper − lower) / max(|upper|, 1e-9), or None where a side is missing."""
    if upper is None or lower is None:
        return None
    return (upper - lower) / max(abs(upper), 1e-9)
