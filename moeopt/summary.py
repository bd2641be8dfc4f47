"""What the commands print for people: plans, checks, bounds, lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from moeopt.bounding import BoundReport
from moeopt.checker import CheckReport
from moeopt.comparing import Comparison
from moeopt.progress import percent
from moeopt.rounding_text import lower_text, upper_text
from moeopt.running import Outcome
from moeopt.terminal import print_table, print_text

_STATUS = {
    "optimal": "proved optimal (within the gap asked for)",
    "feasible": "feasible",
    "no_solution_found": "no plan found",
    "infeasible": "infeasible",
    "unbounded": "unbounded",
    "error": "error",
}


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
    print_text(grid)
    for line in record.reasons:
        print_text(f"infeasible: {line}")
    for violation in record.violations:
        print_text(f"violation: {violation['message']}")
    for note in record.notes:
        print_text(f"note: {note}", style="dim")


def print_check(report: CheckReport) -> None:
    """Print a check: every violation, or that there is none, and the objective."""
    grid = _grid()
    grid.add_row("violations", str(len(report.violations)))
    if report.objective is not None:
        grid.add_row("objective", f"{report.objective!r}  ({report.evaluated_by})")
    for label, text in report.summary():
        grid.add_row(label, text)
    print_text(grid)
    for violation in report.violations:
        print_text(f"violation: {violation.kind}: {violation.message}")


def print_bounds(report: BoundReport) -> None:
    """Print lower bounds, strongest first."""
    for line in report.infeasible:
        print_text(f"infeasible: {line}")
    if report.bounds:
        unit = "µs" if report.unit == "us" else report.unit
        print_table(
            ("method", "bound", "seconds", "proof"),
            [
                (bound.method, lower_text(bound.value), f"{bound.seconds:.2f}", bound.proof)
                for bound in report.bounds
            ],
            right=(1, 2),
            title=f"{report.instance}: lower bounds of {report.problem}, {unit}",
            boxed=True,
        )
    for line in report.missing:
        print_text(f"no bound: {line}")


_COMPARED = (
    *("formulation", "solver", "rows", "columns", "nonzeros"),
    *("LP", "root", "bound", "incumbent", "gap", "nodes", "s"),
)


def print_comparison(cells: list[Comparison]) -> None:
    """Print formulations side by side, a table for each instance; skipped cells with the reason."""
    for instance in dict.fromkeys(cell.instance for cell in cells):
        print_table(
            _COMPARED,
            [_comparison_row(cell) for cell in cells if cell.instance == instance],
            keys=2,
            right=range(2, len(_COMPARED)),
            title=instance,
            boxed=True,
        )
    for cell in cells:
        if cell.skipped is not None:
            print_text(f"skipped: {cell.formulation} with {cell.solver}: {cell.skipped}")


def _comparison_row(cell: Comparison) -> list[str]:
    if cell.skipped is not None:
        return [cell.formulation, cell.solver, *["–"] * (len(_COMPARED) - 2)]
    bounds = (cell.lp_bound, cell.root_bound, cell.lower_bound)
    return [
        cell.formulation,
        cell.solver,
        *(_count(n) for n in (cell.rows, cell.columns, cell.nonzeros)),
        *("–" if bound is None else lower_text(bound, 6) for bound in bounds),
        "–" if cell.upper_bound is None else upper_text(cell.upper_bound, 6),
        percent(cell.gap),
        _count(cell.nodes),
        f"{cell.seconds:.1f}",
    ]


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def print_rows(rows: list[dict[str, Any]], *, keys: int = 1) -> None:
    """Print a list as a table, whose first ``keys`` columns name the rows."""
    if rows:
        print_table(
            [key.replace("_", " ") for key in rows[0]],
            [[str(value) for value in row.values()] for row in rows],
            keys=keys,
        )


def print_description(description: dict[str, dict[str, Any]]) -> None:
    """Print the sections of an instance."""
    for title, section in description.items():
        print_text(title, style="bold underline")
        grid = Table.grid(padding=(0, 2))
        for label, value in section.items():
            grid.add_row(f"  {label}", str(value))
        print_text(grid)
