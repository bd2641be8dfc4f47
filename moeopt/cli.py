"""The command line: arguments in, tables out. What a command does is in the modules below it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moeopt import __version__
from moeopt.errors import InputError, MoeoptError

app = typer.Typer(
    name="moeopt",
    help="Expert placement, replication and batch allocation for Mixture-of-Experts LLMs, "
    "solved and certified.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
instance_app = typer.Typer(help="Make instance files.", no_args_is_help=True)
app.add_typer(instance_app, name="instance")

#: Exit status: no feasible solution, or the checker found a violation.
NO_SOLUTION = 1
SOLVER_FAILED = 3

InstanceArg = Annotated[
    str, typer.Argument(metavar="INSTANCE", help="A file, or the name of a shipped instance.")
]
ProblemOpt = Annotated[str, typer.Option("--problem", "-p", help="placement, replication, joint.")]
FormulationOpt = Annotated[
    str | None,
    typer.Option("--formulation", "-f", help="A name (moeopt list formulations) or a .py file."),
]
SolverOpt = Annotated[str | None, typer.Option("--solver", "-s", help="highs or cpsat.")]
TimeOpt = Annotated[float, typer.Option("--time-limit", "-t", help="Seconds, for everything.")]
MemoryOpt = Annotated[
    float | None, typer.Option("--memory-limit", help="MiB the worker process may use.")
]
ThreadsOpt = Annotated[int | None, typer.Option("--threads", min=1)]
SeedOpt = Annotated[int, typer.Option("--seed")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]
ForceOpt = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]


@app.command()
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
        _require_writable(output, force)
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
            options=_options(option or []),
            on_progress=progress,
            log_path=str(log) if log is not None else None,
        )
    if output is not None and outcome.solution is not None:
        write_solution_file(outcome.solution, output, force=force)
    if as_json:
        print(outcome.record.json_line())
    else:
        from moeopt.summary import print_outcome

        print_outcome(outcome, output)
    if outcome.record.status == "error":
        raise typer.Exit(SOLVER_FAILED)
    if outcome.solution is None:
        raise typer.Exit(NO_SOLUTION)


@app.command()
def check(
    instance: InstanceArg,
    solution: Annotated[Path | None, typer.Argument(metavar="[SOLUTION]")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Validate an instance; check a plan from anywhere and recompute its objective."""
    import moeopt
    from moeopt.catalog import read_instance
    from moeopt.summary import print_check

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


@app.command()
def bound(
    instance: InstanceArg,
    problem: ProblemOpt,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="combinatorial, lp, layers, or all; repeatable."),
    ] = None,
    formulation: Annotated[
        list[str] | None,
        typer.Option("--formulation", "-f", help="Formulations for lp; default: all that fit."),
    ] = None,
    solver: Annotated[
        str | None, typer.Option("--solver", "-s", help="For the LPs: highs or pdlp.")
    ] = None,
    time_limit: TimeOpt = 60.0,
    memory_limit: MemoryOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Print lower bounds, each with its proof: LP relaxations and combinatorial bounds."""
    from moeopt.bounding import bounds
    from moeopt.summary import print_bounds

    found = bounds(
        instance,
        problem=problem,
        methods=method or ["all"],
        formulations=formulation,
        solver=solver,
        time_limit_s=time_limit,
        memory_limit_mib=memory_limit,
    )
    if as_json:
        print(json.dumps(found.as_dict(), allow_nan=False))
    else:
        print_bounds(found)


@app.command()
def compare(
    instances: Annotated[list[str], typer.Argument(metavar="INSTANCE...")],
    problem: ProblemOpt,
    formulations: Annotated[
        str | None, typer.Option("--formulations", help="Names, with commas; default: all.")
    ] = None,
    solvers: Annotated[
        str | None, typer.Option("--solvers", help="Names, with commas; default: all that fit.")
    ] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", "-t", help="Seconds a cell.")] = 60.0,
    gap: Annotated[float, typer.Option("--gap", help="Relative gap to stop at.")] = 1e-6,
    threads: ThreadsOpt = None,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
) -> None:
    """Solve with several formulations and solvers; print them side by side."""
    from moeopt.catalog import formulation_names
    from moeopt.comparing import compare as run
    from moeopt.summary import print_comparison

    names = formulations.split(",") if formulations else formulation_names(problem)
    cells = run(
        list(instances),
        problem=problem,
        formulations=names,
        solvers=solvers.split(",") if solvers else None,
        time_limit_s=time_limit,
        gap=gap,
        threads=threads,
        seed=seed,
        on_cell=lambda cell: print(
            f"{cell.instance} {cell.formulation} {cell.solver}: {cell.skipped or cell.status}",
            file=sys.stderr,
        ),
    )
    if as_json:
        print(json.dumps([cell.as_dict() for cell in cells], allow_nan=False))
    else:
        print_comparison(cells)


@app.command()
def mps(
    instance: InstanceArg,
    problem: ProblemOpt,
    formulation: Annotated[str, typer.Option("--formulation", "-f")],
    output: Annotated[Path, typer.Option("-o", "--output")],
    force: ForceOpt = False,
) -> None:
    """Write a formulation of an instance as an MPS file."""
    from moeopt.bounding import write_formulation

    _require_writable(output, force)
    size = write_formulation(instance, problem, formulation, output)
    Console(stderr=True).print(
        f"{output}: {size['rows']:,} rows, {size['columns']:,} columns, "
        f"{size['nonzeros']:,} nonzeros, {size['integers']:,} integers",
        highlight=False,
    )


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="problems, formulations, solvers or instances.")],
    as_json: JsonOpt = False,
) -> None:
    """List what there is."""
    from moeopt.listing import LISTINGS
    from moeopt.summary import print_rows

    if what not in LISTINGS:
        raise InputError(f"cannot list {what!r}; lists are {', '.join(LISTINGS)}")
    rows = LISTINGS[what]()
    if as_json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print_rows(rows)


@app.command()
def show(instance: InstanceArg, as_json: JsonOpt = False) -> None:
    """Show an instance: sizes, memory, routing skew, requests, and what can be solved."""
    from moeopt.catalog import read_instance
    from moeopt.listing import describe_instance
    from moeopt.summary import print_description

    description = describe_instance(read_instance(instance))
    if as_json:
        print(json.dumps(description, allow_nan=False))
    else:
        print_description(description)


@app.command()
def versions(as_json: JsonOpt = False) -> None:
    """Show versions, and whether the solvers pass their self-checks."""
    from moeopt.listing import version_rows
    from moeopt.summary import print_rows

    rows = version_rows()
    if as_json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print_rows(rows)
    if any(row["self_check"] not in ("", "passed") for row in rows):
        raise typer.Exit(SOLVER_FAILED)


@instance_app.command("make")
def instance_make(
    recipe: Annotated[str, typer.Argument(help="A recipe; `list` shows them all.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder that holds the sources' folders.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("."),
    force: ForceOpt = False,
) -> None:
    """Make instance files from public traces, as the shipped ones were made."""
    from moeopt.make import RECIPES, make
    from moeopt.summary import print_rows

    if recipe == "list":
        print_rows([{"recipe": name, "makes": r.summary} for name, r in RECIPES.items()])
        return
    for path in make(recipe, data, output, force=force):
        print(path)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"moeopt {__version__}")
        raise typer.Exit


def _require_writable(path: Path, force: bool) -> None:
    """Refuse before the work, not after it."""
    if path.exists() and not force:
        raise InputError(f"{path}: exists; --force overwrites it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")


def _read_start(instance: str, start: str) -> Any:
    if start in ("heuristic", "none"):
        return "heuristic" if start == "heuristic" else None
    from moeopt.catalog import read_instance
    from moeopt.solution import read_solution_file, validate_against

    solution = read_solution_file(Path(start))
    if lines := validate_against(read_instance(instance), solution):
        raise InputError(lines)
    return solution


def _options(pairs: list[str]) -> dict[str, str | int | float | bool]:
    options: dict[str, str | int | float | bool] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--option {pair}: write NAME=VALUE")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        options[name] = value if isinstance(value, str | int | float | bool) else text
    return options


def run(command: Callable[[], None]) -> int:
    """Run the command line; errors become lines on standard error and an exit status."""
    try:
        command()
    except MoeoptError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output (head, less) left: nothing to say, and nowhere to say it.
        sys.stderr.close()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def main() -> None:
    """Entry point of the ``moeopt`` command."""
    sys.exit(run(app))
