"""CP-SAT on the directed rounding of a linear model, and on native CP models.

CP-SAT works with integers only. OR-Tools' own conversion rounds continuous variables to nearest
and then reports bounds above the true optimum; :mod:`moeopt.solvers.rounding` makes a relaxation.
With ``threads`` below 8 CP-SAT leaves out parts of its portfolio: on hard models 8 threads can be
far better than 2 even on 2 cores. The setting is obeyed as it is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError, SolverError
from moeopt.linear import LinearModel
from moeopt.solvers.base import (
    Emit,
    Limit,
    Progress,
    SolveResult,
    SolveSettings,
    Stop,
    TerminationReason,
)
from moeopt.solvers.native import NativeCp
from moeopt.solvers.probe import probe_model, probe_problem
from moeopt.solvers.rounding import NotRepresentable, RoundedModel, round_model
from moeopt.solvers.strict import unknown_option

FloatArray = npt.NDArray[np.float64]

NAME = "cpsat"
BOUND_FROM = "CP-SAT on directed rounding"
NATIVE_BOUND_FROM = "CP-SAT, native model"
STOP_INTERVAL_S = 0.05
#: Options that change the problem, so that a bound would prove nothing.
REFUSED_OPTIONS = ("fix_variables_to_their_hinted_value",)


def version() -> str:
    """Return the version of OR-Tools."""
    from importlib.metadata import version as installed

    return installed("ortools")


def supports(model: LinearModel) -> str | None:
    """Return None, or why there is no honest integer form of the model."""
    try:
        round_model(model)
    except NotRepresentable as error:
        return f"cpsat cannot take this model: {error}"
    return None


def self_check() -> str | None:
    """Return None, or what is wrong with this CP-SAT, in words."""
    result = solve(
        probe_model(), SolveSettings(), None, lambda progress: None, threading.Event(), None
    )
    return probe_problem(f"ortools {version()}", result)


def check_settings(settings: SolveSettings) -> None:
    """Raise InputError when CP-SAT does not take one of the settings."""
    _solver(settings)


def solve(
    model: LinearModel,
    settings: SolveSettings,
    start: FloatArray | None,
    emit: Emit,
    stop: Stop,
    log_path: str | None,
) -> SolveResult:
    """Solve the directed rounding (see :class:`moeopt.solvers.base.Adapter`).

    ``dual_bound`` is valid for the original model. ``values`` of continuous columns are grid
    points: near a solution of the original rows, to be completed and checked by the caller.
    ``reason`` is ``imprecise`` where CP-SAT proved its optimum but the rounding leaves more than
    the gap asked for.

    Raises
    ------
    InputError
        An option is unknown or refused, or the model has no honest integer form.
    """
    began = time.monotonic()
    solver = _solver(settings)
    try:
        rounded = round_model(model)
    except NotRepresentable as error:
        raise InputError(f"cpsat cannot take this model: {error}") from error
    if rounded.infeasible:
        return SolveResult(reason="infeasible", message="a column or a row has no value left")
    shift = _shift(rounded)
    proto_model = _cp_model(rounded, shift, start)

    def objective(t: npt.NDArray[np.int64]) -> tuple[FloatArray, float]:
        x = rounded.grid.values(t)
        return x, float(model.cost @ x) + model.offset

    def bound(reported: float) -> float:
        return rounded.bound(math.floor(reported) - shift - _double_error(reported, shift))

    run = _Run(solver, proto_model, objective, bound, emit, stop, log_path, began)
    result = run.solve(rounded.least_objective + shift, BOUND_FROM, model.sense)
    if not rounded.exact:
        result.message += (
            f"; rounding: objective to {rounded.objective_error:.2g}, "
            f"rows to {rounded.row_error:.2g} of their size"
        )
    _judge(result, settings.gap)
    return result


def solve_native(
    native: NativeCp,
    settings: SolveSettings,
    hints: list[tuple[Any, int]] | None,
    emit: Emit,
    stop: Stop,
    log_path: str | None,
) -> SolveResult:
    """Solve a native CP model that minimises.

    ``values`` (of the result and of incumbents) holds one value a variable of the CP model, in
    its order; :func:`reader` reads them. Bounds are mapped by ``native.bound``.
    """
    began = time.monotonic()
    solver = _solver(settings)
    proto = native.model.proto
    if proto.has_floating_point_objective() or not proto.has_objective():
        raise InputError("a native CP model needs an integer objective")
    if proto.objective.scaling_factor < 0:
        raise InputError("a native CP model must minimise")
    if hints:
        for variable, value in hints:
            native.model.add_hint(variable, value)

    def objective(t: npt.NDArray[np.int64]) -> tuple[FloatArray, float]:
        coefficients = np.asarray(list(proto.objective.coeffs), dtype=np.int64)
        value = int(t[np.asarray(list(proto.objective.vars), dtype=np.int64)] @ coefficients)
        return t.astype(np.float64), native.bound(value + offset)

    def bound(reported: float) -> float:
        return native.bound(math.floor(reported))

    offset = round(proto.objective.offset)
    run = _Run(solver, native.model, objective, bound, emit, stop, log_path, began)
    return run.solve(None, NATIVE_BOUND_FROM, 1)


def reader(values: FloatArray) -> Callable[[Any], int]:
    """Return ``read(variable)`` for the values of a native model: variables, literals, integers."""

    def read(variable: Any) -> int:
        if isinstance(variable, int | np.integer | bool):
            return int(variable)
        index = int(variable.index)
        # A negated literal has index -i - 1.
        return round(values[index]) if index >= 0 else 1 - round(values[-index - 1])

    return read


def _shift(rounded: RoundedModel) -> int:
    """Return the constant of the objective in its integer unit: for CP-SAT's relative gap."""
    shift = round(rounded.constant * rounded.scale)
    return shift if abs(shift) < 1 << 50 else 0


def _double_error(reported: float, shift: int) -> int:
    """Bound the error of a bound reported as a double: CP-SAT converts, then adds the shift."""
    size = abs(reported) + abs(shift)
    return 0 if size < 2.0**52 else math.ceil(size * 2.0**-51)


def _solver(settings: SolveSettings) -> Any:
    from ortools.sat.python import cp_model

    if settings.node_limit is not None:
        raise InputError("cpsat has no node limit; see its option max_number_of_conflicts")
    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.num_workers = int(settings.threads)
    parameters.random_seed = int(settings.seed)
    parameters.relative_gap_limit = float(settings.gap)
    parameters.catch_sigint_signal = False  # the worker process handles signals
    if settings.time_limit_s is not None:
        parameters.max_time_in_seconds = float(settings.time_limit_s)
    if settings.memory_limit_mib is not None:
        parameters.max_memory_in_mb = max(1, int(settings.memory_limit_mib))
    problems = [_set_option(parameters, *option) for option in settings.options.items()]
    if any(problems):
        raise InputError([problem for problem in problems if problem])
    return solver


def _set_option(parameters: Any, name: str, value: Any) -> str | None:
    known = [n for n in dir(parameters) if not n.startswith("_")]
    fields = [n for n in known if not callable(getattr(parameters, n))]
    if name not in fields:
        return unknown_option(NAME, name, fields)
    if name in REFUSED_OPTIONS:
        return f"{NAME}: option {name} changes the problem, its bounds would prove nothing"
    current = getattr(parameters, name)
    try:
        if hasattr(current, "extend") and isinstance(value, str):
            current.extend(part.strip() for part in value.split(","))
        elif hasattr(type(current), "__members__") and isinstance(value, str):
            setattr(parameters, name, type(current).__members__[value])
        elif isinstance(current, bool) and not isinstance(value, bool):
            raise TypeError
        else:
            setattr(parameters, name, value)
    except (TypeError, KeyError, ValueError):
        return f"{NAME} does not take option {name} = {value!r}"
    return None


def _cp_model(rounded: RoundedModel, shift: int, start: FloatArray | None) -> Any:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    proto = model.proto
    for low, high in zip(rounded.grid.lower.tolist(), rounded.grid.upper.tolist(), strict=True):
        proto.variables.add().domain.extend((low, high))
    ends = rounded.indptr.tolist()
    variables, coefficients = rounded.indices.tolist(), rounded.coefficients.tolist()
    for i, (low, high) in enumerate(zip(rounded.row_lower, rounded.row_upper, strict=True)):
        linear = proto.constraints.add().linear
        linear.vars.extend(variables[ends[i] : ends[i + 1]])
        linear.coeffs.extend(coefficients[ends[i] : ends[i + 1]])
        linear.domain.extend((low, high))
    used = np.flatnonzero(rounded.objective)
    proto.objective.vars.extend(used.tolist())
    proto.objective.coeffs.extend(rounded.objective[used].tolist())
    proto.objective.offset = float(shift)
    if start is not None:
        known = np.flatnonzero(np.isfinite(start))
        points = rounded.grid.points(np.where(np.isfinite(start), start, 0.0))
        proto.solution_hint.vars.extend(known.tolist())
        proto.solution_hint.values.extend(points[known].tolist())
    problem = model.validate()
    if problem:
        raise SolverError(f"cpsat refuses the model: {problem}")
    return model


_ENDS: dict[str, tuple[TerminationReason, Limit | None]] = {
    "OPTIMAL": ("optimal", None),
    "FEASIBLE": ("feasible", "time"),
    "INFEASIBLE": ("infeasible", None),
    "UNKNOWN": ("no_solution_found", "time"),
    "MODEL_INVALID": ("other_error", None),
}


class _Run:
    """One run of CP-SAT: callbacks in, a result out.

    ``objective(t)`` returns values and objective of a point, ``bound(reported)`` maps CP-SAT's
    bound to the original objective. An exception in a callback stops the search and is raised.
    """

    def __init__(
        self,
        solver: Any,
        model: Any,
        objective: Callable[[npt.NDArray[np.int64]], tuple[FloatArray, float]],
        bound: Callable[[float], float],
        emit: Emit,
        stop: Stop,
        log_path: str | None,
        began: float,
    ) -> None:
        self.solver, self.model, self.objective, self.bound = solver, model, objective, bound
        self.emit, self.stop, self.log_path, self.began = emit, stop, log_path, began
        self.error: BaseException | None = None
        self.reported: list[float] = []  # best bound so far, at most one entry
        self.interrupted = False

    def solve(self, least: int | None, bound_from: str, sense: int) -> SolveResult:
        """Run; ``least`` is a trivial bound in CP-SAT's objective."""
        name = self._run()
        if self.error is not None:
            raise self.error
        reason, limit = _ENDS[name]
        if limit is not None and self.interrupted:
            limit = "interrupted"
        response = self.solver.response_proto
        result = SolveResult(
            reason=reason,
            limit=limit,
            nodes=int(response.num_branches),
            seconds=time.monotonic() - self.began,
            message=name,
        )
        if name in ("OPTIMAL", "FEASIBLE"):
            t = np.asarray(list(response.solution), dtype=np.int64)
            result.values, result.primal_bound = self.objective(t)
            # Without a solution, the response's bound may be an unset zero.
            self._improve(response.best_objective_bound)
        if name in ("OPTIMAL", "FEASIBLE", "UNKNOWN"):
            if least is not None:
                self._improve(float(least))
            if self.reported:
                result.dual_bound = self.bound(self.reported[0])
                result.dual_bound_from = bound_from
        return result

    def _run(self) -> str:
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        with self._log() as log:
            if log is not None:
                self.solver.parameters.log_search_progress = True
                self.solver.parameters.log_to_stdout = False
                self.solver.log_callback = lambda text: self._guard(_write, log, text)
            self.solver.best_bound_callback = lambda value: self._guard(self._on_bound, value)
            watcher.start()
            try:
                status = self.solver.solve(self.model, self._callback())
            finally:
                done.set()
                watcher.join()
        return str(self.solver.status_name(status))

    @contextmanager
    def _log(self) -> Iterator[IO[str] | None]:
        if self.log_path is None:
            yield None
            return
        with open(self.log_path, "a", encoding="utf-8") as log:
            yield log

    def _callback(self) -> Any:
        from ortools.sat.python import cp_model

        run = self

        class OnSolution(cp_model.CpSolverSolutionCallback):
            def on_solution_callback(self) -> None:
                run._guard(run._on_solution, self.response_proto)

        return OnSolution()

    def _guard(self, handle: Callable[..., None], *arguments: Any) -> None:
        try:
            handle(*arguments)
        except BaseException as error:
            self.error = self.error or error

    def _watch(self, done: threading.Event) -> None:
        # Asked again and again: a request that comes before the search has begun is lost.
        while not done.wait(STOP_INTERVAL_S):
            if self.stop.is_set() or self.error is not None:
                self.interrupted = self.stop.is_set()
                self.solver.stop_search()

    def _improve(self, value: float) -> bool:
        if not math.isfinite(value) or (self.reported and value <= self.reported[0]):
            return False
        self.reported = [value]
        return True

    def _on_bound(self, value: float) -> None:
        if self._improve(value):
            seconds = time.monotonic() - self.began
            self.emit(Progress(seconds=seconds, dual_bound=self.bound(value)))

    def _on_solution(self, response: Any) -> None:
        values, objective = self.objective(np.asarray(list(response.solution), dtype=np.int64))
        self.emit(
            Progress(
                seconds=time.monotonic() - self.began,
                primal_bound=objective,
                dual_bound=self.bound(self.reported[0]) if self.reported else None,
                values=values,
            )
        )


def _write(log: IO[str], text: str) -> None:
    log.write(text + "\n")
    log.flush()


def _judge(result: SolveResult, gap: float) -> None:
    """Call an optimum imprecise where the mapped bound does not reach the gap asked for."""
    if result.reason != "optimal" or result.primal_bound is None or result.dual_bound is None:
        return
    allowed = max(gap, 1e-9) * max(1.0, abs(result.primal_bound))
    if abs(result.primal_bound - result.dual_bound) > allowed:
        result.reason = "imprecise"
