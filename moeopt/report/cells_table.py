"""The list of all cells of a study: one row each, with what its record notes."""

from __future__ import annotations

from moeopt.report import numbers
from moeopt.report.caption import ROUNDING
from moeopt.report.contests import formulation_label
from moeopt.report.table import Column, Row, Table
from moeopt.rounding_text import DIGITS, exact_gap, percent_text
from moeopt.study.cells import Cell, CellResult, StudyResults

_COLUMNS = (
    Column("instance", is_number=False),
    Column("problem", is_number=False),
    Column("formulation", is_number=False),
    Column("solver", is_number=False),
    Column("seed"),
    Column("status", is_number=False),
    Column("lower"),
    Column("upper"),
    Column("gap %"),
    Column("time s"),
    Column("nodes"),
    Column("MiB"),
    Column("notes", is_number=False),
)


def cells_table(study: StudyResults, digits: int = DIGITS) -> Table:
    """Return all cells: failed ones first, then finished, skipped and missing ones."""
    nothing = (numbers.NOTHING,) * 6
    rows = [
        *(_row(result, digits) for result in (*study.failed, *study.finished)),
        *((*_what(cell), "skipped", *nothing, reason) for cell, reason in study.skipped),
        *((*_what(cell), "not run yet", *nothing, "") for cell in study.missing),
    ]
    return Table("all", "Cells and their notes", _COLUMNS, tuple(rows), (ROUNDING,))


def _what(cell: Cell) -> Row:
    solver = cell.solver or numbers.NOTHING
    return cell.instance, cell.problem, formulation_label(cell.formulation), solver, str(cell.seed)


def _row(result: CellResult, digits: int) -> Row:
    record = result.record
    lower, upper = record["lower_bound"], record["upper_bound"]
    gap = numbers.NOTHING
    if lower is not None and upper is not None:
        gap = percent_text(exact_gap(upper, lower))
    status = record["status"].replace("_", " ")
    if record["limit"] is not None:
        status += f" ({record['limit']} limit)"
    notes = [*record["reasons"], *record["notes"]]
    notes += [violation["message"] for violation in record["violations"]]
    return (
        *_what(result.cell),
        status,
        numbers.lower(lower, digits),
        numbers.upper(upper, digits),
        gap,
        numbers.measured(record["seconds"].get("total")),
        numbers.count(record["nodes"]),
        numbers.measured(record["peak_memory_mib"]),
        "; ".join(notes),
    )
