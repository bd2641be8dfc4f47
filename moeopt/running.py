"""The state of one solve: the best checked plan, all bounds, times and notes; and its record."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from moeopt import __version__
from moeopt.bounds import JOINT_METHOD, combinatorial_bounds, joint_bound
from moeopt.checker import CheckReport, check_solution
from moeopt.choosing import Choice
from moeopt.errors import InputError, SolverError
from moeopt.heuristics import joint as joint_heuristic
from moeopt.heuristics import paging as paging_heuristic
from moeopt.heuristics import placement as placement_heuristic
from moeopt.heuristics import replication as replication_heuristic
from moeopt.machine import describe_machine
from moeopt.methods import methods_for
from moeopt.problem import ProblemData, objective_unit
from moeopt.proving import prove
from moeopt.record import Record, Status, relative_gap
from moeopt.searches import OwnSearch
from moeopt.solution import Solution
from moeopt.solvers.base import Progress, SolveSettings
from moeopt.solvers.supervise import WorkerOutcome, run_job
from moeopt.status import limit_of, limit_without_search, status_of
from moeopt.trajectory import Trajectory

#: Floating-point solvers prove their bounds up to their tolerances; theirs are lowered by this.
FLOAT_BOUND_SLACK = 1e-7

_HEURISTICS: dict[str, Callable[..., Solution | None]] = {
    "placement": placement_heuristic.place,
    "replication": replication_heuristic.replicate,
    "paging": paging_heuristic.evict,
}


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
    """What a solve returns: the record, and the best checked plan (None if there is none)."""

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


@dataclass
class Run:
    """The state of one solve. Phases add plans and bounds; :meth:`finish` makes the record."""

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
    wave_lengths: tuple[int, ...] | None = None
    trajectory: Trajectory = field(default_factory=Trajectory)

    # --- state

    @property
    def upper(self) -> float | None:
        """Objective of the best checked plan."""
        return None if self.report is None else self.report.objective

    @property
    def lower(self) -> float | None:
        """Best lower bound."""
        return max(self.lower_bounds.values(), default=None)

    @property
    def lower_from(self) -> str | None:
        """Name of the proof of the best lower bound."""
        return max(self.lower_bounds, key=lambda name: self.lower_bounds[name], default=None)

    def closed(self, gap: float) -> bool:
        """Whether the gap asked for is reached."""
        reached = relative_gap(self.upper, self.lower)
        return reached is not None and reached <= gap

    def note(self, text: str) -> None:
        """Keep a line for the record and tell it at once."""
        self.notes.append(text)
        self.tell("prepare", text)

    def tell(self, phase: str, message: str | None = None) -> None:
        """Report progress."""
        uppers = [u for u in (self.upper, self.live_upper) if u is not None]
        lowers = [b for b in (self.lower, self.live_lower) if b is not None]
        upper, lower = min(uppers, default=None), max(lowers, default=None)
        seconds = time.monotonic() - self.begin
        self.trajectory.add(seconds, upper, lower)
        if self.on_progress is not None:
            self.on_progress(ProgressState(phase, seconds, upper, lower, message))

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
        """Combinatorial bounds: they take no time."""
        begin = time.monotonic()
        for bound in combinatorial_bounds(self.data):
            self.lower_bounds[bound.method] = bound.value
        self.seconds["bound"] = time.monotonic() - begin
        self.tell("bound")

    def bound_lengths(
        self, seed: int, time_limit_s: float, gap: float, stop: threading.Event
    ) -> None:
        """Bound ``joint`` by layers, over the lengths of its waves; plan prescribed waves."""
        begin = time.monotonic()
        self.tell("proof")

        def on_bound(value: float) -> None:
            self.lower_bounds[JOINT_METHOD] = value
            self.tell("proof")

        def on_plan(solution: Solution) -> None:
            self.offer(solution, "the heuristic")
            self.tell("heuristic")

        bound, self.wave_lengths = joint_bound(
            self.data,
            seed=seed,
            time_limit_s=time_limit_s,
            stop=lambda: stop.is_set() or self.closed(gap),
            on_bound=on_bound,
            on_plan=on_plan,
        )
        if bound.value < math.inf:  # what no waves can hold is for the exact search to say
            self.lower_bounds[bound.method] = bound.value
        self.seconds["proof"] = time.monotonic() - begin
        self.tell("proof")

    def own_search(
        self, search: OwnSearch, seed: int, time_limit_s: float, stop: threading.Event
    ) -> None:
        """Plan and bound at once, where the problem has a search that does."""
        begin = time.monotonic()
        self.tell("heuristic")
        found = search.run(self.data, seed=seed, time_limit_s=time_limit_s, stop=stop.is_set)
        self.lower_bounds |= found.bounds
        if found.plan is None:
            self.notes.append(found.source)
        else:
            self.offer(found.plan, found.source)
        self.seconds["heuristic"] = time.monotonic() - begin
        self.tell("proof")

    def heuristic(self, seed: int, time_limit_s: float, gap: float, stop: threading.Event) -> None:
        """Look for a plan without a solver."""
        begin = time.monotonic()
        self.tell("heuristic")

        def on_plan(solution: Solution) -> None:
            self.offer(solution, "the heuristic")
            self.tell("heuristic")

        if self.data.problem == "joint":
            joint_heuristic.plan(
                self.data,
                lengths=self.wave_lengths,
                seed=seed,
                time_limit_s=time_limit_s,
                stop=lambda: stop.is_set() or self.closed(gap),
                on_plan=on_plan,
            )
        else:
            method = _HEURISTICS[self.data.problem]
            found = method(self.data, seed=seed, time_limit_s=time_limit_s, stop=stop.is_set)
            if found is not None:
                on_plan(found)
        if self.best is None:
            self.notes.append("the heuristic found no room for a plan")
        self.seconds["heuristic"] = time.monotonic() - begin

    def prove(self, time_limit_s: float, gap: float, stop: threading.Event) -> None:
        """Bound layer by layer with the methods that suit the shape."""
        begin = time.monotonic()
        self.tell("proof")
        hosts = None if self.best is None else self.best.hosts_array(self.data.gpus)

        def on_bound(value: float) -> None:
            self.live_lower = value
            self.tell("proof")

        proof = prove(
            self.data,
            methods_for(self.data),
            hosts=hosts,
            time_limit_s=time_limit_s,
            gap=gap,
            stop=stop.is_set,
            on_bound=on_bound,
        )
        self.live_lower = None
        self.lower_bounds[proof.source] = proof.value
        if proof.hosts is not None and hosts is not None and (proof.hosts != hosts).any():
            self.offer(Solution.from_arrays(self.data, proof.hosts), proof.source)
        self.seconds["proof"] = time.monotonic() - begin
        self.tell("proof")

    def search(
        self,
        choice: Choice,
        settings: SolveSettings,
        warm: bool,
        stop: threading.Event,
        log_path: str | None,
    ) -> WorkerOutcome:
        """Run a formulation in a solver's worker process."""
        proves = choice.proves(self.data)
        reaches = choice.kind(self.data) in ("exact", "restriction")

        def on_progress(event: Progress) -> None:
            if reaches and event.primal_bound is not None:
                self.live_upper = event.primal_bound
            if proves and event.dual_bound is not None:
                self.live_lower = event.dual_bound
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
        self.seconds |= outcome.seconds
        if outcome.solution is not None:
            self.offer(outcome.solution, f"{choice.name} with {choice.solver}")
        result = outcome.result
        if result is not None:
            self.claimed = result.primal_bound
            if result.dual_bound is not None and proves:
                slack = FLOAT_BOUND_SLACK * max(1.0, abs(result.dual_bound))
                if choice.solver == "cpsat":
                    slack = 0.0  # integers: its bound holds as it is
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
        """Make the record; a lower bound above the plan is an error."""
        data, upper, lower = self.data, self.upper, self.lower
        if upper is not None and lower is not None and lower > upper:
            raise SolverError(
                f"a lower bound exceeds a checked plan: {lower!r} ({self.lower_from}) > {upper!r} "
                f"({self.best_from}); one of them is wrong: please report the instance"
            )
        gap = relative_gap(upper, lower)
        result = outcome.result if outcome is not None else None
        status: Status = "infeasible"
        if not reasons:
            status = status_of(
                data,
                choice,
                outcome,
                gap=gap,
                gap_asked=settings.gap,
                has_plan=self.best is not None,
                was_rejected=self.rejected is not None,
            )
        if status == "infeasible" and not reasons:
            reasons = [
                f"{choice.name if choice else 'the search'}: no plan fits, "
                "proved by exhaustion: memory, slots or waves must give way"
            ]
        if outcome is not None and outcome.message:
            self.notes.append(outcome.message)
        self.seconds["total"] = time.monotonic() - self.begin
        limit = limit_of(outcome)
        if outcome is None and not interrupted:
            limit = limit_without_search(status, self.seconds["total"], time_limit_s)
        rejected = [] if self.report is not None or self.rejected is None else [self.rejected]
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
            lower_bound_from=self.lower_from,
            lower_bounds=self.lower_bounds,
            evaluated_by=self.report.evaluated_by if self.report is not None else None,
            charged=data.charged if data.problem == "joint" else None,
            gap=gap,
            claimed_objective=self.claimed,
            violations=[v.as_dict() for report in rejected for v in report.violations],
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
            trajectory=self.trajectory.points(self.seconds["total"], upper, lower),
            machine=describe_machine(),
        )
        solution = None
        if self.best is not None:
            solution = self.best.model_copy(update={"objective": upper})
        return Outcome(record, solution, self.report)
