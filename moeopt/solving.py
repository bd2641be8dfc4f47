"""One instance × problem × formulation × solver → a checked plan, its bounds and a record.

Whatever a heuristic or a solver says goes through the checker; every lower bound names its proof;
a lower bound above a checked upper bound is an error, never a clamp.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Literal

from moeopt.bounds import JOINT_METHOD
from moeopt.catalog import read_instance
from moeopt.choosing import Choice, choose, is_small
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.interrupt import interruptible
from moeopt.joint.prescribed import is_prescribed
from moeopt.limits import require_limits
from moeopt.methods import methods_for
from moeopt.prepare import explain_infeasible, prepare
from moeopt.problem import PROBLEMS, ProblemData
from moeopt.proving import one_layer, why_not
from moeopt.running import OnProgress, Outcome, ProgressState, Run
from moeopt.searches import OWN_SEARCHES
from moeopt.solution import Solution
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.supervise import WorkerOutcome

__all__ = ["Outcome", "ProgressState", "solve"]

#: Share of the time that heuristics may take before the exact search.
HEURISTIC_SHARE = 0.35

#: Share of the time that the bound of ``joint`` over wave lengths may take.
LENGTHS_SHARE = 0.3

#: ... and that prescribed waves may take, which are bounded and planned at once.
PRESCRIBED_SHARE = 0.9

#: Share of what is left then that proofs layer by layer may take before an exact search.
PROOF_SHARE = 0.8

#: An exact search gets at least so much, whatever the phases before it took.
LEAST_SEARCH_S = 0.5

Start = Literal["heuristic"] | Solution | None


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
    problem : str
        One of :data:`moeopt.problem.PROBLEMS`.
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
    require_limits(time_limit_s, memory_limit_mib)
    if not 0 <= gap < 1:
        raise InputError(f"the gap must be at least 0 and below 1, not {gap:g}")
    begin = time.monotonic()
    if not isinstance(instance, Instance):
        instance = read_instance(instance)
    run = Run(prepare(instance, problem), begin, on_progress)
    run.seconds["read"] = time.monotonic() - begin
    chosen, why_none = choose(run.data, formulation, solver)
    settings = _settings(chosen, time_limit_s, memory_limit_mib, gap, threads, seed, options or {})
    reasons = explain_infeasible(run.data)
    if reasons:
        return run.finish(None, settings, None, reasons, False, log_path, time_limit_s)
    # A small program is solved at once; methods that compile kernels first would only delay it.
    small = chosen is not None and formulation is None and is_small(chosen, run.data)
    layered = formulation is None and not small and why_not(run.data) is None
    if formulation is None:
        run.note(_plan_of_action(run.data, chosen, why_none, layered, small))
    if start == "default":
        start = "heuristic" if formulation is None and not small else None
    if isinstance(start, Solution):
        run.offer(start, "the given start")
    outcome: WorkerOutcome | None = None
    with interruptible() as stop:
        run.bound()
        prescribed = is_prescribed(run.data)
        if problem == "joint" and formulation is None and not run.closed(gap):
            share = PRESCRIBED_SHARE if prescribed else LENGTHS_SHARE
            run.bound_lengths(seed, share * time_limit_s, gap, stop)
        planned = prescribed and run.best is not None
        if start == "heuristic" and not planned and not run.closed(gap):
            share = HEURISTIC_SHARE if chosen is not None or layered else 1.0
            if problem in OWN_SEARCHES:
                run.own_search(OWN_SEARCHES[problem], seed, share * time_limit_s, stop)
            else:
                run.heuristic(seed, share * time_limit_s, gap, stop)
        if layered and not run.closed(gap) and not stop.is_set():
            left = begin + time_limit_s - time.monotonic()
            share = 1.0 if chosen is None else PROOF_SHARE
            run.prove(share * left, gap, stop)
        if chosen is not None and not run.closed(gap) and not stop.is_set():
            left = max(LEAST_SEARCH_S, begin + time_limit_s - time.monotonic())
            settings = replace(settings, time_limit_s=left)
            outcome = run.search(chosen, settings, start is not None, stop, log_path)
        interrupted = stop.is_set()
    if formulation is None and outcome is None:
        chosen = None  # the phases before it were enough
    return run.finish(chosen, settings, outcome, [], interrupted, log_path, time_limit_s)


def _plan_of_action(
    data: ProblemData, chosen: Choice | None, why_none: str | None, layered: bool, small: bool
) -> str:
    steps = [JOINT_METHOD] if data.problem == "joint" else []
    if not small:
        search = OWN_SEARCHES.get(data.problem)
        steps.append("a heuristic" if search is None else search.words)
    if layered:
        fitting = [m for m in methods_for(data) if m.fits(one_layer(data, 0)) is None]
        names = " and ".join(method.name for method in fitting) or "combinatorial bounds"
        shape = f"{data.experts} experts on {data.gpus} GPUs with {data.slots} slots"
        steps.append(f"bounds by {names} ({shape})")
    if chosen is not None:
        steps.append(f"{chosen.name} with {chosen.solver}")
    missing = "" if why_none is None else f"; no exact search ({why_none})"
    return f"chosen: {', then '.join(steps)}{missing}"


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
