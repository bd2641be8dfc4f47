"""What stands above and below every table: formulas, machine, versions, limits; cells left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moeopt.report.contests import Arena
from moeopt.study.cells import CellResult

ROUNDING = "Lower bounds are rounded down, upper bounds and gaps up."
GAP = "(upper − lower) / max(|upper|, 1e-9)"


def circumstances(results: Iterable[CellResult]) -> list[str]:
    """Machine, versions and limits of some results, a sentence each; all of them if they differ."""
    records = [result.record for result in results]
    settings = [record["settings"] for record in records]
    versions = [f"moeopt {record['moeopt_version']}" for record in records]
    versions += [f"{r['solver']} {r['solver_version']}" for r in records if r["solver_version"]]
    machines = [_machine(record.get("machine")) for record in records]
    sentences = []
    if machines:
        sentences.append(f"Machine: {'; '.join(_distinct(machines))}.")
        sentences.append(f"Versions: {', '.join(sorted(_distinct(versions)))}.")
        limits = [
            _values("time limit", [f"{s['time_limit_s']:g} s" for s in settings]),
            _values("memory limit", [_mib(s.get("memory_limit_mib")) for s in settings]),
            _values("relative gap asked for", [f"{s['gap']:g}" for s in settings]),
            _values("threads", [_count(s["threads"]) for s in settings]),
            _values("seeds", [str(record["seed"]) for record in records]),
        ]
        sentences.append(f"Limits of a cell: {'; '.join(limits)}.")
    return sentences


def notes(arena: Arena) -> list[str]:
    """Lines about cells without a result: skipped ones with reasons, failed, missing, outdated."""
    lines = _skipped(arena)
    for competitor, result in arena.failed:
        cell = result.cell
        lines.append(
            f"Failed: {competitor.label} on {cell.instance}, seed {cell.seed}: {why_failed(result)}"
        )
    if arena.missing:
        lines.append(f"Not run yet: {len(arena.missing)} cells")
    if arena.outdated:
        lines.append(
            f"Of other versions of moeopt, a solver or a formulation than the ones installed: "
            f"{arena.outdated} records"
        )
    return lines


def _skipped(arena: Arena) -> list[str]:
    """A line for each formulation and reason; solvers with the same instances share it."""
    instances: dict[tuple[str, str], dict[str, list[str]]] = {}
    for ((instance, _), competitor), (_, reason) in arena.skipped.items():
        by_solver = instances.setdefault((competitor.formulation, reason), {})
        solver = ", ".join(filter(None, (competitor.solver, competitor.settings)))
        by_solver.setdefault(solver, []).append(instance)
    lines = []
    for (formulation, reason), by_solver in instances.items():
        together: dict[str, list[str]] = {}
        for solver, names in by_solver.items():
            together.setdefault(", ".join(_distinct(names)), []).append(solver)
        for on, solvers in together.items():
            who = " and ".join(filter(None, solvers))
            lines.append(f"Skipped: {formulation}{f' ({who})' if who else ''} on {on}: {reason}")
    return lines


def why_failed(result: CellResult) -> str:
    """Say why a cell ended with an error, in its own words."""
    record = result.record
    words = [*record["reasons"], *record["notes"]]
    words += [violation["message"] for violation in record["violations"]]
    return "; ".join(words) or "no reason recorded"


def _machine(machine: dict[str, Any] | None) -> str:
    """Return a machine in words; its keys are those of the record."""
    if not machine:
        return "not recorded"
    words = []
    for key, value in machine.items():
        if key.endswith("_mib") and value is not None:
            words.append(f"{value / 1024:.0f} GiB memory")
        elif key == "cores":
            words.append(f"{value} cores")
        elif value is not None:
            words.append(str(value))
    return ", ".join(words)


def _mib(value: float | None) -> str:
    return "none" if value is None else f"{value:g} MiB"


def _count(value: int | None) -> str:
    return "by default" if value is None else str(value)


def _values(name: str, texts: list[str]) -> str:
    return f"{name} {', '.join(_distinct(texts))}"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
