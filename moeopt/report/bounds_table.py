"""The bound table: what is proved of every instance, by whom, and what is left open."""

from __future__ import annotations

from moeopt.report import numbers, sizes
from moeopt.report.caption import GAP, ROUNDING, circumstances, notes
from moeopt.report.contests import arenas
from moeopt.report.evidence import Evidence, gather
from moeopt.report.table import Column, Row, Table
from moeopt.rounding_text import DIGITS, exact_gap, percent_text
from moeopt.study.cells import StudyResults


def bounds_tables(study: StudyResults, digits: int = DIGITS) -> list[Table]:
    """Return a bound table for each problem and unit of the study.

    Parameters
    ----------
    digits : int
        Significant digits of bounds.

    Raises
    ------
    SolverError
        Records contradict each other (:func:`moeopt.report.evidence.gather`).
    """
    evidence = gather(study)
    tables = []
    for arena in arenas(study):
        here = [one for one in evidence if one.subject.problem == arena.problem]
        units = list(dict.fromkeys(one.unit for one in here)) or [""]  # none is known yet
        for unit in units:
            # Skipped cells have no unit: they are listed once, below the last table.
            remarks = notes(arena) if unit == units[-1] else []
            of_unit = [one for one in here if one.unit == unit]
            tables.append(_table(arena.problem, of_unit, unit, digits, remarks))
    return tables


def _table(
    problem: str, evidence: list[Evidence], unit: str, digits: int, remarks: list[str]
) -> Table:
    words = {"": "", "us": ", in µs"}.get(unit, f", in {unit}")
    known = [sizes.find_sizes(e.subject.instance, e.subject.instance_sha256) for e in evidence]
    shown = [i for i in range(len(sizes.COLUMNS)) if any(size[i] is not None for size in known)]
    families = {
        "LP bound": [one.lp for one in evidence],
        "root bound": [one.root for one in evidence],
        "bound by method": [one.named for one in evidence],
    }
    names = {
        group: sorted({name for b in bounds for name in b}) for group, bounds in families.items()
    }
    columns = [
        Column("instance", is_number=False),
        *(sizes.COLUMNS[i] for i in shown),
        *(Column(name, group) for group in families for name in names[group]),
        Column("lower", "best bounds"),
        Column("upper", "best bounds"),
        Column("gap %", "best bounds"),
        Column("proof", is_number=False),
    ]
    rows: list[Row] = []
    for i, (one, size) in enumerate(zip(evidence, known, strict=True)):
        bounds = [
            numbers.lower(families[group][i].get(name), digits)
            for group in families
            for name in names[group]
        ]
        sized = (numbers.count(size[c]) for c in shown)
        rows.append((_name(one), *sized, *bounds, *_best(one, digits)))
    unsized = [
        one.subject.instance for one, size in zip(evidence, known, strict=True) if not any(size)
    ]
    if unsized:
        remarks.append(
            f"Sizes not shown, no shipped instance of this content: {', '.join(unsized)}"
        )
    for one in evidence:
        reasons = dict.fromkeys(line for r in one.infeasible for line in r.record["reasons"])
        remarks += [f"Infeasible: {one.subject.instance}: {reason}" for reason in reasons]
    return Table(
        problem,
        f"Bounds of {problem}{words}",
        tuple(columns),
        tuple(rows),
        (
            f"Minimised; gap = {GAP}, in percent.",
            ROUNDING,
            *((sizes.LEGEND,) if shown else ()),
            "Upper bounds are values of checked plans; proof: what the best lower bound is from.",
            *circumstances(result for one in evidence for result in one.results),
        ),
        tuple(remarks),
    )


def _name(evidence: Evidence) -> str:
    subject = evidence.subject
    return (
        subject.instance if subject.charged is None else f"{subject.instance} ({subject.charged})"
    )


def _best(evidence: Evidence, digits: int) -> Row:
    if evidence.infeasible:
        return numbers.NOTHING, numbers.NOTHING, "infeasible", numbers.NOTHING
    lower, upper = evidence.best_lower, evidence.best_upper
    gap = numbers.NOTHING
    if lower is not None and upper is not None:
        gap = percent_text(exact_gap(upper.value, lower.value))
    return (
        numbers.lower(None if lower is None else lower.value, digits),
        numbers.upper(None if upper is None else upper.value, digits),
        gap,
        numbers.NOTHING if lower is None else lower.source,
    )
