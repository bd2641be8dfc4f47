"""The gap table: instances by formulations and solvers."""

from __future__ import annotations

from moeopt.report.caption import GAP, circumstances, notes
from moeopt.report.comparison_table import worst_gap
from moeopt.report.contests import Arena, Competitor, arenas
from moeopt.report.evidence import gather
from moeopt.report.numbers import NOTHING
from moeopt.report.table import Column, Table
from moeopt.rounding_text import percent_text
from moeopt.study.cells import CellResult, StudyResults


def gaps_tables(study: StudyResults) -> list[Table]:
    """Return a gap table for each problem of the study.

    Raises
    ------
    SolverError
        Records contradict each other (:func:`moeopt.report.evidence.gather`).
    """
    gather(study)
    return [_table(arena) for arena in arenas(study)]


def _table(arena: Arena) -> Table:
    present = {competitor for _, competitor in arena.results}
    competitors = [competitor for competitor in arena.competitors if competitor in present]
    by_instance: dict[str, dict[Competitor, list[CellResult]]] = {}
    for instance, seed in arena.contests:
        row = by_instance.setdefault(instance, {})
        for competitor in competitors:
            result = arena.results.get(((instance, seed), competitor))
            if result is not None:
                row.setdefault(competitor, []).append(result)
    return Table(
        arena.problem,
        f"Gaps of {arena.problem}, in percent",
        (
            Column("instance", is_number=False),
            *(
                Column(", ".join(filter(None, (c.solver, c.settings))) or "default", c.formulation)
                for c in competitors
            ),
        ),
        tuple(
            (instance, *(_gap(row.get(competitor, [])) for competitor in competitors))
            for instance, row in by_instance.items()
        ),
        (
            f"Gap = {GAP} of each run's own bounds, in percent, rounded up; of several seeds the "
            "largest.",
            *circumstances(arena.results.values()),
        ),
        tuple(notes(arena)),
    )


def _gap(results: list[CellResult]) -> str:
    if not results:
        return NOTHING
    for status, text in (("error", "failed"), ("infeasible", "infeasible")):
        if any(result.record["status"] == status for result in results):
            return text
    for bound, text in (("upper_bound", "no plan"), ("lower_bound", "no bound")):
        if any(result.record[bound] is None for result in results):
            return text
    return percent_text(max(map(worst_gap, results)))
