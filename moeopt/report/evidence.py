"""All that a study proved of one instance: every bound with its source, and the best ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moeopt.errors import InputError, SolverError
from moeopt.report.contests import formulation_label
from moeopt.study.cells import CellResult, StudyResults

#: Kinds of formulations whose relaxations bound the problem from below.
_PROVING_KINDS = ("exact", "relaxation")


@dataclass(frozen=True)
class Subject:
    """What bounds are comparable on: one content of an instance, one problem, one charging."""

    problem: str
    instance: str
    instance_sha256: str
    charged: str | None


@dataclass(frozen=True)
class Claim:
    """A bound, what it comes from, and the record that says so."""

    value: float
    source: str
    result: CellResult


@dataclass
class Evidence:
    """Bounds of one subject. ``named``: bounds without a solver, by method.

    ``lp`` by formulation, ``root`` by formulation and solver; ``lower`` holds all lower bounds.
    """

    subject: Subject
    unit: str
    lower: list[Claim] = field(default_factory=list)
    upper: list[Claim] = field(default_factory=list)
    named: dict[str, float] = field(default_factory=dict)
    lp: dict[str, float] = field(default_factory=dict)
    root: dict[str, float] = field(default_factory=dict)
    infeasible: list[CellResult] = field(default_factory=list)
    results: list[CellResult] = field(default_factory=list)

    @property
    def best_lower(self) -> Claim | None:
        """Greatest lower bound; the first one found of equal ones."""
        return max(self.lower, key=lambda claim: claim.value, default=None)

    @property
    def best_upper(self) -> Claim | None:
        """Value of the best checked plan."""
        return min(self.upper, key=lambda claim: claim.value, default=None)


def gather(study: StudyResults) -> list[Evidence]:
    """Return the evidence of every instance and problem, in the order of the study.

    Raises
    ------
    SolverError
        Records contradict each other: a lower bound above a checked plan, or a plan of what was
        proved infeasible. No table or plot of such a study can be trusted, so none is made.
    InputError
        A record of a problem that is maximised.
    """
    known: dict[Subject, Evidence] = {}
    silent = []
    for result in (*study.finished, *study.failed):
        record = result.record
        if record["sense"] != "minimise":
            raise InputError(f"{result.cell.label}: tables of maximised problems are not made")
        if _claims_nothing(record):
            silent.append(result)
            continue
        subject = _subject(record)
        _add(known.setdefault(subject, Evidence(subject, record["objective_unit"])), result)
    # A run that failed early does not say what it charged: it joins whoever spoke of its instance.
    spoken = {(one.problem, one.instance, one.instance_sha256): one for one in known}
    for result in silent:
        subject = _subject(result.record)
        subject = spoken.get((subject.problem, subject.instance, subject.instance_sha256), subject)
        evidence = known.setdefault(subject, Evidence(subject, result.record["objective_unit"]))
        evidence.results.append(result)
    wrong = [line for evidence in known.values() for line in _contradictions(evidence)]
    if wrong:
        raise SolverError(
            ["records contradict each other: one of them is wrong; please report it", *wrong]
        )
    return list(known.values())


def _subject(record: dict[str, Any]) -> Subject:
    return Subject(
        record["problem"], record["instance"], record["instance_sha256"], record["charged"]
    )


def _claims_nothing(record: dict[str, Any]) -> bool:
    bounds = ("upper_bound", "lower_bound", "lp_bound", "root_bound")
    return record["status"] != "infeasible" and all(record.get(name) is None for name in bounds)


def _add(evidence: Evidence, result: CellResult) -> None:
    evidence.results.append(result)
    record = result.record
    name_of = formulation_label(record["formulation"])
    own = f"{record['formulation']}: "
    for name, value in record["lower_bounds"].items():
        source = name.replace(own, f"{name_of}: ") if name.startswith(own) else name
        evidence.lower.append(Claim(value, source, result))
        if not name.startswith(own):
            _raise(evidence.named, name, value)
    if record["kind"] in _PROVING_KINDS:
        lp, root = record.get("lp_bound"), record.get("root_bound")
        if lp is not None:
            evidence.lower.append(Claim(lp, f"{name_of}: LP relaxation", result))
            _raise(evidence.lp, name_of, lp)
        if root is not None:
            source = f"{name_of}, {record['solver']}"
            evidence.lower.append(Claim(root, f"{name_of}: root node, {record['solver']}", result))
            _raise(evidence.root, source, root)
    if record["lower_bound"] is not None and not record["lower_bounds"]:
        source = record["lower_bound_from"] or "not named"
        evidence.lower.append(Claim(record["lower_bound"], source, result))
    if record["upper_bound"] is not None:
        source = record["upper_bound_from"] or "not named"
        evidence.upper.append(Claim(record["upper_bound"], source, result))
    if record["status"] == "infeasible":
        evidence.infeasible.append(result)


def _raise(best: dict[str, float], name: str, value: float) -> None:
    best[name] = max(value, best.get(name, value))


def _contradictions(evidence: Evidence) -> Iterator[str]:
    lower, upper = evidence.best_lower, evidence.best_upper
    if upper is None:
        return
    for result in evidence.infeasible:
        yield (
            f"{_place(result)} says infeasible, but {_place(upper.result)} has a checked plan of "
            f"{upper.value!r}"
        )
    if lower is None or lower.value <= upper.value:
        return
    # Every record on the wrong side of another one's best, not only the two extremes.
    for claim in _first_of_each(c for c in evidence.lower if c.value > upper.value):
        yield (
            f"{_place(claim.result)}: lower bound {claim.value!r} ({claim.source}) is above the "
            f"checked plan {upper.value!r}"
        )
    for claim in _first_of_each(c for c in evidence.upper if c.value < lower.value):
        yield (
            f"{_place(claim.result)}: checked plan {claim.value!r} ({claim.source}) is below the "
            f"lower bound {lower.value!r}"
        )


def _first_of_each(claims: Iterable[Claim]) -> list[Claim]:
    """One claim a record and source."""
    return list({(claim.result.cell.key, claim.source): claim for claim in claims}.values())


def _place(result: CellResult) -> str:
    return f"{result.cell.label} ({result.record.get('key', result.cell.key)}.json)"
