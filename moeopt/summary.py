"""What the commands print for people: plans, checks, bounds, lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from moeopt.bounding import BoundReport
from moeopt.checker import CheckReport
from moeopt.comparing import Comparison
from moeopt.progress import percent
from moeopt.rounding_text import lower_text, upper_text
from moeopt.running import Outcome

_STATUS = {
    "optimal": "proved optimal (within the gap asked for)",
    "feasible": "feasible",
    "no_solution_found": "no plan found",
    "infeasible": "infeasible",
    "unbounded": "unbounded",
    "error": "error",
}


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _print_table(table: Table) -> None:
    """Print a table in full: a narrow terminal wraps its lines, nothing is cut out."""
    console = _console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(highlight=False, width=max(console.width, needed)).print(table)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    return grid


def print_outcome(outcome: Outcome, written: Path | None) -> None:
    """Print a solve: status, bounds, gap, and the plan in short."""
    record = outcome.record
    unit = "µs" if record.objective_unit == "us" else record.objective_unit
    grid = _grid()
    grid.add_row("instance", f"{record.instance}  ({record.problem})")
    how = "heuristic and bounds only"
    if record.formulation is not None:
        how = f"{record.formulation} ({record.kind}) with {record.solver}"
    grid.add_row("solved by", how)
    ended = [_STATUS[record.status]]
    if record.limit is not None:
        ended.append(f"{record.limit} limit reached")
    if record.interrupted:
        ended.append("interrupted")
    grid.add_row("status", ", ".join(ended))
    if record.upper_bound is not None:
        grid.add_row(
            "upper bound",
            f"{upper_text(record.upper_bound)} {unit}  "
            f"(plan of {record.upper_bound_from}; checked, {record.evaluated_by})",
        )
    if record.lower_bound is not None:
        grid.add_row(
            "lower bound", f"{lower_text(record.lower_bound)} {unit}  ({record.lower_bound_from})"
        )
    grid.add_row("gap", percent(record.gap))
    grid.add_row("time", f"{record.seconds['total']:.1f} s")
    if outcome.report is not None:
        for label, text in outcome.report.summary():
            grid.add_row(label, text)
    if written is not None and outcome.solution is not None:
        grid.add_row("written to", str(written))
    console = _console()
    console.print(grid)
    for line in record.reasons:
        console.print(f"infeasible: {line}")
    for violation in record.violations:
        console.print(f"violation: {violation['message']}")
    for note in record.notes:
        console.print(f"note: {note}", style="dim")


def print_check(report: CheckReport) -> None:
    """Print a check: every violation, or that there is none, and the objective."""
    console = _console()
    grid = _grid()
    grid.add_row("violations", str(len(report.violations)))
    if report.objective is not None:
        grid.add_row("objective", f"{report.objective!r}  ({report.evaluated_by})")
    for label, text in report.summary():
        grid.add_row(label, text)
    console.print(grid)
    for violation in report.violations:
        console.print(f"violation: {violation.kind}: {violation.message}")


def print_bounds(report: BoundReport) -> None:
    """Print lower bounds, strongest first."""
    console = _console()
    for line in report.infeasible:
        console.print(f"infeasible: {line}")
    if report.bounds:
        unit = "µs" if report.unit == "us" else report.unit
        table = Table(title=f"{report.instance}: lower bounds of {report.problem}, {unit}")
        table.add_column("method")
        table.add_column("bound", justify="right")
        table.add_column("seconds", justify="right")
        table.add_column("proof")
        for bound in report.bounds:
            table.add_row(
                bound.method, lower_text(bound.value), f"{bound.seconds:.2f}", bound.proof
            )
        _print_table(table)
    for line in report.missing:
        console.print(f"no bound: {line}")


def print_comparison(cells: list[Comparison]) -> None:
    """Print formulations side by side, a table for each instance; skipped cells with the reason."""
    console = _console()
    for instance in dict.fromkeys(cell.instance for cell in cells):
        table = Table(title=instance)
        table.add_column("formulation")
        table.add_column("solver")
        for heading in ("rows", "columns", "nonzeros", "LP", "root", "bound", "incumbent", "gap"):
            table.add_column(heading, justify="right")
        for heading in ("nodes", "s"):
            table.add_column(heading, justify="right")
        for cell in cells:
            if cell.instance != instance:
                continue
            if cell.skipped is not None:
                table.add_row(cell.formulation, cell.solver, *["–"] * 10)
                continue
            sizes = [_count(n) for n in (cell.rows, cell.columns, cell.nonzeros)]
            bounds = (cell.lp_bound, cell.root_bound, cell.lower_bound)
            table.add_row(
                cell.formulation,
                cell.solver,
                *sizes,
                *("–" if bound is None else lower_text(bound, 6) for bound in bounds),
                "–" if cell.upper_bound is None else upper_text(cell.upper_bound, 6),
                percent(cell.gap),
                _count(cell.nodes),
                f"{cell.seconds:.1f}",
            )
        _print_table(table)
    for cell in cells:
        if cell.skipped is not None:
            console.print(f"skipped: {cell.formulation} with {cell.solver}: {cell.skipped}")


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a list as a table."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for key in rows[0]:
        table.add_column(key.replace("_", " "))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    _print_table(table)


def print_description(description: dict[str, dict[str, Any]]) -> None:
    """Print the sections of an instance."""
    console = _console()
    for title, section in description.items():
        console.print(title, style="bold underline")
        grid = Table.grid(padding=(0, 2))
        for label, value in section.items():
            grid.add_row(f"  {label}", str(value))
        console.print(grid)
