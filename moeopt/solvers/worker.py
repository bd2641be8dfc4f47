"""The child process of one solve: ``python -m moeopt.solvers.worker JOBDIR``.

Reads ``job.pkl``, builds, compiles and solves, and answers with plain data in the same folder:
``incumbent.json`` (the best solution so far) and ``result.pkl`` (a :class:`Report`), both replaced
atomically. Events go to the original standard output as JSON lines; everything that a solver or a
formulation prints goes to standard error instead, which the parent sends to the log.

The work runs in a second thread, so that the first one can answer signals while a solver computes:
SIGTERM and SIGINT ask the solver to stop and to hand over what it has.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import pickle
import resource
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError, MoeoptError
from moeopt.linear import LinearModel, Values
from moeopt.problem import ProblemData
from moeopt.solvers.base import Limit, Progress, SolveResult, SolveSettings
from moeopt.solvers.job import (
    INCUMBENT_FILE,
    JOB_FILE,
    RESULT_FILE,
    Job,
    Report,
    write_atomic,
)

if TYPE_CHECKING:
    from moeopt.solution import Solution

FloatArray = npt.NDArray[np.float64]

INCUMBENT_INTERVAL_S = 0.5
WATCH_INTERVAL_S = 0.1
#: Time that a phase before the solver may take beyond the limit.
OVERTIME_S = 0.5
_PR_SET_PDEATHSIG = 1


def main(folder: str) -> int:
    """Run the job in ``folder``; return the exit status."""
    die_with_parent()
    events = _Events()
    directory = Path(folder)
    job: Job = pickle.loads((directory / JOB_FILE).read_bytes())
    if job.parent_pid != os.getppid():
        return 1  # the parent died before this process could ask to die with it
    worker = _Worker(job, directory, events)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop.set())
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    report = None
    while report is None:
        thread.join(WATCH_INTERVAL_S)
        report = worker.early_report() if thread.is_alive() else worker.report
    report.peak_memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_atomic(directory / RESULT_FILE, pickle.dumps(report))
    # No interpreter shutdown: threads of the solver or a building formulation may still run.
    sys.stderr.flush()
    os._exit(0)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, however that happens."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Events:
    """JSON lines on the original standard output, whose descriptor now leads to the log."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, event: str, **fields: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({"event": event, **fields}, allow_nan=False) + "\n")


@dataclass
class _Best:
    """Bounds seen so far, so that the stream only ever improves."""

    sense: int = 1
    primal: float | None = None
    dual: float | None = None

    def improve_primal(self, value: float | None) -> bool:
        if value is None or not math.isfinite(value):
            return False
        if self.primal is not None and self.sense * (self.primal - value) <= 0:
            return False
        self.primal = value
        return True

    def improve_dual(self, value: float | None) -> bool:
        if value is None or not math.isfinite(value):
            return False
        if self.dual is not None and self.sense * (value - self.dual) <= 0:
            return False
        self.dual = value
        return True


@dataclass
class _Program:
    """What the solver gets, and how its values become a solution."""

    model: LinearModel | None
    native: Any
    formulation: ModuleType
    data: ProblemData
    relax: bool

    def solution(self, values: FloatArray) -> Solution:
        if self.native is not None:
            from moeopt.solvers.cpsat import reader

            return self.native.solution(reader(values))
        assert self.model is not None
        return self.formulation.solution(Values(self.model, values), self.data)

    def size(self) -> dict[str, int]:
        if self.model is not None:
            return self.model.size
        proto = self.native.model.proto
        columns = len(proto.variables)
        return {"rows": len(proto.constraints), "columns": columns, "integers": columns}


@dataclass
class _Worker:
    job: Job
    directory: Path
    events: _Events
    stop: threading.Event = field(default_factory=threading.Event)
    report: Report = field(default_factory=Report)

    def __post_init__(self) -> None:
        self.phase = "start"
        self.phase_began = self.job.began
        self.best = _Best()
        self.writer: _IncumbentWriter | None = None

    # --- the two threads

    def run(self) -> None:
        """Do the job (the second thread); whatever happens ends in the report."""
        try:
            self._work()
        except InputError as error:
            self.report.input_error = error.problems
        except MoeoptError as error:
            self.report.error = str(error)
            traceback.print_exc()
        except BaseException as error:
            self.report.error = f"{type(error).__name__}: {error}"
            traceback.print_exc()

    def early_report(self) -> Report | None:
        """Return what to report when the process should end although the work goes on, or None.

        Before the solver runs there is nothing to lose but time: a formulation that builds for
        ever can only be left behind.
        """
        left = self._time_left()
        late = left is not None and left < -OVERTIME_S
        if self.phase == "solve" or not (late or self.stop.is_set()):
            return None
        limit: Limit = "interrupted" if self.stop.is_set() else "time"
        return Report(
            result=SolveResult(
                reason="no_solution_found", limit=limit, message=f"stopped in phase {self.phase}"
            ),
            seconds={**self.report.seconds, self.phase: time.monotonic() - self.phase_began},
            solver_version=self.report.solver_version,
        )

    # --- the work

    def _work(self) -> None:
        job = self.job
        adapter = importlib.import_module(f"moeopt.solvers.{job.solver}")
        self.report.solver_version = adapter.version()
        adapter.check_settings(job.settings)
        program = self._build(self._load())
        self.report.size = program.size()
        self._enter("solve", bound_from=self._bound_from(adapter, program))
        left = self._time_left()
        settings = job.settings if left is None else replace(job.settings, time_limit_s=left)
        if left is not None and left <= 0:
            self.report.result = SolveResult(reason="no_solution_found", limit="time")
            return
        self.best.sense = 1 if program.model is None else program.model.sense
        self.writer = _IncumbentWriter(program, self.directory, self.events)
        try:
            result = self._solve(adapter, program, settings)
        finally:
            self.writer.close()
        self._end_phase()
        values = result.values
        # Large arrays stay here: the solution says it in the words of the domain.
        result.values = None
        if not job.relax:
            result.row_dual = None
        self.report.result = result
        self.report.warnings = self.writer.problems
        if values is not None and not job.relax:
            text = program.solution(values).model_dump_json()
            write_atomic(self.directory / INCUMBENT_FILE, text.encode())

    def _load(self) -> ModuleType:
        """Load the formulation, and what it will import anyway, before the building is timed."""
        from moeopt.catalog import is_native, load_formulation

        job = self.job
        formulation = load_formulation(job.formulation)
        reason = formulation.supports(job.data)
        if reason is not None:
            raise InputError(f"formulation {job.formulation}: {reason}")
        if not is_native(formulation):
            importlib.import_module("moeopt.compile")
            return formulation
        if job.relax:
            raise InputError(f"{job.formulation} is a native CP model: it has no relaxation")
        if job.solver != "cpsat":
            raise InputError(f"{job.formulation} is a native CP model: only cpsat takes it")
        return formulation

    def _build(self, formulation: ModuleType) -> _Program:
        from moeopt.catalog import is_native

        data = self.job.data
        self._enter("build")
        if is_native(formulation):
            return _Program(None, formulation.build_cpsat(data), formulation, data, False)
        from moeopt.compile import compile_model, declarative

        with declarative():
            pyomo_model = formulation.build(data)
        self._enter("compile")
        model = compile_model(pyomo_model)
        model = model.relax() if self.job.relax else model
        return _Program(model, None, formulation, data, self.job.relax)

    def _solve(
        self, adapter: ModuleType, program: _Program, settings: SolveSettings
    ) -> SolveResult:
        log, start = self.job.log_path, self.job.start
        if program.native is not None:
            hints = None
            if start is not None and program.native.start is not None:
                hints = program.native.start(start)
            return adapter.solve_native(program.native, settings, hints, self._emit, self.stop, log)
        assert program.model is not None
        values = None
        if start is not None and not self.job.relax and hasattr(program.formulation, "start"):
            values = _start_values(program.model, program.formulation.start(self.job.data, start))
        return adapter.solve(program.model, settings, values, self._emit, self.stop, log)

    def _emit(self, progress: Progress) -> None:
        better_primal = self.best.improve_primal(progress.primal_bound)
        better_dual = self.best.improve_dual(progress.dual_bound)
        if better_primal or better_dual:
            self.events.send(
                "progress",
                seconds=time.monotonic() - self.job.began,
                primal_bound=self.best.primal,
                dual_bound=self.best.dual,
                nodes=progress.nodes,
            )
        if progress.values is not None and not self.job.relax and self.writer is not None:
            self.writer.offer(progress.values)

    # --- phases and the clock

    def _enter(self, phase: str, **fields: Any) -> None:
        self._end_phase()
        self.phase = phase
        self.events.send(
            "phase",
            phase=phase,
            seconds=dict(self.report.seconds),
            size=self.report.size,
            solver_version=self.report.solver_version,
            **fields,
        )

    def _end_phase(self) -> None:
        self.report.seconds[self.phase] = time.monotonic() - self.phase_began
        self.phase_began = time.monotonic()

    def _bound_from(self, adapter: ModuleType, program: _Program) -> str:
        return str(adapter.NATIVE_BOUND_FROM if program.native is not None else adapter.BOUND_FROM)

    def _time_left(self) -> float | None:
        limit = self.job.settings.time_limit_s
        return None if limit is None else limit - (time.monotonic() - self.job.began)


class _IncumbentWriter:
    """Writes the newest incumbent from a thread of its own, so that the solver never waits."""

    def __init__(self, program: _Program, directory: Path, events: _Events) -> None:
        self.problems: list[str] = []
        self._program, self._directory, self._events = program, directory, events
        self._newest: FloatArray | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def offer(self, values: FloatArray) -> None:
        """Take note of a new incumbent; an older one not written yet is dropped."""
        with self._wake:
            self._newest = values
            self._wake.notify()

    def close(self) -> None:
        """End the thread; the final values of the solver are written by the caller."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._newest is not None)
                values, self._newest = self._newest, None
                closing = self._closing
            if values is not None:
                self._write(values)
            if closing:
                return
            with self._wake:
                self._wake.wait_for(lambda: self._closing, timeout=INCUMBENT_INTERVAL_S)

    def _write(self, values: FloatArray) -> None:
        # An incumbent that cannot be read must not end the search: it is reported at its end.
        try:
            text = self._program.solution(values).model_dump_json()
            write_atomic(self._directory / INCUMBENT_FILE, text.encode())
        except Exception as error:
            traceback.print_exc()
            line = f"an incumbent could not be read: {type(error).__name__}: {error}"
            if line not in self.problems:
                self.problems.append(line)
        else:
            self._events.send("incumbent")


def _start_values(model: LinearModel, start: dict[str, Any]) -> FloatArray:
    """Lay out a formulation's start (component name to array) as columns, NaN where unknown."""
    values = np.full(model.matrix.shape[1], np.nan)
    for name, array in start.items():
        if name not in model.columns:
            raise MoeoptError(f"the formulation's start names {name!r}, which has no columns")
        block = model.columns[name]
        part = np.asarray(array, dtype=np.float64)
        if part.size != block.size:
            raise MoeoptError(
                f"the formulation's start has shape {part.shape} for {name}, not {block.shape}"
            )
        values[block.start : block.start + block.size] = part.reshape(-1)
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
