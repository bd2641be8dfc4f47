"""One cell, run in this process: solve, measure, and write plan and record into the store."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from moeopt import __version__
from moeopt.catalog import is_native, load_formulation, read_instance
from moeopt.comparing import lp_bound, root_bound
from moeopt.errors import InputError, MoeoptError
from moeopt.machine import describe_machine
from moeopt.prepare import prepare
from moeopt.problem import ProblemData, objective_unit
from moeopt.record import Record
from moeopt.running import Outcome, ProgressState
from moeopt.solvers.base import SolveSettings
from moeopt.solving import solve
from moeopt.study.cells import Cell
from moeopt.study.plan import PlannedCell
from moeopt.study.store import Store

OnState = Callable[[float, float | None, float | None], None]


@dataclass(frozen=True)
class CellJob:
    """A cell as plain data, for another process or machine; paths are absolute.

    ``hard_limit_s``: when the cell's process is ended from outside, from its start.
    """

    key: str
    instance_path: str
    instance_sha256: str
    instance: str
    problem: str
    formulation: str | None
    solver: str | None
    settings: dict[str, Any]
    seed: int
    store: str
    hard_limit_s: float

    @staticmethod
    def of(planned: PlannedCell, store: Store) -> CellJob:
        """Return the job of a planned cell."""
        cell = planned.cell
        return CellJob(
            key=cell.key,
            instance_path=str(planned.instance_path.resolve()),
            instance_sha256=planned.instance_sha256,
            instance=cell.instance,
            problem=cell.problem,
            formulation=cell.formulation,
            solver=cell.solver,
            settings=cell.settings,
            seed=cell.seed,
            store=str(store.folder.resolve()),
            hard_limit_s=planned.hard_limit_s,
        )

    @property
    def cell(self) -> Cell:
        """The cell."""
        return Cell(
            self.instance,
            self.problem,
            self.formulation,
            self.solver,
            self.settings,
            self.seed,
            self.key,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def run_cell(job: CellJob, on_state: OnState) -> None:
    """Run a cell and write its record, whatever comes of it.

    Parameters
    ----------
    on_state : callable
        Called with seconds, upper and lower bound whenever something improves.

    Raises
    ------
    StoreError
        The store cannot be written; all other errors become records of status ``error``.
    """
    store = Store(Path(job.store))
    outcome: Outcome | None = None
    try:
        outcome = _solved(job, on_state, str(store.log_path(job.key)))
        _measure(job, outcome.record)
        record = outcome.record
    except MoeoptError as error:
        record = failure(job, "; ".join(error.problems))
    except Exception as error:
        # A bug of a formulation or of ours: the other cells of the study go on.
        traceback.print_exc(file=sys.stderr)
        record = failure(job, f"{type(error).__name__}: {error}")
    store.write(record, None if outcome is None else outcome.solution)


def _solved(job: CellJob, on_state: OnState, log_path: str) -> Outcome:
    instance = read_instance(job.instance_path)
    if instance.sha256 != job.instance_sha256:
        raise InputError(f"{job.instance_path}: changed since the study was started")

    def on_progress(state: ProgressState) -> None:
        on_state(state.seconds, state.upper_bound, state.lower_bound)

    settings = job.settings
    outcome = solve(
        instance,
        problem=job.problem,
        formulation=job.formulation,
        solver=job.solver,
        time_limit_s=settings["time_limit_s"],
        memory_limit_mib=settings["memory_limit_mib"],
        gap=settings["gap"],
        threads=settings["threads"],
        seed=job.seed,
        start=None if settings["start"] == "none" else settings["start"],
        options=settings["options"],
        on_progress=on_progress,
        log_path=log_path,
    )
    record = outcome.record
    record.key = job.key
    record.settings = {"start": settings["start"], **record.settings}
    record.log = os.path.basename(log_path)
    if record.interrupted:
        # Nobody else than the keeper of the limits interrupts a cell.
        record.limit = "time"
        record.notes.append("ended at the cell's hard time limit")
    return outcome


def _measure(job: CellJob, record: Record) -> None:
    """Add the bounds that the study asks for beside the solve."""
    measure, name, solver = job.settings["measure"], job.formulation, job.solver
    if not measure or name is None or solver is None or record.status == "infeasible":
        return
    data = _data(job)
    settings = SolveSettings(
        time_limit_s=job.settings["time_limit_s"],
        memory_limit_mib=job.settings["memory_limit_mib"],
        gap=job.settings["gap"],
        seed=job.seed,
    )
    if "lp" in measure and not is_native(load_formulation(name)):
        begin = time.monotonic()
        record.lp_bound = lp_bound(data, name, settings)
        record.seconds["lp"] = round(time.monotonic() - begin, 3)
    if "root" in measure:
        begin = time.monotonic()
        record.root_bound = root_bound(data, name, solver, settings)
        record.seconds["root"] = round(time.monotonic() - begin, 3)


def failure(job: CellJob, message: str, limit: Literal["time", "memory"] | None = None) -> Record:
    """Return the record of a cell that failed, with the reason in its notes."""
    # What a formulation's own code says of the instance is not asked: it may be what failed.
    kind: Any = "heuristic" if job.formulation is None else load_formulation(job.formulation).KIND
    return Record(
        instance=job.instance,
        instance_sha256=job.instance_sha256,
        problem=job.problem,
        formulation=job.formulation,
        kind=kind,
        solver=job.solver,
        solver_version=None,
        moeopt_version=__version__,
        status="error",
        limit=limit,
        objective_unit=objective_unit(_data(job)),
        notes=[message],
        seed=job.seed,
        settings=job.settings,
        log=f"{job.key}.log",
        machine=describe_machine(),
        key=job.key,
    )


def _data(job: CellJob) -> ProblemData:
    return prepare(read_instance(job.instance_path), job.problem)
