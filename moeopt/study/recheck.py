"""Every stored plan of a study, checked again against its instance and its record."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeopt.catalog import read_instance
from moeopt.checker import check_solution
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.solution import read_solution_file, validate_against
from moeopt.study.cells import CellResult
from moeopt.study.plan import plan_study
from moeopt.study.results import collect
from moeopt.study.store import Store
from moeopt.study.study_file import read_study, results_folder, study_path

#: Sums in another order differ in the last digits on another machine; nothing else may.
VALUE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Recheck:
    """One cell checked again; ``problems`` is empty where all is well.

    ``objective`` is the checker's value now, None where there is no plan.
    """

    label: str
    key: str
    objective: float | None = None
    problems: list[str] = field(default_factory=list)


def recheck(
    study: str | os.PathLike[str], results: str | os.PathLike[str] | None = None
) -> Iterator[Recheck]:
    """Check the record and the plan of every finished cell of a study.

    Raises
    ------
    InputError
        The study or a record cannot be read.
    """
    path = study_path(study)
    file = read_study(path)
    plan = plan_study(file, path)
    found = collect(path, file, plan, Store(results_folder(path, results)))
    files = {planned.cell.key: planned.instance_path for planned in plan.cells}

    @functools.lru_cache(maxsize=4)  # cells of one instance follow each other
    def prepared(path: Path, problem: str) -> tuple[Instance, ProblemData]:
        instance = read_instance(path)
        return instance, prepare(instance, problem)

    for result in [*found.finished, *found.failed]:
        instance, data = prepared(files[result.cell.key], result.cell.problem)
        yield _recheck(result, instance, data)


def _recheck(result: CellResult, instance: Instance, data: ProblemData) -> Recheck:
    record = result.record
    upper, lower = record["upper_bound"], record["lower_bound"]
    checked = Recheck(result.cell.label, record["key"])
    if record["instance_sha256"] != instance.sha256:
        checked.problems.append("the record is of another instance content")
    if upper is not None and lower is not None and lower > upper:
        checked.problems.append(f"lower bound {lower!r} exceeds upper bound {upper!r}")
    if upper is None:
        return checked
    try:
        solution = read_solution_file(result.solution_path)
    except InputError as error:
        checked.problems.extend(error.problems)
        return checked
    misfits = validate_against(instance, solution)
    if misfits:
        checked.problems.extend(misfits)
        return checked
    report = check_solution(data, solution)
    checked.problems.extend(violation.message for violation in report.violations)
    objective: Any = report.objective
    if objective is None or not math.isclose(objective, upper, rel_tol=VALUE_TOLERANCE):
        checked.problems.append(f"the plan has value {objective!r}, the record says {upper!r}")
    return Recheck(checked.label, checked.key, objective, checked.problems)
