"""``bound``, ``compare`` and ``mps``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moeopt.commands.arguments import (
    ForceOpt,
    InstanceArg,
    JsonOpt,
    MemoryOpt,
    ProblemOpt,
    SeedOpt,
    ThreadsOpt,
    TimeOpt,
)
from moeopt.files import require_writable


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


def mps(
    instance: InstanceArg,
    problem: ProblemOpt,
    formulation: Annotated[str, typer.Option("--formulation", "-f")],
    output: Annotated[Path, typer.Option("-o", "--output")],
    force: ForceOpt = False,
) -> None:
    """Write a formulation of an instance as an MPS file."""
    from moeopt.bounding import write_formulation

    require_writable(output, force)
    size = write_formulation(instance, problem, formulation, output)
    Console(stderr=True).print(
        f"{output}: {size['rows']:,} rows, {size['columns']:,} columns, "
        f"{size['nonzeros']:,} nonzeros, {size['integers']:,} integers",
        highlight=False,
    )
