"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from moeopt.errors import InputError

#: Exit status: no feasible solution, or the checker found a violation.
NO_SOLUTION = 1
SOLVER_FAILED = 3
#: After Ctrl-C where no plan was there to keep, as shells have it.
INTERRUPTED = 130

InstanceArg = Annotated[
    str, typer.Argument(metavar="INSTANCE", help="A file, or the name of a shipped instance.")
]
ProblemOpt = Annotated[str, typer.Option("--problem", "-p", help="One of moeopt list problems.")]
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


def written(write: Callable[[], object]) -> InputError | None:
    """Write a result; return what keeps it from being written, to be raised once it is printed."""
    try:
        write()
    except InputError as error:
        return error
    return None


def solver_options(pairs: list[str]) -> dict[str, str | int | float | bool]:
    """Read NAME=VALUE pairs; a value is JSON, else text."""
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
