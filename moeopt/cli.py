"""The command line: the commands under their names. What they do is in the modules below."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from moeopt import __version__
from moeopt.commands import (
    activating,
    advising,
    balancing,
    bounding,
    calibrating,
    dispatching,
    fronting,
    gracing,
    graphing,
    listing,
    paging,
    reporting,
    sampling,
    serving,
    simulating,
    solving,
    studying,
    tracing,
)
from moeopt.commands.arguments import INTERRUPTED
from moeopt.errors import MoeoptError
from moeopt.kernel_notice import tells_of_compiling

app = typer.Typer(
    name="moeopt",
    help="Expert placement, replication and batch allocation for Mixture-of-Experts LLMs, "
    "solved and certified.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: Commands in the order of the help.
COMMANDS: dict[str, Callable[..., None]] = {
    "solve": solving.solve,
    "check": solving.check,
    "bound": bounding.bound,
    "compare": bounding.compare,
    "mps": bounding.mps,
    "batch": studying.batch,
    "front": fronting.front,
    "sensitivity": fronting.sensitivity,
    "balance": balancing.balance,
    "activation": activating.activation,
    "advise": advising.advise,
    "dispatch": dispatching.dispatch,
    "paging": paging.paging,
    "grace": gracing.grace,
    "simulate": simulating.simulate,
    "calibrate": calibrating.calibrate,
    "table": reporting.table,
    "plot": reporting.plot,
    "report": reporting.report,
    "export-records": studying.export_records,
    "export": serving.export,
    "import": serving.import_,
    "list": listing.list_,
    "show": listing.show,
    "versions": listing.versions,
}
#: Groups of commands: help, and the commands.
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "instance": (
        "Make instance files.",
        {
            "make": calibrating.instance_make,
            "sample": sampling.instance_sample,
            "topology": graphing.instance_topology,
        },
    ),
    "trace": (
        "Traces of serving systems.",
        {"import": tracing.trace_import, "show": tracing.trace_show},
    ),
}

#: Commands whose loops numba compiles when they are first used.
COMPILED = (
    *("solve", "bound", "compare", "front", "sensitivity", "balance", "activation", "advise"),
    *("dispatch", "paging", "grace", "simulate"),
)

for name, command in COMMANDS.items():
    app.command(name)(tells_of_compiling(command) if name in COMPILED else command)
for name, (text, commands) in GROUPS.items():
    group = typer.Typer(help=text, no_args_is_help=True)
    for child, command in commands.items():
        group.command(child)(command)
    app.add_typer(group, name=name)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"moeopt {__version__}")
        raise typer.Exit


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
    except SystemError as error:
        # A compiled kernel that Ctrl-C met says so in its own way.
        if not isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def main() -> None:
    """Entry point of the ``moeopt`` command."""
    sys.exit(run(app))
