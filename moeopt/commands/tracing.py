"""``trace import`` and ``trace show``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moeopt.commands.arguments import ForceOpt, JsonOpt
from moeopt.errors import InputError
from moeopt.files import require_writable, write_bytes_atomic


def trace_import(
    path: Annotated[Path | None, typer.Argument(metavar="PATH")] = None,
    origin: Annotated[
        str, typer.Option("--from", help="An importer; without PATH they are listed.")
    ] = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="A .npz file.")] = Path(
        "trace.npz"
    ),
    force: ForceOpt = False,
) -> None:
    """Import loads, expert choices or requests that a serving system recorded."""
    from moeopt.summary import print_rows
    from moeopt.trace.importing import IMPORTERS, import_trace

    if path is None:
        print_rows(
            [{"from": i.name, "makes": i.makes, "reads": i.reads} for i in IMPORTERS.values()]
        )
        return
    if not origin:
        raise InputError(f"--from is missing; importers are {', '.join(IMPORTERS)}")
    require_writable(output, force)
    text = import_trace(path, origin, output, force=force)
    Console(stderr=True, highlight=False).print(f"{output}: {text}", soft_wrap=True)


def trace_show(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A file, or a shipped trace.")],
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the loads: .svg, .pdf or .png.")
    ] = None,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Show a trace: what it is, how uneven its loads are, how they drift."""
    from moeopt.make.traces_shipped import ARRIVALS, ROUTING
    from moeopt.summary import print_description
    from moeopt.trace.showing import describe_measured, describe_trace, kind_of, measured

    if kind_of(trace) is None:
        raise InputError(
            f"{trace}: neither a .npz file nor a shipped trace ({', '.join([*ROUTING, *ARRIVALS])})"
        )
    found = None
    if plot is None:
        description = describe_trace(trace)
    else:
        from moeopt.report.plot_style import ending_of, figure_bytes
        from moeopt.trace.plot_skew import plot_skew

        ending = ending_of(plot)
        require_writable(plot, force)
        found = measured(trace)
        description = describe_measured(found)
    if as_json:
        print(json.dumps(description, allow_nan=False))
    else:
        print_description(description)
    if plot is not None and found is not None:
        write_bytes_atomic(plot, figure_bytes(plot_skew(found), ending), force=force)
