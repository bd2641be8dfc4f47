"""Formulations and solvers side by side on one or more instances, each cell a checked solve."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from moeopt.bounding import MANY_NONZEROS
from moeopt.catalog import is_native, load_formulation, read_instance, solver_names
from moeopt.errors import InputError
from moeopt.limits import require_limits
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.record import relative_gap
from moeopt.running import FLOAT_BOUND_SLACK
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.supervise import run_job
from moeopt.solving import solve

#: CP-SAT's options for a bound at the root.
_CPSAT_ROOT = {"max_number_of_conflicts": 1, "linearization_level": 2}


@dataclass
class Comparison:
    """One cell: a formulation with a solver on an instance.

    ``lp_bound``: safe bound of the LP relaxation; ``root_bound``: the solver's bound after the root
    node (:func:`root_bound`); ``lower_bound``: the solver's own best bound (no combinatorial ones);
    ``upper_bound``: the checker's value of its plan. ``skipped``: why there is nothing, if so.
    """

    instance: str
    formulation: str
    kind: str
    solver: str
    rows: int | None = None
    columns: int | None = None
    nonzeros: int | None = None
    integers: int | None = None
    lp_bound: float | None = None
    root_bound: float | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None
    gap: float | None = None
    nodes: int | None = None
    seconds: float | None = None
    status: str | None = None
    skipped: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def compare(
    instances: list[str | os.PathLike[str]],
    *,
    problem: str,
    formulations: list[str],
    solvers: list[str] | None = None,
    time_limit_s: float = 60.0,
    gap: float = 1e-6,
    threads: int | None = None,
    seed: int = 0,
    on_cell: Callable[[Comparison], None] = lambda cell: None,
) -> list[Comparison]:
    """Solve the cross product, one cell after the other.

    Parameters
    ----------
    time_limit_s : float
        For each cell, and again for its LP relaxation and its root node.
    on_cell : callable
        Called with every finished cell.

    Returns
    -------
    list of Comparison
        A cell that a formulation or solver does not take is listed with the reason.

    Raises
    ------
    InputError
        A name that does not exist.
    """
    require_limits(time_limit_s)
    for name in formulations:
        module = load_formulation(name)
        if problem != module.PROBLEM:
            raise InputError(f"formulation {name} is for {module.PROBLEM}, not for {problem}")
    for solver in solvers or []:
        if solver not in solver_names():
            raise InputError(
                f"there is no solver {solver!r}; solvers are {', '.join(solver_names())}"
            )
    cells = []
    for instance in instances:
        data = prepare(read_instance(instance), problem)
        for name in formulations:
            for solver in solvers or solver_names(load_formulation(name)):
                cell = _cell(instance, data, name, solver, time_limit_s, gap, threads, seed)
                cells.append(cell)
                on_cell(cell)
    return cells


def _cell(
    instance: str | os.PathLike[str],
    data: ProblemData,
    name: str,
    solver: str,
    time_limit_s: float,
    gap: float,
    threads: int | None,
    seed: int,
) -> Comparison:
    module = load_formulation(name)
    kind_of = getattr(module, "kind", None)
    kind = kind_of(data) if kind_of is not None else module.KIND
    cell = Comparison(data.name, name, kind, solver)
    if solver not in solver_names(module):
        cell.skipped = "a native CP model: only cpsat takes it"
        return cell
    cell.skipped = module.supports(data)
    if cell.skipped is not None:
        return cell
    begin = time.monotonic()
    outcome = solve(
        instance,
        problem=data.problem,
        formulation=name,
        solver=solver,
        time_limit_s=time_limit_s,
        gap=gap,
        threads=threads,
        seed=seed,
    )
    cell.seconds = time.monotonic() - begin
    record = outcome.record
    cell.status, cell.upper_bound, cell.nodes = record.status, record.upper_bound, record.nodes
    own = [bound for key, bound in record.lower_bounds.items() if key.startswith(f"{name}: ")]
    cell.lower_bound = max(own, default=None)
    cell.gap = relative_gap(cell.upper_bound, cell.lower_bound)
    size = record.size or {}
    cell.rows, cell.columns = size.get("rows"), size.get("columns")
    cell.nonzeros, cell.integers = size.get("nonzeros"), size.get("integers")
    settings = SolveSettings(time_limit_s=time_limit_s, gap=gap, seed=seed)
    if not is_native(module):
        cell.lp_bound = lp_bound(data, name, settings)
    cell.root_bound = root_bound(data, name, solver, settings)
    return cell


def lp_bound(
    data: ProblemData, formulation: str | os.PathLike[str], settings: SolveSettings
) -> float | None:
    """Return the safe bound of a formulation's LP relaxation, None where it gave none.

    Large LPs go to PDLP, the others to HiGHS. ``settings.threads`` and ``options`` are those of
    the solve and not used.
    """
    many = load_formulation(formulation).size(data)["nonzeros"] > MANY_NONZEROS
    bare = replace(settings, threads=1, options={})
    outcome = run_job(data, formulation, "pdlp" if many else "highs", bare, relax=True)
    return None if outcome.result is None else outcome.result.dual_bound


def root_bound(
    data: ProblemData, formulation: str | os.PathLike[str], solver: str, settings: SolveSettings
) -> float | None:
    """Return a solver's own bound after its root node, None where it gave none.

    HiGHS: after one node. CP-SAT: one worker with all linear relaxations until its first conflict,
    for its portfolio has no root node. A floating-point bound is lowered by its tolerance.
    """
    bare = replace(settings, threads=1, options={})
    if solver == "cpsat":
        at_root = replace(bare, options=dict(_CPSAT_ROOT))
    else:
        at_root = replace(bare, node_limit=1)
    outcome = run_job(data, formulation, solver, at_root)
    bound = None if outcome.result is None else outcome.result.dual_bound
    if bound is None or solver == "cpsat":
        return bound
    return bound - FLOAT_BOUND_SLACK * max(1.0, abs(bound))
