"""``export`` and ``import``: placement files of serving systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moeopt.commands.arguments import NO_SOLUTION, ForceOpt, InstanceArg
from moeopt.errors import InputError
from moeopt.files import require_writable

FormatOpt = "sglang, tensorrt-llm, vllm-ascend, vllm or vllm-offline."


def export(
    instance: InstanceArg,
    solution: Annotated[Path, typer.Argument(metavar="SOLUTION")],
    to: Annotated[str, typer.Option("--to", help=FormatOpt)],
    output: Annotated[Path, typer.Option("-o", "--output")],
    fill: Annotated[
        bool, typer.Option("--fill", help="Fill empty slots with replicas of loaded experts.")
    ] = False,
    slots: Annotated[
        int | None, typer.Option("--slots", help="Fill up to so many experts a GPU and layer.")
    ] = None,
    force: ForceOpt = False,
) -> None:
    """Write a plan as the placement file that a serving system loads."""
    from moeopt.catalog import read_instance
    from moeopt.serving.exchange import export_plan, format_named
    from moeopt.solution import read_solution_file, validate_against

    form = format_named(to)
    require_writable(output, force)
    read, plan = read_instance(instance), read_solution_file(solution)
    if lines := validate_against(read, plan):
        raise InputError(lines)
    layout = export_plan(read, plan, to, output, filled=fill, slots=slots, force=force)
    say = Console(stderr=True, highlight=False).print
    say(
        f"{output}: {len(layout.layers)} layers, {layout.slots} slots on {layout.gpus} GPUs, "
        f"{layout.slots - layout.experts} of them redundant experts"
    )
    say(f"{to} loads it by {form.option}")


def import_(
    instance: InstanceArg,
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    origin: Annotated[str, typer.Option("--from", help=FormatOpt)],
    output: Annotated[Path, typer.Option("-o", "--output")],
    force: ForceOpt = False,
) -> None:
    """Read a serving system's placement file as a plan; check it and compute its objective."""
    from moeopt.catalog import read_instance
    from moeopt.checker import check_solution
    from moeopt.prepare import prepare
    from moeopt.serving.exchange import import_plan
    from moeopt.solution import write_solution_file
    from moeopt.summary import print_check

    require_writable(output, force)
    read = read_instance(instance)
    plan = import_plan(read, file, origin)
    report = check_solution(prepare(read, plan.problem), plan)
    print_check(report)
    write_solution_file(plan, output, force=force)
    if report.violations:
        raise typer.Exit(NO_SOLUTION)
