"""PDLP (OR-Tools): a first-order method for large linear programs, made rigorous.

Its duals are approximate. They are polished (:mod:`moeopt.solvers.polish`) and judged by the safe
dual bound, which is what counts here: the solve goes on, with tighter tolerances, until that bound
is within ``gap`` of the primal value. PDLP cannot be interrupted and keeps Python's lock while it
runs, so it runs in pieces of doubling length, each started where the last one ended.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.linear import LinearModel
from moeopt.safe_bound import safe_dual_bound
from moeopt.solvers.base import (
    Emit,
    Limit,
    Progress,
    SolveResult,
    SolveSettings,
    Stop,
    TerminationReason,
)
from moeopt.solvers.polish import polished
from moeopt.solvers.probe import probe_model, probe_problem
from moeopt.solvers.strict import unknown_option

FloatArray = npt.NDArray[np.float64]

NAME = "pdlp"
BOUND_FROM = "LP relaxation, PDLP's duals, safe dual bound in exact arithmetic"

#: Iterations of the first piece: few enough to take seconds.
FIRST_ITERATIONS = 2048
FIRST_WORK = 5e8  # iterations times nonzeros
#: PDLP's tolerance starts here, and ends where doubles end.
FIRST_EPS, LAST_EPS = 1e-6, 1e-12
#: Set by the adapter itself.
_OWN = ("time_sec_limit", "iteration_limit", "kkt_matrix_pass_limit", "num_threads")


def version() -> str:
    """Return the version of OR-Tools."""
    from importlib.metadata import version as installed

    return installed("ortools")


def supports(model: LinearModel) -> str | None:
    """Linear programs only."""
    if model.integer.any():
        whole = int(model.integer.sum())
        return f"pdlp solves linear programs; {whole} columns are integer (solve the relaxation)"
    return None


def self_check() -> str | None:
    """Return None, or why this PDLP must not be used, in words."""
    result = solve(
        probe_model().relax(), SolveSettings(gap=1e-8), None, lambda _: None, _Never(), None
    )
    return probe_problem(f"ortools {version()}", result)


class _Never:
    def is_set(self) -> bool:
        return False


def check_settings(settings: SolveSettings) -> None:
    """Raise InputError when PDLP does not take one of the settings."""
    _parameters(settings)


def solve(
    model: LinearModel,
    settings: SolveSettings,
    start: FloatArray | None,
    emit: Emit,
    stop: Stop,
    log_path: str | None,
) -> SolveResult:
    """Solve an LP (see :class:`moeopt.solvers.base.Adapter`); ``start`` is not used.

    ``settings.gap`` is the relative gap between the primal value and the safe bound at which the
    solve ends. The primal values are feasible up to PDLP's tolerance only.

    Raises
    ------
    InputError
        The model has integer columns, or an option is not PDLP's.
    """
    began = time.monotonic()
    reason = supports(model)
    if reason is not None:
        raise InputError(reason)
    run = _Run(model, settings, began)
    while not run.ended(stop):
        run.piece()
        emit(
            Progress(
                seconds=time.monotonic() - began,
                dual_bound=run.bound if math.isfinite(run.bound) else None,
                nodes=None,
            )
        )
        run.write_log(log_path)
    return run.result()


class _Run:
    """The pieces of one solve, and the best bound so far."""

    def __init__(self, model: LinearModel, settings: SolveSettings, began: float) -> None:
        from ortools.pdlp.python import pdlp

        self.pdlp, self.model, self.settings, self.began = pdlp, model, settings, began
        self.parameters, self.eps_is_fixed = _parameters(settings)
        self.program = _program(pdlp, model)
        self.bound = -model.sense * math.inf
        self.dual: FloatArray | None = None
        self.primal: FloatArray | None = None
        self.value: float | None = None
        self.point: Any = None
        self.iterations = 0
        work = FIRST_WORK / max(1, model.matrix.nnz)
        self.next_iterations = int(min(FIRST_ITERATIONS, max(64, work)))
        self.reason: TerminationReason | None = None
        self.limit: Limit | None = None
        self.message = ""

    # --- one piece

    def piece(self) -> None:
        """Run PDLP for some iterations; judge its duals; decide whether and how to go on."""
        criteria = self.parameters.termination_criteria
        criteria.iteration_limit = self.next_iterations
        left = self._seconds_left()
        if left is not None:
            criteria.time_sec_limit = max(0.01, left)
        before = self.point
        answer = self.pdlp.primal_dual_hybrid_gradient(
            *(self.program, self.parameters), *(() if before is None else (before,))
        )
        log = answer.solve_log
        self.iterations += log.iteration_count
        self.message = _name_of(log.termination_reason)
        if len(answer.dual_solution) == self.model.matrix.shape[0]:
            self._judge(answer)
        self._continue_from(log, answer)
        self._decide()

    def _judge(self, answer: Any) -> None:
        model = self.model
        duals = model.sense * np.array(answer.dual_solution, dtype=np.float64)
        for candidate in (polished(model, duals), duals):
            bound = safe_dual_bound(model, candidate)
            if self.dual is None or model.sense * (bound - self.bound) > 0:
                self.bound, self.dual = bound, candidate
        values = np.clip(np.array(answer.primal_solution), model.lower, model.upper)
        self.primal, self.value = values, float(model.cost @ values + model.offset)

    def _continue_from(self, log: Any, answer: Any) -> None:
        self.point = self.pdlp.PrimalAndDualSolution()
        self.point.primal_solution = answer.primal_solution
        self.point.dual_solution = answer.dual_solution
        if log.iteration_stats and log.iteration_stats[-1].primal_weight > 0:
            self.parameters.initial_primal_weight = log.iteration_stats[-1].primal_weight
        self.next_iterations *= 2

    def _decide(self) -> None:
        if self.message in ("PRIMAL_INFEASIBLE", "PRIMAL_OR_DUAL_INFEASIBLE", "DUAL_INFEASIBLE"):
            self.reason = "infeasible_or_unbounded"
            if self.message == "PRIMAL_INFEASIBLE":
                self.reason = "infeasible"
        elif self._gap_reached():
            self.reason = "optimal"
        elif self.message == "OPTIMAL":
            criteria = self.parameters.termination_criteria.simple_optimality_criteria
            eps = criteria.eps_optimal_relative
            if self.eps_is_fixed or eps <= LAST_EPS:
                self.reason = "imprecise"
            criteria.eps_optimal_relative = criteria.eps_optimal_absolute = eps / 10
        elif self.message not in ("ITERATION_LIMIT", "TIME_LIMIT"):
            self.reason = "numerical_error" if self.message == "NUMERICAL_ERROR" else "other_error"

    def _gap_reached(self) -> bool:
        # The primal value counts only where PDLP calls its point feasible and optimal.
        if self.message != "OPTIMAL" or self.value is None or not math.isfinite(self.bound):
            return False
        return abs(self.value - self.bound) <= self.settings.gap * max(1e-9, abs(self.value))

    # --- the end

    def ended(self, stop: Stop) -> bool:
        """Whether to stop before another piece."""
        if self.reason is not None:
            return True
        left = self._seconds_left()
        if stop.is_set():
            self.limit = "interrupted"
        elif left is not None and left <= 0:
            self.limit = "time"
        return self.limit is not None

    def _seconds_left(self) -> float | None:
        limit = self.settings.time_limit_s
        return None if limit is None else limit - (time.monotonic() - self.began)

    def write_log(self, log_path: str | None) -> None:
        if log_path is not None:
            with open(log_path, "a", encoding="utf-8") as log:
                seconds = time.monotonic() - self.began
                log.write(
                    f"pdlp {seconds:.2f} s, {self.iterations} iterations, {self.message}, "
                    f"primal {self.value}, safe bound {self.bound}\n"
                )

    def result(self) -> SolveResult:
        reason: TerminationReason = "no_solution_found" if self.primal is None else "feasible"
        reason = self.reason or reason
        result = SolveResult(
            reason=reason,
            limit=self.limit,
            iterations=self.iterations,
            seconds=time.monotonic() - self.began,
            message=self.message,
            row_dual=self.dual,
        )
        if not reason.startswith("infeasible"):
            result.values, result.primal_bound = self.primal, self.value
            if math.isfinite(self.bound):
                result.dual_bound, result.dual_bound_from = self.bound, BOUND_FROM
        return result


def _parameters(settings: SolveSettings) -> tuple[Any, bool]:
    """Return PDLP's parameters, and whether the caller fixed the tolerance."""
    from ortools.pdlp import solvers_pb2

    parameters = solvers_pb2.PrimalDualHybridGradientParams()
    criteria = parameters.termination_criteria
    simple = criteria.simple_optimality_criteria
    simple.eps_optimal_absolute = simple.eps_optimal_relative = FIRST_EPS
    parameters.num_threads = settings.threads
    parameters.record_iteration_stats = True
    places = {
        field.name: part
        for part in (parameters, criteria, simple)
        for field in part.DESCRIPTOR.fields
        if field.message_type is None and not _is_repeated(field) and field.name not in _OWN
    }
    problems = []
    for name, value in settings.options.items():
        if name not in places:
            problems.append(unknown_option(NAME, name, places))
            continue
        try:
            setattr(places[name], name, value)
        except (TypeError, ValueError):
            problems.append(f"{NAME} does not take option {name} = {value!r}")
    if problems:
        raise InputError(problems)
    fixed = not {"eps_optimal_absolute", "eps_optimal_relative"}.isdisjoint(settings.options)
    return parameters, fixed


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == 3


def _program(pdlp: Any, model: LinearModel) -> Any:
    """Return the model as a minimisation in PDLP's form."""
    program = pdlp.QuadraticProgram()
    program.objective_vector = model.sense * model.cost
    program.objective_offset = model.sense * model.offset
    program.constraint_matrix = model.matrix.tocsc()
    program.constraint_lower_bounds = model.row_lower
    program.constraint_upper_bounds = model.row_upper
    program.variable_lower_bounds = model.lower
    program.variable_upper_bounds = model.upper
    return program


def _name_of(reason: int) -> str:
    from ortools.pdlp import solve_log_pb2

    return str(solve_log_pb2.TerminationReason.Name(reason)).removeprefix("TERMINATION_REASON_")
