"""All bounds of one problem of an instance: combinatorial ones and LP relaxations; MPS export."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moeopt.bounds import Bound, combinatorial_bounds
from moeopt.catalog import formulation_names, is_native, load_formulation, read_instance
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.prepare import explain_infeasible, prepare
from moeopt.problem import PROBLEMS, ProblemData, objective_unit
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.supervise import run_job

METHODS = ("combinatorial", "lp", "all")


@dataclass
class BoundReport:
    """Bounds of one problem, strongest first, and what could not be had.

    ``missing``: one line for each method that gave no bound, with the reason.
    """

    instance: str
    problem: str
    unit: str
    bounds: list[Bound] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    infeasible: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def bounds(
    instance: Instance | str | os.PathLike[str],
    *,
    problem: str,
    methods: list[str],
    formulations: list[str] | None = None,
    time_limit_s: float = 60.0,
    memory_limit_mib: float | None = None,
) -> BoundReport:
    """Compute lower bounds.

    Parameters
    ----------
    methods : list of {"combinatorial", "lp", "all"}
    formulations : list of str, optional
        Whose LP relaxations; default: every formulation of the problem that takes the instance.
    time_limit_s : float
        For each LP. An LP cut short still gives a bound if its duals are usable.

    Raises
    ------
    InputError
    """
    for method in methods:
        if method not in METHODS:
            raise InputError(f"there is no method {method!r}; methods are {', '.join(METHODS)}")
    if not isinstance(instance, Instance):
        instance = read_instance(instance)
    data = prepare(instance, problem)
    report = BoundReport(data.name, problem, objective_unit(data))
    report.infeasible = explain_infeasible(data)
    if report.infeasible:
        return report
    if formulations or not set(methods).isdisjoint({"lp", "all"}):
        for name in formulations or formulation_names(problem):
            _add_relaxation(report, data, name, time_limit_s, memory_limit_mib, bool(formulations))
    if not set(methods).isdisjoint({"combinatorial", "all"}):
        report.bounds += combinatorial_bounds(data)
    report.bounds.sort(key=lambda bound: -bound.value)
    return report


def _add_relaxation(
    report: BoundReport,
    data: ProblemData,
    name: str,
    time_limit_s: float,
    memory_limit_mib: float | None,
    asked: bool,
) -> None:
    """Solve one LP relaxation in a worker and add its safe bound."""
    formulation = load_formulation(name)
    if data.problem != formulation.PROBLEM:
        raise InputError(f"formulation {name} is for {formulation.PROBLEM}, not for {data.problem}")
    if is_native(formulation):
        if asked:
            raise InputError(f"{name} is a native CP model: it has no LP relaxation")
        return
    reason = formulation.supports(data)
    if reason is not None:
        report.missing.append(f"lp {name}: {reason}")
        return
    begin = time.perf_counter()
    outcome = run_job(
        data,
        name,
        "highs",
        SolveSettings(time_limit_s=time_limit_s, memory_limit_mib=memory_limit_mib),
        relax=True,
    )
    if outcome.input_error:
        raise InputError(outcome.input_error)
    result = outcome.result
    if result is None or result.dual_bound is None:
        report.missing.append(f"lp {name}: {outcome.message or outcome.cause}")
        return
    report.bounds.append(
        Bound(
            f"lp {name}",
            result.dual_bound,
            result.dual_bound_from or "LP relaxation",
            time.perf_counter() - begin,
        )
    )


def write_formulation(
    instance: Instance | str | os.PathLike[str],
    problem: str,
    formulation: str,
    path: Path,
    *,
    relax: bool = False,
) -> dict[str, int]:
    """Write a formulation of an instance as an MPS file; return its size.

    Raises
    ------
    InputError
    """
    from moeopt.compile import compile_model
    from moeopt.declarative import declarative
    from moeopt.mps import write_mps

    if problem not in PROBLEMS:
        raise InputError(f"there is no problem {problem!r}; problems are {', '.join(PROBLEMS)}")
    if not isinstance(instance, Instance):
        instance = read_instance(instance)
    data = prepare(instance, problem)
    module = load_formulation(formulation)
    if problem != module.PROBLEM:
        raise InputError(f"formulation {formulation} is for {module.PROBLEM}, not for {problem}")
    if is_native(module):
        raise InputError(f"{formulation} is a native CP model: it has no rows to write")
    if (reason := module.supports(data)) is not None:
        raise InputError(f"formulation {formulation} does not take this instance: {reason}")
    with declarative():
        model = module.build(data)
    linear = compile_model(model)
    write_mps(linear.relax() if relax else linear, path)
    return linear.size
