"""Made-up results of a study, for tests of tables, plots and pages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from moeopt.record import Record
from moeopt.study.cells import Cell, CellResult, StudyResults

MACHINE: dict[str, str | int] = {"cpu": "Testarossa 5000", "cores": 2, "memory_mib": 8192}
SETTINGS = {
    "time_limit_s": 60.0,
    "gap": 1e-6,
    "threads": 1,
    "memory_limit_mib": None,
    "start": None,
    "options": {},
    "measure": [],
}


def make_cell(
    instance: str = "tiny",
    formulation: str | None = "placement_pairs",
    solver: str | None = "highs",
    *,
    problem: str = "placement",
    seed: int = 0,
    **settings: Any,
) -> Cell:
    key = f"{instance}-{problem}-{formulation}-{solver}-{seed}-{sorted(settings.items())}"
    return Cell(instance, problem, formulation, solver, SETTINGS | settings, seed, key)


def make_result(
    cell: Cell,
    *,
    upper: float | None = 2.0,
    lower: float | None = 1.5,
    total_s: float = 1.0,
    lower_bounds: dict[str, float] | None = None,
    **keys: Any,
) -> CellResult:
    """A result whose record is a real one: every key that a record has, and no other."""
    gap = None if upper is None or lower is None else (upper - lower) / abs(upper)
    own = f"{cell.formulation}: branch and bound"
    if lower_bounds is None:
        lower_bounds = {} if lower is None else {own: lower}
    settings = {k: v for k, v in cell.settings.items() if k not in ("start", "measure")}
    values: dict[str, Any] = {
        "instance": cell.instance,
        "instance_sha256": "0" * 64,
        "problem": cell.problem,
        "formulation": cell.formulation,
        "kind": "exact",
        "solver": cell.solver,
        "solver_version": "1.15.1",
        "moeopt_version": "0.1.0",
        "status": "optimal" if gap is not None and gap <= 1e-6 else "feasible",
        "objective_unit": "expert-time units",
        "upper_bound": upper,
        "upper_bound_from": None if upper is None else f"{cell.formulation} with {cell.solver}",
        "lower_bound": lower,
        "lower_bound_from": None if lower is None else own,
        "lower_bounds": lower_bounds,
        "gap": gap,
        "seconds": {"total": total_s},
        "size": {"rows": 3, "columns": 4, "nonzeros": 9, "integers": 4},
        "nodes": 7,
        "seed": cell.seed,
        "settings": settings,
        "machine": MACHINE,
        "key": cell.key,
    }
    return CellResult(cell, Record(**values | keys).model_dump(by_alias=True), Path("results"))


def make_study(
    *finished: CellResult,
    failed: list[CellResult] | None = None,
    skipped: list[tuple[Cell, str]] | None = None,
    missing: list[Cell] | None = None,
) -> StudyResults:
    return StudyResults(
        "made_up",
        "A made-up study",
        Path("made_up.toml"),
        Path("made_up.results"),
        list(finished),
        skipped or [],
        missing or [],
        failed or [],
    )


def nasty_study() -> StudyResults:
    """Names and reasons that every format must escape; long numbers; every kind of cell."""
    one = make_cell("50%_of_$x & y#1^2~{a}\\b|c*")
    lower, upper = 1.0999999672174454, 1.1000000327825547
    solved = make_result(one, upper=upper, lower=lower, notes=["<b>bold</b> \"quoted\" 'it'"])
    lp = make_result(
        make_cell("plain", "placement_assignment"),
        upper=2.123456789123,
        lower=1.987654321987,
        lower_bounds={"placement_assignment: branch and bound": 1.987654321987, "scenario": 1.3},
        lp_bound=1.2345678912345,
        root_bound=1.5,
        trajectory=[(0.1, None, 1.3), (0.5, 2.5, 1.3), (1.0, 2.123456789123, 1.987654321987)],
    )
    broken = make_result(
        make_cell("plain", "placement_pairs"),
        upper=None,
        lower=None,
        status="error",
        notes=["the worker was killed (signal 9)"],
    )
    infeasible = make_result(
        make_cell("full", problem="joint"),
        upper=None,
        lower=None,
        status="infeasible",
        reasons=["600 MiB needed, 500 MiB free: ω ≥ 2 × Ω, naïve ☃"],
        objective_unit="us",
        charged="activated",
    )
    return make_study(
        solved,
        lp,
        infeasible,
        failed=[broken],
        skipped=[(make_cell("plain", "placement_columns"), "more than 5 % of <nothing> & {all}")],
        missing=[make_cell("plain", seed=1)],
    )


def random_study(rng: random.Random, cells: int) -> StudyResults:
    """Consistent results: every lower bound below every plan of its instance."""
    finished, missing, skipped = [], [], []
    formulations = ["placement_a", "placement_b", "placement_c", "placement_d"]
    for i in range(cells):
        instance = i // 8
        formulation, solver = formulations[i % 4], ("highs", "cpsat")[i // 4 % 2]
        cell = make_cell(f"instance_{instance}", formulation, solver)
        optimum = 1.0 + instance / 7.0
        fate = rng.random()
        if fate < 0.05:
            missing.append(cell)
        elif fate < 0.1:
            skipped.append((cell, f"takes no {instance}"))
        else:
            upper = None if fate < 0.15 else optimum * (1.0 + rng.choice([0.0, rng.random()]))
            lower = None if fate > 0.95 else optimum * (1.0 - rng.choice([0.0, rng.random() / 2]))
            finished.append(
                make_result(
                    cell, upper=upper, lower=lower, total_s=rng.expovariate(0.1), nodes=i % 50
                )
            )
    return make_study(*finished, missing=missing, skipped=skipped)
