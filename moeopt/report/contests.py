"""Who competes on what: formulations with solvers, on pairs of instance and seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from moeopt.study.cells import Cell, CellResult, StudyResults

#: Settings that say what is measured beside the solve, not how it is solved.
_NOT_SETTINGS = ("measure",)

#: Instance and seed.
Contest = tuple[str, int]
#: Problem, formulation and solver.
Who = tuple[str, str, str]


def formulation_label(name: str | None) -> str:
    """Return what tables call a formulation: a file of one's own goes by its name alone."""
    return "default" if name is None else name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Competitor:
    """A formulation with a solver; ``settings`` where the study varies them."""

    formulation: str
    solver: str
    settings: str = ""

    @property
    def label(self) -> str:
        """Name in one line."""
        return ", ".join(part for part in (self.formulation, self.solver, self.settings) if part)


@dataclass
class Arena:
    """The cells of one problem of a study, by contest and competitor.

    Attributes
    ----------
    results : dict of (Contest, Competitor) to CellResult
        Finished and failed cells.
    skipped : dict of (Contest, Competitor) to (Cell, str)
        Unsupported cells, with the reason.
    missing : set of (Contest, Competitor)
        Not run yet.
    """

    problem: str
    competitors: list[Competitor] = field(default_factory=list)
    contests: list[Contest] = field(default_factory=list)
    results: dict[tuple[Contest, Competitor], CellResult] = field(default_factory=dict)
    skipped: dict[tuple[Contest, Competitor], tuple[Cell, str]] = field(default_factory=dict)
    missing: set[tuple[Contest, Competitor]] = field(default_factory=set)
    failed: list[tuple[Competitor, CellResult]] = field(default_factory=list)
    outdated: int = 0

    def results_of(self, competitor: Competitor) -> list[CellResult]:
        """All results of a competitor."""
        pairs = ((contest, competitor) for contest in self.contests)
        return [self.results[pair] for pair in pairs if pair in self.results]

    @property
    def common_contests(self) -> list[Contest]:
        """Contests with a result of every competitor: only on them are means comparable."""
        return [
            contest
            for contest in self.contests
            if all((contest, competitor) in self.results for competitor in self.competitors)
        ]

    @property
    def decided_contests(self) -> list[Contest]:
        """Contests where every competitor has a result or does not take the instance."""
        return [
            contest
            for contest in self.contests
            if all(
                (contest, competitor) in self.results or (contest, competitor) in self.skipped
                for competitor in self.competitors
            )
            and any((contest, competitor) in self.results for competitor in self.competitors)
        ]


def arenas(study: StudyResults) -> list[Arena]:
    """Return the problems of a study, each with its cells."""
    by_problem: dict[str, Arena] = {}
    varying = _varying_settings(study)
    seen: dict[tuple[str, Contest], None] = {}
    names: dict[tuple[str, Competitor], None] = {}

    def place(cell: Cell) -> tuple[Arena, tuple[Contest, Competitor]]:
        arena = by_problem.setdefault(cell.problem, Arena(cell.problem))
        contest = (cell.instance, cell.seed)
        competitor = _competitor(cell, varying[_who(cell)])
        if (cell.problem, contest) not in seen:
            seen[cell.problem, contest] = None
            arena.contests.append(contest)
        if (cell.problem, competitor) not in names:
            names[cell.problem, competitor] = None
            arena.competitors.append(competitor)
        return arena, (contest, competitor)

    for result in study.finished:
        arena, pair = place(result.cell)
        arena.results[pair] = result
    for result in study.failed:
        arena, pair = place(result.cell)
        arena.results[pair] = result
        arena.failed.append((pair[1], result))
    for cell, reason in study.skipped:
        arena, pair = place(cell)
        arena.skipped[pair] = (cell, reason)
    for cell in study.missing:
        arena, pair = place(cell)
        arena.missing.add(pair)
    for result in study.outdated:
        by_problem[result.cell.problem].outdated += 1
    for arena in by_problem.values():
        arena.competitors.sort(key=lambda one: (one.formulation, one.solver, one.settings))
    return list(by_problem.values())


def _cells(study: StudyResults) -> Iterator[Cell]:
    for result in (*study.finished, *study.failed):
        yield result.cell
    for cell, _ in study.skipped:
        yield cell
    yield from study.missing


def _who(cell: Cell) -> Who:
    return cell.problem, formulation_label(cell.formulation), cell.solver or ""


def _varying_settings(study: StudyResults) -> dict[Who, list[str]]:
    """Names of the settings with which a formulation and solver meets one contest twice.

    A longer time limit for larger instances does not make another competitor.
    """
    values: dict[tuple[Who, Contest], dict[str, set[str]]] = {}
    varying: dict[Who, dict[str, None]] = {}
    for cell in _cells(study):
        known = values.setdefault((_who(cell), (cell.instance, cell.seed)), {})
        names = varying.setdefault(_who(cell), {})
        for name, value in cell.settings.items():
            if name not in _NOT_SETTINGS:
                texts = known.setdefault(name, set())
                texts.add(_text(value))
                if len(texts) > 1:
                    names[name] = None
    return {who: list(names) for who, names in varying.items()}


def _competitor(cell: Cell, varying: list[str]) -> Competitor:
    _, formulation, solver = _who(cell)
    settings = "; ".join(f"{name} {_text(cell.settings.get(name))}" for name in varying)
    return Competitor(formulation, solver, settings)


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
