"""``solve`` and ``check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moeopt.commands.arguments import (
    INTERRUPTED,
    NO_SOLUTION,
    SOLVER_FAILED,
    ForceOpt,
    FormulationOpt,
    InstanceArg,
    JsonOpt,
    MemoryOpt,
    ProblemOpt,
    SeedOpt,
    SolverOpt,
    ThreadsOpt,
    TimeOpt,
    solver_options,
    written,
)
from moeopt.commands.studying import ResultsOpt, check_study
from moeopt.errors import InputError
from moeopt.files import require_writable


def solve(
    instance: InstanceArg,
    problem: ProblemOpt,
    formulation: FormulationOpt = None,
    solver: SolverOpt = None,
    time_limit: TimeOpt = 60.0,
    memory_limit: MemoryOpt = None,
    gap: Annotated[float, typer.Option("--gap", help="Relative gap to stop at.")] = 1e-6,
    threads: ThreadsOpt = None,
    seed: SeedOpt = 0,
    start: Annotated[
        str | None,
        typer.Option("--start", help="Warm start: heuristic, none, or a solution file."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="The solver's own option, NAME=VALUE; repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the plan to this file.")
    ] = None,
    force: ForceOpt = False,
    log: Annotated[Path | None, typer.Option("--log", help="Keep the solver's log here.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Solve an instance; check the plan; print it with its upper bound, lower bound and gap.

    Without --formulation: a heuristic first, then the best known formulation if its size allows.
    Ctrl-C ends the search and keeps the best plan so far.
    """
    from moeopt.progress import ProgressLine
    from moeopt.solution import write_solution_file
    from moeopt.solving import solve as run

    if output is not None:
        require_writable(output, force)
    if log is not None:
        require_writable(log, force=True)  # it is appended to
    warm: Any = "default"
    if start is not None:
        warm = _read_start(instance, start)
    with ProgressLine() as progress:
        outcome = run(
            instance,
            problem=problem,
            formulation=formulation,
            solver=solver,
            time_limit_s=time_limit,
            memory_limit_mib=memory_limit,
            gap=gap,
            threads=threads,
            seed=seed,
            start=warm,
            options=solver_options(option or []),
            on_progress=progress,
            log_path=str(log) if log is not None else None,
        )
    unwritten = None
    if output is not None and (plan := outcome.solution) is not None:
        path = output
        unwritten = written(lambda: write_solution_file(plan, path, force=force))
    if as_json:
        print(outcome.record.json_line())
    else:
        from moeopt.summary import print_outcome

        print_outcome(outcome, output if unwritten is None else None)
    if unwritten is not None:
        raise unwritten
    if outcome.record.status == "error":
        raise typer.Exit(SOLVER_FAILED)
    if outcome.solution is None:
        cut_short = outcome.record.interrupted and outcome.record.status != "infeasible"
        raise typer.Exit(INTERRUPTED if cut_short else NO_SOLUTION)


def check(
    instance: Annotated[
        str | None, typer.Argument(metavar="[INSTANCE]", help="A file, or a shipped name.")
    ] = None,
    solution: Annotated[Path | None, typer.Argument(metavar="[SOLUTION]")] = None,
    study: Annotated[
        str | None, typer.Option("--study", help="Check every stored plan of a study instead.")
    ] = None,
    results: ResultsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Validate an instance; check a plan from anywhere and recompute its objective."""
    import moeopt
    from moeopt.catalog import read_instance
    from moeopt.summary import print_check

    if study is not None:
        check_study(study, results, as_json)
        return
    if instance is None:
        raise InputError("say which INSTANCE to check, or which --study")
    read = read_instance(instance)
    if solution is None:
        if as_json:
            print(json.dumps({"instance": read.name, "sha256": read.sha256, "valid": True}))
        else:
            Console().print(f"{read.name}: a valid instance", highlight=False)
        return
    report = moeopt.check(read, solution)
    if as_json:
        print(json.dumps(report.as_dict(), allow_nan=False))
    else:
        print_check(report)
    if report.violations:
        raise typer.Exit(NO_SOLUTION)


def _read_start(instance: str, start: str) -> Any:
    if start in ("heuristic", "none"):
        return "heuristic" if start == "heuristic" else None
    from moeopt.catalog import read_instance
    from moeopt.solution import read_solution_file, validate_against

    solution = read_solution_file(Path(start))
    if lines := validate_against(read_instance(instance), solution):
        raise InputError(lines)
    return solution
