"""The comparison table: formulations and solvers, by what they solved and how fast."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from moeopt.report import numbers
from moeopt.report.caption import GAP, circumstances, notes
from moeopt.report.contests import Arena, Competitor, Contest, arenas
from moeopt.report.evidence import gather
from moeopt.report.table import Column, Row, Table
from moeopt.rounding_text import exact_gap, percent_text
from moeopt.study.cells import CellResult, StudyResults


def comparison_tables(study: StudyResults) -> list[Table]:
    """Return a comparison table for each problem of the study.

    Raises
    ------
    SolverError
        Records contradict each other (:func:`moeopt.report.evidence.gather`).
    """
    gather(study)
    return [_table(arena) for arena in arenas(study)]


def is_solved(result: CellResult) -> bool:
    """Whether the run settled its instance: optimal within the gap asked for, or infeasible."""
    return result.record["status"] in ("optimal", "infeasible")


def time_s(result: CellResult) -> float:
    """Seconds of a run; at least its time limit where it did not settle the instance."""
    seconds = float(result.record["seconds"].get("total", 0.0))
    return seconds if is_solved(result) else max(seconds, result.record["settings"]["time_limit_s"])


def worst_gap(result: CellResult) -> Fraction:
    """Gap of a run, without rounding. Without a plan or a bound it is 1: 0 bounds every time."""
    record = result.record
    if record["status"] == "infeasible":
        return Fraction(0)
    if record["upper_bound"] is None or record["lower_bound"] is None:
        return Fraction(1)
    return exact_gap(record["upper_bound"], record["lower_bound"])


def score(arena: Arena, contest: Contest, competitor: Competitor) -> tuple[Fraction, float, bool]:
    """Return gap, seconds and whether solved; what is not supported is like no answer in time."""
    result = arena.results.get((contest, competitor))
    if result is not None:
        return worst_gap(result), time_s(result), is_solved(result)
    cell, _ = arena.skipped[contest, competitor]
    return Fraction(1), float(cell.settings["time_limit_s"]), False


def _table(arena: Arena) -> Table:
    decided, common = arena.decided_contests, arena.common_contests
    with_settings = any(competitor.settings for competitor in arena.competitors)
    columns = [
        Column("formulation", is_number=False),
        Column("solver", is_number=False),
        *([Column("settings", is_number=False)] if with_settings else []),
        *(Column(name, "cells") for name in ("run", "solved", "plan", "failed")),
        *(Column(name, "mean") for name in ("gap %", "time s", "nodes")),
    ]
    rows = [
        (
            competitor.formulation,
            competitor.solver or numbers.NOTHING,
            *([competitor.settings or numbers.NOTHING] if with_settings else []),
            *_counts(arena.results_of(competitor)),
            *_means([score(arena, contest, competitor) for contest in decided]),
            _nodes([arena.results[contest, competitor] for contest in common]),
        )
        for competitor in arena.competitors
        if _took_part(arena, competitor)
    ]
    return Table(
        arena.problem,
        f"Formulations of {arena.problem}",
        tuple(columns),
        tuple(rows),
        (
            "Solved: optimal within the gap asked for, or proved infeasible; plan: with a checked "
            "plan.",
            f"Means are over the {len(decided)} of {len(arena.contests)} pairs of instance and "
            "seed where every row was run or skipped; a skipped cell counts as one without an "
            "answer.",
            f"Gap: arithmetic mean, rounded up, of {GAP}; 100 % without a plan or a bound.",
            f"Time: geometric mean, shifted by {numbers.SHIFT_S:g} s; the time limit where not "
            "solved.",
            f"Nodes: geometric mean, shifted by {numbers.SHIFT_NODES:g}, over the {len(common)} "
            "pairs with a result in every row.",
            *circumstances(arena.results.values()),
        ),
        tuple(notes(arena)),
    )


def _took_part(arena: Arena, competitor: Competitor) -> bool:
    return any((contest, competitor) not in arena.skipped for contest in arena.contests)


def _counts(results: list[CellResult]) -> Row:
    plans = sum(result.record["upper_bound"] is not None for result in results)
    failed = sum(result.record["status"] == "error" for result in results)
    solved = sum(map(is_solved, results))
    return tuple(numbers.count(n) for n in (len(results), solved, plans, failed))


def _means(scores: list[tuple[Fraction, float, bool]]) -> Row:
    if not scores:
        return (numbers.NOTHING,) * 2
    gap = sum((gap for gap, _, _ in scores), Fraction(0)) / len(scores)
    time = numbers.shifted_geometric_mean([time for _, time, _ in scores], numbers.SHIFT_S)
    return percent_text(gap), numbers.measured(time)


def _nodes(results: list[CellResult]) -> str:
    nodes = [_nodes_of(one.record) for one in results]
    known = [number for number in nodes if number is not None]
    if len(known) < len(nodes):  # a mean of the others would compare different things
        return numbers.NOTHING
    return numbers.measured(numbers.shifted_geometric_mean(known, numbers.SHIFT_NODES))


def _nodes_of(record: dict[str, Any]) -> int | None:
    if record["nodes"] is None and record["size"] is None and record["status"] != "error":
        return 0  # settled before a solver was started
    nodes: int | None = record["nodes"]
    return nodes
