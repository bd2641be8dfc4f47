"""Every exact formulation, both solvers and brute force agree, and every bound is a bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from brute import brute_optimum
from make_data import random_data
from relabel import relabelled
from solve_jobs import formulations_of, solve_jobs

from moeopt.bounds import combinatorial_bounds
from moeopt.catalog import load_formulation, read_instance
from moeopt.checker import check_solution
from moeopt.prepare import explain_infeasible, prepare

SMOKE = Path(__file__).parent.parent / "instances" / "smoke"

#: Solvers are given a relative gap of 0. What is left is their tolerances and, for CP-SAT, the grid
#: of 2**22 steps a real column: half a dozen of them add up in one makespan.
AGREE = 5e-6
#: 17 tangents lie at most 1 − cos(π/64) below the p2 form.
P2_LOSS = 1.3e-3


def smoke_cases():
    for path in sorted(SMOKE.glob("*.json")):
        problem = path.stem.split("_")[1]
        data = prepare(read_instance(path), problem)
        if not explain_infeasible(data):
            yield path.stem, data


def random_cases():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        for form in ("unit", "sum", "max", "p2"):
            yield (
                f"placement_{form}_{seed}",
                random_data(
                    "placement",
                    rng,
                    form=form,
                    experts=5,
                    gpus=2 + seed % 2,
                    limit=("slots", "memory", "both")[seed],
                    layers=1 + seed % 2,
                ),
            )
            yield (
                f"replication_{form}_{seed}",
                random_data(
                    "replication",
                    rng,
                    form=form,
                    experts=4,
                    top_k=2 + seed % 2,
                    gpus=2 + seed % 2,
                    scenarios=3,
                    max_tokens=1 if form == "unit" else 3,
                    limit=("slots", "memory", "both")[seed],
                    kinds=1 + seed % 2,
                ),
            )
            yield (
                f"joint_{form}_{seed}",
                random_data(
                    "joint",
                    rng,
                    form=form,
                    experts=2 + seed % 2,
                    top_k=1,
                    gpus=2,
                    classes=2,
                    max_count=2,
                    waves=1 + seed % 2,
                    kinds=1 + seed // 2,
                    prescribed=seed == 2,
                ),
            )


CASES = dict([*smoke_cases(), *random_cases()])


@pytest.fixture(scope="module")
def optima():
    return {name: brute_optimum(data)[0] for name, data in CASES.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    jobs, keys = [], []
    for name, data in CASES.items():
        for formulation, solver in formulations_of(data):
            keys.append((name, formulation, solver))
            jobs.append((solver, data, formulation, False))
    return dict(zip(keys, solve_jobs(tmp_path_factory.mktemp("jobs"), jobs), strict=True))


def kind_of(formulation, data):
    module = load_formulation(formulation)
    return module.kind(data) if hasattr(module, "kind") else module.KIND


@pytest.mark.parametrize("name", CASES)
def test_solvers_and_brute_force_agree(name, optima, answers):
    data, optimum = CASES[name], optima[name]
    p2 = data.layer_time.form == "p2"
    loss = P2_LOSS if p2 else AGREE
    slack = 1e-7 * abs(optimum)
    mine = {key: answer for key, answer in answers.items() if key[0] == name}
    agreed = 0
    for key, (reason, _claimed, bound, plan) in mine.items():
        # CP-SAT solves its rounded program to the end, and says that rounding leaves a gap.
        assert reason in ("optimal", "imprecise" if key[2] == "cpsat" else "optimal"), key
        assert bound <= optimum + slack, key
        report = check_solution(data, plan)
        assert not report.violations, key
        assert report.objective >= optimum - slack, key
        if p2 or kind_of(key[1], data) == "exact":
            agreed += 1
            assert bound >= optimum * (1 - loss) - slack, key
            assert report.objective <= optimum * (1 + loss) + slack, key
    assert agreed >= 3


@pytest.mark.parametrize("name", CASES)
def test_combinatorial_bounds_hold(name, optima):
    bounds = combinatorial_bounds(CASES[name])
    assert bounds
    for bound in bounds:
        assert 0 < bound.value <= optima[name], bound


def test_combinatorial_bounds_hold_on_many_random_instances():
    for seed in range(100, 130):
        rng = np.random.default_rng(seed)
        for problem in ("placement", "replication", "joint"):
            form = ("unit", "sum", "max", "p2")[seed % 4]
            joint = problem == "joint"
            data = random_data(
                problem,
                rng,
                form=form,
                experts=3 if joint else 4,
                top_k=1 + (not joint) * (seed % 3),
                max_tokens=None if joint else 1 + 2 * (form != "unit"),
                waves=1 + seed % 3,
                max_count=2,
                prescribed=joint and seed % 5 == 0,
            )
            optimum = brute_optimum(data)[0]
            for bound in combinatorial_bounds(data):
                assert bound.value <= optimum * (1 + 1e-12), (seed, problem, bound)


@pytest.mark.parametrize("name", [n for n in CASES if "_0" in n or n.startswith("smoke")])
def test_relabelling_changes_nothing(name, optima):
    data = CASES[name]
    rng = np.random.default_rng(7)
    for _ in range(3):
        other = relabelled(data, rng)
        assert brute_optimum(other)[0] == pytest.approx(optima[name], rel=1e-12)


def test_relabelling_changes_no_solver_answer(tmp_path, optima):
    rng = np.random.default_rng(11)
    names = ["smoke_placement_two_layers", "smoke_replication_sum", "smoke_joint_two_waves"]
    jobs: list = []
    expected: list = []
    for name in names:
        data = relabelled(CASES[name], rng)
        for formulation, solver in formulations_of(data):
            if kind_of(formulation, data) == "exact":
                jobs.append((solver, data, formulation, False))
                expected.append(optima[name])
    for job, answer, optimum in zip(jobs, solve_jobs(tmp_path, jobs), expected, strict=True):
        report = check_solution(job[1], answer[3])
        assert report.objective == pytest.approx(optimum, rel=AGREE), job[2]


def test_tangents_make_a_relaxation():
    for data in CASES.values():
        for formulation, _ in formulations_of(data):
            if data.layer_time.form == "p2":
                assert kind_of(formulation, data) == "relaxation"
