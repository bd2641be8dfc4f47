"""HiGHS through raw arrays: LPs with duals, MIPs with partial starts and callbacks."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from typing import Any

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
from moeopt.solvers.probe import probe_model, probe_problem
from moeopt.solvers.strict import unknown_option

FloatArray = npt.NDArray[np.float64]

NAME = "highs"
BOUND_FROM = "HiGHS branch and bound"
LP_BOUND_FROM = "LP relaxation, safe dual bound in exact arithmetic"

#: Returns 15 as the optimum of ``min 2x + 3z, x + z >= 4.5, z integer``; the optimum is 9.
REFUSED_VERSIONS = ("1.14.0",)

#: Integrality and feasibility in a MIP (HiGHS: 1e-6). Rows such as y <= 1000 u leak less.
MIP_FEASIBILITY_TOLERANCE = 1e-8
MIP_ABSOLUTE_GAP = 1e-9
#: HiGHS drops smaller coefficients (1e-9 unless told); 1e-12 is the least it allows.
SMALL_MATRIX_VALUE = 1e-12
PROGRESS_INTERVAL_S = 0.2
#: Share of the time limit, and seconds, that completing a start may take.
START_SHARE, START_LIMIT_S = 0.2, 10.0

_ENDS: dict[str, tuple[TerminationReason, Limit | None]] = {
    "kOptimal": ("optimal", None),
    "kModelEmpty": ("optimal", None),
    "kInfeasible": ("infeasible", None),
    "kUnbounded": ("unbounded", None),
    "kUnboundedOrInfeasible": ("infeasible_or_unbounded", None),
    "kTimeLimit": ("feasible", "time"),
    "kIterationLimit": ("feasible", "iterations"),
    "kSolutionLimit": ("feasible", "nodes"),
    "kMemoryLimit": ("feasible", "memory"),
    "kInterrupt": ("feasible", "interrupted"),
    "kHighsInterrupt": ("feasible", "interrupted"),
    "kUnknown": ("imprecise", None),
    "kObjectiveBound": ("imprecise", None),
    "kObjectiveTarget": ("imprecise", None),
    "kSolveError": ("numerical_error", None),
    "kPostsolveError": ("numerical_error", None),
}


def version() -> str:
    """Return the version of the HiGHS library."""
    highspy = _highspy()
    return str(highspy.Highs().version())


def supports(model: LinearModel) -> str | None:
    """HiGHS takes every linear model."""
    return None


def self_check() -> str | None:
    """Return None, or why this HiGHS must not be used, in words.

    Solves ``min 2x + 3z, x + z >= 4.5, z integer`` (optimum 9), which HiGHS 1.14.0 gets wrong.
    """
    installed = version()
    if installed in REFUSED_VERSIONS:
        return f"highspy {installed} is known to return wrong optima; install 1.15.1 or later"
    result = solve(
        probe_model(), SolveSettings(), None, lambda progress: None, threading.Event(), None
    )
    return probe_problem(f"highspy {installed}", result)


def check_settings(settings: SolveSettings) -> None:
    """Raise InputError when HiGHS does not take one of the settings."""
    _set_options(_highspy().Highs(), settings, logs=False)


def solve(
    model: LinearModel,
    settings: SolveSettings,
    start: FloatArray | None,
    emit: Emit,
    stop: Stop,
    log_path: str | None,
) -> SolveResult:
    """Solve an LP or a MIP (see :class:`moeopt.solvers.base.Adapter`).

    An LP's ``dual_bound`` is recomputed from its row duals in exact arithmetic, also when the
    solve was cut short; a MIP's is the one of HiGHS' branch and bound.

    Raises
    ------
    InputError
        An option is unknown or has a value that HiGHS refuses.
    SolverError
        HiGHS cannot be used or does not take the model.
    """
    began = time.monotonic()
    if version() in REFUSED_VERSIONS:
        raise SolverError(f"highspy {version()} is known to return wrong optima; update it")
    highspy = _highspy()
    highs = highspy.Highs()
    _set_options(highs, settings, logs=log_path is not None)
    if not len(model.cost):
        return _without_columns(model, began)
    _pass_model(highspy, highs, model)
    is_mip = bool(model.integer.any())
    if is_mip and start is not None:
        _pass_start(highspy, highs, model, start, settings, stop)
        if settings.time_limit_s is not None:
            left = settings.time_limit_s - (time.monotonic() - began)
            highs.setOptionValue("time_limit", max(0.0, left))
    watch = _Callbacks(highspy, highs, is_mip, emit, stop, log_path, began)
    try:
        status = highs.run()
    finally:
        watch.close()
    if watch.error is not None:
        raise watch.error
    result = _result(highspy, highs, model, is_mip, time.monotonic() - began)
    if status == highspy.HighsStatus.kError and result.reason in ("optimal", "feasible"):
        result.reason = "other_error"
    return result


def _highspy() -> Any:
    import highspy

    return highspy


def _set_options(highs: Any, settings: SolveSettings, *, logs: bool) -> None:
    highs.setOptionValue("log_to_console", False)
    options: dict[str, Any] = {
        "output_flag": logs,
        "mip_rel_gap": float(settings.gap),
        "mip_abs_gap": MIP_ABSOLUTE_GAP,
        "small_matrix_value": SMALL_MATRIX_VALUE,
        "mip_feasibility_tolerance": MIP_FEASIBILITY_TOLERANCE,
        "threads": int(settings.threads),
        "random_seed": int(settings.seed),
    }
    if settings.time_limit_s is not None:
        options["time_limit"] = float(settings.time_limit_s)
    if settings.node_limit is not None:
        options["mip_max_nodes"] = int(settings.node_limit)
    problems = []
    for name, value in (options | settings.options).items():
        problem = _set_option(highs, name, value)
        if problem:
            problems.append(problem)
    if problems:
        raise InputError(problems)


def _set_option(highs: Any, name: str, value: Any) -> str | None:
    """Set one option; HiGHS reports a refusal only in the status, and drops the option."""
    ok = _highspy().HighsStatus.kOk
    known = [n for n in dir(highs.getOptions()) if not n.startswith("_")]
    if name not in known:
        return unknown_option(NAME, name, known)
    try:
        taken = highs.setOptionValue(name, value) == ok
    except TypeError:
        taken = False
    status, stored = highs.getOptionValue(name)
    if not taken or status != ok or stored != value:
        return f"{NAME} does not take option {name} = {value!r}"
    return None


def _pass_model(highspy: Any, highs: Any, model: LinearModel) -> None:
    matrix = model.matrix
    rows, columns = matrix.shape
    sense = highspy.ObjSense.kMinimize if model.sense == 1 else highspy.ObjSense.kMaximize
    status = highs.passModel(
        columns,
        rows,
        int(matrix.nnz),
        int(highspy.MatrixFormat.kRowwise),
        int(sense),
        float(model.offset),
        model.cost,
        model.lower,
        model.upper,
        model.row_lower,
        model.row_upper,
        matrix.indptr.astype(np.int32),
        matrix.indices.astype(np.int32),
        matrix.data.astype(np.float64),
        model.integer.astype(np.int32),
    )
    # kWarning: HiGHS drops tiny coefficients (|a| <= 1e-9): then it solves another model.
    if status != highspy.HighsStatus.kOk:
        raise SolverError(
            "highs does not take the model as it is (a coefficient is too small or too large, "
            "or bounds cross)"
        )


def _pass_start(
    highspy: Any,
    highs: Any,
    model: LinearModel,
    start: FloatArray,
    settings: SolveSettings,
    stop: Stop,
) -> None:
    """Give HiGHS a complete start.

    It would complete a partial one itself, by a solve with the given columns fixed, and would
    report the bounds of that solve through the same callbacks as if they were the problem's.
    """
    known = np.isfinite(start)
    if not known.any():
        return
    values = np.clip(start[known], model.lower[known], model.upper[known])
    whole = model.integer[known]
    values[whole] = np.round(values[whole])
    if not known.all():
        lower, upper = model.lower.copy(), model.upper.copy()
        lower[known] = upper[known] = values
        helper = highspy.Highs()
        limit = START_SHARE * (settings.time_limit_s or math.inf)
        _set_options(helper, replace(settings, time_limit_s=min(limit, START_LIMIT_S)), logs=False)
        _pass_model(highspy, helper, replace(model, lower=lower, upper=upper))
        watch = _Callbacks(highspy, helper, True, lambda event: None, stop, None, time.monotonic())
        helper.run()
        if watch.error is not None:
            raise watch.error
        if helper.getInfo().primal_solution_status != int(
            highspy.SolutionStatus.kSolutionStatusFeasible
        ):
            return  # no plan of the formulation agrees with it
        values = np.array(helper.getSolution().col_value, dtype=np.float64)
    solution = highspy.HighsSolution()
    solution.col_value = values.tolist()
    if highs.setSolution(solution) == highspy.HighsStatus.kError:
        raise SolverError("highs does not take the warm start")


class _Callbacks:
    """Streams incumbents, bounds and the log; stops HiGHS when asked to.

    A Python exception must not travel through HiGHS: it is kept, HiGHS is stopped, and the
    caller raises it.
    """

    def __init__(
        self,
        highspy: Any,
        highs: Any,
        is_mip: bool,
        emit: Emit,
        stop: Stop,
        log_path: str | None,
        began: float,
    ) -> None:
        self.error: BaseException | None = None
        self._emit = emit
        self._stop = stop
        self._began = began
        self._last = -math.inf
        self._log = open(log_path, "a", encoding="utf-8") if log_path is not None else None  # noqa: SIM115
        kinds = highspy.cb.HighsCallbackType
        self._logging = int(kinds.kCallbackLogging)
        self._improving = int(kinds.kCallbackMipImprovingSolution)
        wanted = [kinds.kCallbackSimplexInterrupt, kinds.kCallbackIpmInterrupt]
        if is_mip:
            wanted += [kinds.kCallbackMipImprovingSolution, kinds.kCallbackMipInterrupt]
        if self._log is not None:
            wanted.append(kinds.kCallbackLogging)
        self._mip_interrupt = int(kinds.kCallbackMipInterrupt)
        highs.setCallback(self._call, None)
        for kind in wanted:
            highs.startCallback(kind)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def _call(self, kind: Any, message: str, out: Any, given: Any, _: Any) -> None:
        try:
            self._handle(int(kind), message, out, given)
        except BaseException as error:
            self.error = self.error or error
        if self.error is not None and given is not None:
            given.user_interrupt = True

    def _handle(self, kind: int, message: str, out: Any, given: Any) -> None:
        if kind == self._logging:
            if self._log is not None:
                self._log.write(message)
                self._log.flush()
            return
        if kind == self._improving:
            values = np.array(out.mip_solution, dtype=np.float64)
            self._send(out, values)
            return
        if kind == self._mip_interrupt and time.monotonic() - self._last > PROGRESS_INTERVAL_S:
            self._send(out, None)
        if self._stop.is_set():
            given.user_interrupt = True

    def _send(self, out: Any, values: FloatArray | None) -> None:
        now = time.monotonic()
        self._last = now
        primal = out.objective_function_value if values is not None else out.mip_primal_bound
        self._emit(
            Progress(
                seconds=now - self._began,
                primal_bound=_finite(primal),
                dual_bound=_finite(out.mip_dual_bound),
                nodes=int(out.mip_node_count),
                values=values,
            )
        )


def _result(
    highspy: Any, highs: Any, model: LinearModel, is_mip: bool, seconds: float
) -> SolveResult:
    name = highs.getModelStatus().name
    reason, limit = _ENDS.get(name, ("other_error", None))
    info = highs.getInfo()
    solution = highs.getSolution()
    feasible = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
    has_values = bool(solution.value_valid) and feasible
    if reason == "feasible" and not has_values:
        reason = "no_solution_found"
    result = SolveResult(reason=reason, limit=limit, seconds=seconds, message=name)
    if has_values:
        result.values = np.array(solution.col_value, dtype=np.float64)
        result.primal_bound = _finite(info.objective_function_value)
    if is_mip:
        result.nodes = int(info.mip_node_count)
        if reason in ("optimal", "feasible", "no_solution_found", "imprecise"):
            result.dual_bound = _finite(info.mip_dual_bound)
            result.dual_bound_from = BOUND_FROM if result.dual_bound is not None else None
        return result
    result.iterations = sum(
        max(0, int(getattr(info, f"{kind}_iteration_count"))) for kind in ("simplex", "ipm", "pdlp")
    )
    if bool(solution.dual_valid):
        _add_lp_bound(result, model, np.array(solution.row_dual, dtype=np.float64))
    return result


def _add_lp_bound(result: SolveResult, model: LinearModel, row_dual: FloatArray) -> None:
    from moeopt.safe_bound import safe_dual_bound

    result.row_dual = row_dual
    if result.reason in ("infeasible", "unbounded", "infeasible_or_unbounded"):
        return
    result.dual_bound = _finite(safe_dual_bound(model, row_dual))
    result.dual_bound_from = LP_BOUND_FROM if result.dual_bound is not None else None


def _without_columns(model: LinearModel, began: float) -> SolveResult:
    """HiGHS calls this model empty and does not look at its rows."""
    feasible = bool(((model.row_lower <= 0) & (model.row_upper >= 0)).all())
    result = SolveResult(
        reason="optimal" if feasible else "infeasible", seconds=time.monotonic() - began
    )
    if feasible:
        result.values = np.zeros(0)
        result.primal_bound = result.dual_bound = float(model.offset)
        result.dual_bound_from = "no columns"
    return result


def _finite(value: float) -> float | None:
    # HiGHS' infinity is ±inf, but 1e20 and more mean the same to it.
    return float(value) if math.isfinite(value) and abs(value) < 1e20 else None
