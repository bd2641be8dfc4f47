"""One instance × problem × formulation × solver → a checked plan, its bounds and a record.

Whatever a heuristic or a solver says goes through the checker; every lower bound names its proof;
a lower bound above a checked upper bound is an error, never a clamp.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

from moeopt import __version__
from moeopt.bounds import combinatorial_bounds
from moeopt.catalog import load_formulation, read_instance, solver_names
from moeopt.checker import CheckReport, check_solution
from moeopt.errors import InputError, SolverError
from moeopt.heuristics import joint as joint_heuristic
from moeopt.heuristics import placement as placement_heuristic
from moeopt.heuristics import replication as replication_heuristic
from moeopt.instance import Instance
from moeopt.prepare import explain_infeasible, prepare
from moeopt.problem import PROBLEMS, ProblemData, objective_unit
from moeopt.record import Record, Status, relative_gap
from moeopt.solution import Solution
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.supervise import WorkerOutcome, run_job

#: What is tried where no formulation is asked for, in this order: (formulation, solver).
DEFAULTS = {
    "placement": ("placement_cp", "cpsat"),
    "replication": ("replication_cp", "cpsat"),
    "joint": ("joint_work", "highs"),
}

#: Larger programs are not worth starting without being asked: building them eats the time limit.
LARGEST_DEFAULT_NONZEROS = 4_000_000

#: Share of the time that heuristics may take before the exact search.
HEURISTIC_SHARE = 0.35

#: Floating-point solvers prove their bounds up to their tolerances; theirs are lowered by this.
FLOAT_BOUND_SLACK = 1e-7

Start = Literal["heuristic"] | Solution | None


@dataclass
class ProgressState:
    """The live state of a solve: phase, best plan so far, best bound so far."""

    phase: str
    seconds: float
    upper_bound: float | None = None
    lower_bound: float | None = None
    message: str | None = None

    @property
    def gap(self) -> float | None:
        """Relative gap of the two bounds."""
        return relative_gap(self.upper_bound, self.lower_bound)


OnProgress = Callable[[ProgressState], None]


@dataclass
class Outcome:
    """What :func:`solve` returns: the record, and the best checked plan (None if there is none)."""

    record: Record
    solution: Solution | None
    report: CheckReport | None

    @property
    def upper_bound(self) -> float | None:
        """The checker's value of the plan."""
        return self.record.upper_bound

    @property
    def lower_bound(self) -> float | None:
        """The best proved bound."""
        return self.record.lower_bound

    @property
    def gap(self) -> float | None:
        """Relative gap."""
        return self.record.gap


def solve(
    instance: Instance | str | os.PathLike[str],
    *,
    problem: str,
    formulation: str | os.PathLike[str] | None = None,
    solver: str | None = None,
    time_limit_s: float = 60.0,
    memory_limit_mib: float | None = None,
    gap: float = 1e-6,
    threads: int | None = None,
    seed: int = 0,
    start: Start | Literal["default"] = "default",
    options: dict[str, str | int | float | bool] | None = None,
    on_progress: OnProgress | None = None,
    log_path: str | None = None,
) -> Outcome:
    """Solve one problem of an instance; check the plan; bound it.

    Parameters
    ----------
    instance : Instance, path, or name of a shipped instance
    problem : {"placement", "replication", "joint"}
    formulation : str or path, optional
        A shipped formulation, or a file of one's own. None: a heuristic first, then the best
        known formulation if its size allows.
    solver : {"highs", "cpsat"}, optional
    time_limit_s : float
        For everything: heuristic, building, solving.
    gap : float
        Relative gap at which the search stops and the plan is called optimal.
    threads : int, optional
        Default: 1 for HiGHS (more do not help it), 8 workers for CP-SAT (its portfolio).
    start : {"heuristic"}, Solution or None
        Warm start. Default: the heuristic's plan where no formulation is asked for, else none.
    options : dict, optional
        The solver's own options; an unknown one is an error.
    on_progress : callable, optional
        Called with a :class:`ProgressState` whenever something improves.

    Returns
    -------
    Outcome

    Raises
    ------
    InputError
        The instance, problem, formulation or an option does not fit.
    SolverError
        A lower bound exceeds a checked upper bound: a bug, to be reported.

    Notes
    -----
    Ctrl-C ends the search and returns the best plan so far.
    """
    if problem not in PROBLEMS:
        raise InputError(f"there is no problem {problem!r}; problems are {', '.join(PROBLEMS)}")
    if not time_limit_s > 0:
        raise InputError(f"the time limit must be positive, not {time_limit_s:g} s")
    if not 0 <= gap < 1:
        raise InputError(f"the gap must be at least 0 and below 1, not {gap:g}")
    begin = time.monotonic()
    if not isinstance(instance, Instance):
        instance = read_instance(instance)
    run = _Run(prepare(instance, problem), begin, on_progress)
    run.seconds["read"] = time.monotonic() - begin
    chosen = _choose(run, formulation, solver)
    if start == "default":
        start = "heuristic" if formulation is None else None
    if isinstance(start, Solution):
        run.offer(start, "the given start")
    with _interruptible() as stop:
        reasons = explain_infeasible(run.data)
        if not reasons:
            run.bound()
            if start == "heuristic" and not run.closed(gap):
                share = HEURISTIC_SHARE if chosen is not None else 1.0
                run.heuristic(seed, share * time_limit_s, stop)
        outcome: WorkerOutcome | None = None
        settings = _settings(
            chosen, time_limit_s, memory_limit_mib, gap, threads, seed, options or {}
        )
        if chosen is not None and not reasons and not run.closed(gap) and not stop.is_set():
            settings = _with_time(settings, begin + time_limit_s)
            outcome = run.search(chosen, settings, start is not None, stop, log_path)
        interrupted = stop.is_set()
    return run.finish(chosen, settings, outcome, reasons, interrupted, log_path, time_limit_s)


@dataclass(frozen=True)
class Choice:
    """A formulation and a solver for it."""

    name: str
    module: ModuleType
    solver: str

    def kind(self, data: ProblemData) -> str:
        """What the formulation's value proves for this instance."""
        kind_of = getattr(self.module, "kind", None)
        return str(kind_of(data) if kind_of is not None else self.module.KIND)


def _choose(
    run: _Run, formulation: str | os.PathLike[str] | None, solver: str | None
) -> Choice | None:
    data = run.data
    name = os.fspath(formulation) if formulation is not None else DEFAULTS[data.problem][0]
    module = load_formulation(name)
    if data.problem != module.PROBLEM:
        raise InputError(f"formulation {name} is for {module.PROBLEM}, not for {data.problem}")
    allowed = solver_names(module)
    chosen = solver or (DEFAULTS[data.problem][1] if formulation is None else allowed[0])
    if chosen not in solver_names():
        raise InputError(f"there is no solver {chosen!r}; solvers are {', '.join(solver_names())}")
    if chosen not in allowed:
        raise InputError(f"{name} is a native CP model: only cpsat solves it, not {chosen}")
    reason = module.supports(data)
    if formulation is None:
        reason = reason or _too_large(module, data)
        if reason is not None:
            run.note(f"no exact search: {name}: {reason}")
            return None
        run.note(f"chosen: a heuristic, then {name} with {chosen}")
    elif reason is not None:
        raise InputError(f"formulation {name} does not take this instance: {reason}")
    return Choice(name, module, chosen)


def _too_large(module: ModuleType, data: ProblemData) -> str | None:
    nonzeros = module.size(data)["nonzeros"]
    if nonzeros <= LARGEST_DEFAULT_NONZEROS:
        return None
    return (
        f"its {nonzeros:,} nonzeros are too many to start unasked "
        f"(more than {LARGEST_DEFAULT_NONZEROS:,}; ask for it with --formulation)"
    )


def _settings(
    choice: Choice | None,
    time_limit_s: float,
    memory_limit_mib: float | None,
    gap: float,
    threads: int | None,
    seed: int,
    options: dict[str, str | int | float | bool],
) -> SolveSettings:
    default_threads = 8 if choice is not None and choice.solver == "cpsat" else 1
    return SolveSettings(
        time_limit_s=time_limit_s,
        memory_limit_mib=memory_limit_mib,
        gap=gap,
        threads=default_threads if threads is None else threads,
        seed=seed,
        options=options,
    )


def _with_time(settings: SolveSettings, deadline: float) -> SolveSettings:
    from dataclasses import replace

    return replace(settings, time_limit_s=max(0.5, deadline - time.monotonic()))


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event; a second one interrupts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(signum: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Run:
    """The state of one solve: the best checked plan, all bounds, times and notes."""

    data: ProblemData
    begin: float
    on_progress: OnProgress | None
    best: Solution | None = None
    best_from: str | None = None
    report: CheckReport | None = None
    rejected: CheckReport | None = None
    lower_bounds: dict[str, float] = field(default_factory=dict)
    claimed: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    live_lower: float | None = None
    live_upper: float | None = None

    # --- state

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.tell("prepare", text)

    def tell(self, phase: str, message: str | None = None) -> None:
        if self.on_progress is not None:
            uppers = [u for u in (self.upper, self.live_upper) if u is not None]
            lowers = [b for b in (self.lower, self.live_lower) if b is not None]
            self.on_progress(
                ProgressState(
                    phase,
                    time.monotonic() - self.begin,
                    min(uppers, default=None),
                    max(lowers, default=None),
                    message,
                )
            )

    @property
    def upper(self) -> float | None:
        return None if self.report is None else self.report.objective

    @property
    def lower(self) -> float | None:
        return max(self.lower_bounds.values(), default=None)

    def closed(self, gap: float) -> bool:
        reached = relative_gap(self.upper, self.lower)
        return reached is not None and reached <= gap

    def offer(self, solution: Solution, source: str) -> None:
        """Check a plan; keep it if it is feasible and better."""
        begin = time.monotonic()
        report = check_solution(self.data, solution)
        self.seconds["check"] = self.seconds.get("check", 0.0) + time.monotonic() - begin
        if report.violations or report.objective is None:
            self.rejected = report
            first = report.violations[0].message if report.violations else "no objective"
            self.notes.append(f"the plan of {source} was rejected by the checker: {first}")
        elif self.upper is None or report.objective < self.upper:
            self.best, self.best_from, self.report = solution, source, report

    # --- phases

    def bound(self) -> None:
        begin = time.monotonic()
        for bound in combinatorial_bounds(self.data):
            self.lower_bounds[bound.method] = bound.value
        self.seconds["bound"] = time.monotonic() - begin
        self.tell("bound")

    def heuristic(self, seed: int, time_limit_s: float, stop: threading.Event) -> None:
        begin = time.monotonic()
        self.tell("heuristic")

        def on_plan(solution: Solution) -> None:
            self.offer(solution, "the heuristic")
            self.tell("heuristic")

        if self.data.problem == "joint":
            joint_heuristic.plan(
                self.data, seed=seed, time_limit_s=time_limit_s, stop=stop.is_set, on_plan=on_plan
            )
        else:
            method = (
                placement_heuristic.place
                if self.data.problem == "placement"
                else replication_heuristic.replicate
            )
            found = method(self.data, seed=seed, time_limit_s=time_limit_s, stop=stop.is_set)
            if found is not None:
                on_plan(found)
        if self.best is None:
            self.notes.append("the heuristic found no room for a plan")
        self.seconds["heuristic"] = time.monotonic() - begin

    def search(
        self,
        choice: Choice,
        settings: SolveSettings,
        warm: bool,
        stop: threading.Event,
        log_path: str | None,
    ) -> WorkerOutcome:
        def on_progress(event: object) -> None:
            primal = getattr(event, "primal_bound", None)
            dual = getattr(event, "dual_bound", None)
            if choice.kind(self.data) in ("exact", "restriction") and primal is not None:
                self.live_upper = primal
            if choice.kind(self.data) in ("exact", "relaxation") and dual is not None:
                self.live_lower = dual
            self.tell(choice.name)

        self.tell(choice.name)
        outcome = run_job(
            self.data,
            choice.name,
            choice.solver,
            settings,
            start=self.best if warm else None,
            on_progress=on_progress,
            stop=stop,
            log_path=log_path,
        )
        self.live_upper = self.live_lower = None
        if outcome.input_error:
            raise InputError(outcome.input_error)
        for phase, seconds in outcome.seconds.items():
            self.seconds[phase] = seconds
        if outcome.solution is not None:
            self.offer(outcome.solution, f"{choice.name} with {choice.solver}")
        result = outcome.result
        if result is not None:
            self.claimed = result.primal_bound
            if result.dual_bound is not None and choice.kind(self.data) in ("exact", "relaxation"):
                exact = choice.solver == "cpsat"
                slack = 0.0 if exact else FLOAT_BOUND_SLACK * max(1.0, abs(result.dual_bound))
                name = result.dual_bound_from or choice.solver
                self.lower_bounds[f"{choice.name}: {name}"] = result.dual_bound - slack
        return outcome

    # --- the record

    def finish(
        self,
        choice: Choice | None,
        settings: SolveSettings,
        outcome: WorkerOutcome | None,
        reasons: list[str],
        interrupted: bool,
        log_path: str | None,
        time_limit_s: float,
    ) -> Outcome:
        data = self.data
        upper, lower = self.upper, self.lower
        if upper is not None and lower is not None and lower > upper:
            proof = max(self.lower_bounds, key=lambda name: self.lower_bounds[name])
            raise SolverError(
                f"a lower bound exceeds a checked plan: {lower!r} ({proof}) > {upper!r} "
                f"({self.best_from}); one of them is wrong: please report the instance"
            )
        gap = relative_gap(upper, lower)
        result = outcome.result if outcome is not None else None
        status = self._status(choice, outcome, reasons, gap, settings.gap)
        if status == "infeasible" and not reasons:
            reasons = [
                f"{choice.name if choice else 'the search'}: no plan fits, "
                "proved by exhaustion: memory, slots or waves must give way"
            ]
        if outcome is not None and outcome.message:
            self.notes.append(outcome.message)
        self.seconds["total"] = time.monotonic() - self.begin
        limit = _limit(outcome)
        if limit is None and status == "feasible" and not interrupted and outcome is None:
            limit = "time" if self.seconds["total"] >= 0.95 * time_limit_s else None
        record = Record(
            instance=data.name,
            instance_sha256=data.sha256,
            problem=data.problem,
            formulation=choice.name if choice is not None else None,
            kind=choice.kind(data) if choice is not None else "heuristic",  # type: ignore[arg-type]
            solver=choice.solver if choice is not None else None,
            solver_version=outcome.solver_version if outcome is not None else None,
            moeopt_version=__version__,
            status=status,
            limit=limit,
            interrupted=interrupted,
            objective_unit=objective_unit(data),
            upper_bound=upper,
            upper_bound_from=self.best_from,
            lower_bound=lower,
            lower_bound_from=max(
                self.lower_bounds, key=lambda name: self.lower_bounds[name], default=None
            ),
            lower_bounds=self.lower_bounds,
            evaluated_by=self.report.evaluated_by if self.report is not None else None,
            charged="activated" if data.problem == "joint" else None,
            gap=gap,
            claimed_objective=self.claimed,
            violations=[]
            if self.report is not None or self.rejected is None
            else [violation.as_dict() for violation in self.rejected.violations],
            reasons=reasons,
            notes=self.notes,
            seconds={phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            size=outcome.size if outcome is not None else None,
            nodes=result.nodes if result is not None else None,
            peak_memory_mib=outcome.peak_memory_mib if outcome is not None else None,
            seed=settings.seed,
            settings={
                "time_limit_s": time_limit_s,
                "memory_limit_mib": settings.memory_limit_mib,
                "gap": settings.gap,
                "threads": settings.threads,
                "options": settings.options,
            },
            log=log_path,
        )
        solution = None
        if self.best is not None:
            solution = self.best.model_copy(update={"objective": upper})
        return Outcome(record, solution, self.report)

    def _status(
        self,
        choice: Choice | None,
        outcome: WorkerOutcome | None,
        reasons: list[str],
        gap: float | None,
        gap_asked: float,
    ) -> Status:
        if reasons:
            return "infeasible"
        if gap is not None and gap <= gap_asked:
            return "optimal"
        if outcome is not None and outcome.cause in ("killed", "crashed"):
            return "error"
        if self.best is not None:
            return "feasible"
        result = outcome.result if outcome is not None else None
        if result is None or choice is None:
            return "no_solution_found"
        if result.reason in ("numerical_error", "imprecise", "other_error"):
            return "error"
        if self.rejected is not None:
            return "error"
        if choice.kind(self.data) in ("exact", "relaxation") and result.reason == "infeasible":
            return "infeasible"
        return "no_solution_found"


def _limit(outcome: WorkerOutcome | None) -> Literal["time", "memory", "nodes"] | None:
    if outcome is None:
        return None
    if outcome.cause in ("time", "memory"):
        return outcome.cause
    if outcome.result is not None and outcome.result.limit in ("time", "memory", "nodes"):
        return outcome.result.limit
    return None
