"""``list``, ``show`` and ``versions``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from moeopt.commands.arguments import SOLVER_FAILED, InstanceArg, JsonOpt
from moeopt.errors import InputError


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


def show(instance: InstanceArg, as_json: JsonOpt = False) -> None:
    """Show an instance: sizes, memory, routing skew, requests, and what can be solved.

    A trace (a .npz, or a shipped one) is shown as `trace show` does.
    """
    from moeopt.catalog import read_instance
    from moeopt.listing import describe_instance
    from moeopt.summary import print_description
    from moeopt.trace.showing import describe_trace, kind_of

    if kind_of(instance) is None:
        description = describe_instance(read_instance(instance))
    else:
        description = describe_trace(instance)
    if as_json:
        print(json.dumps(description, allow_nan=False))
    else:
        print_description(description)


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
