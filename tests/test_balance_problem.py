"""``balance`` as a problem of an instance: checked, solved, bounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from balance_instances import PREVIOUS, RANDOM, document, made, prepared
from brute import brute_optimum
from solve_jobs import formulations_of, solve_jobs

from moeopt.balance.hosts import hosts_of, plan_of
from moeopt.balancing import balance_layers
from moeopt.bounding import bounds
from moeopt.bounds import combinatorial_bounds
from moeopt.checker import check_solution
from moeopt.choosing import LARGEST_NONZEROS, choose
from moeopt.errors import InputError
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.serving.exchange import export_plan
from moeopt.solution import Solution
from moeopt.solving import solve

# --- checked --------------------------------------------------------------------------------------


def kinds(data: ProblemData, hosts: list[Any], **more: Any) -> list[str]:
    plan = Solution(instance="four", problem="balance", hosts=hosts, **more)
    return sorted({violation.kind for violation in check_solution(data, plan).violations})


def test_the_checker_computes_the_largest_loads() -> None:
    data = prepared(previous=PREVIOUS)
    plan = Solution(instance="four", problem="balance", hosts=PREVIOUS, objective=7.5)
    report = check_solution(data, plan)
    assert report.violations == []
    # Layer 3: GPUs hold 9/3 + 3, 9/3 + 3, 9/3 + 1; layer 4: 1 + 1/2, 1/2 + 1/2, 1/2 + 1.
    assert report.details["layers"] == [6.0, 1.5]
    assert report.objective == 7.5
    assert report.exact
    assert report.details["balancedness"] == [[pytest.approx(16 / 18), pytest.approx(4 / 4.5)]]
    assert report.details["moves"] == 0


def test_every_violation() -> None:
    data = prepared(previous=PREVIOUS, max_moves=1)
    good = PREVIOUS[1]
    assert kinds(data, [good, good]) == ["moves_exceeded"]
    assert kinds(data, PREVIOUS, objective=7.0) == ["objective_mismatch"]
    assert kinds(data, PREVIOUS, dispatch=[[], []]) == ["dispatch_shape"]
    assert kinds(data, [PREVIOUS[0], [[0], [0, 1], [1, 2], []]]) == [
        "expert_not_hosted",
        "slots_not_filled",
    ]
    assert kinds(data, [PREVIOUS[0], [[0, 0], [0, 1], [1, 2], [2]]]) == ["duplicate_replica"]
    assert kinds(data, [PREVIOUS[0], [[0], [0, 1], [1, 2], [1, 2]]]) == ["slots_exceeded"]
    empty = check_solution(
        data,
        Solution(instance="four", problem="balance", hosts=[PREVIOUS[0], [[0], [1], [2], [0]]]),
    )
    assert empty.objective is None


def test_groups_must_stay_together() -> None:
    instance = made(
        moe=document()["moe"] | {"expert_groups": 2},
        cluster={"nodes": [{"gpus": 1}, {"gpus": 1}], "slots_per_gpu": 2},
        balance={"groups_on_nodes": True},
    )
    data = prepare(instance, "balance")
    assert kinds(data, [[[0], [0], [1], [1]], [[1], [1], [0], [0]]]) == []
    assert kinds(data, [[[0], [1], [0], [1]], [[1], [1], [0], [0]]]) == ["group_split"]


def test_memory_is_checked() -> None:
    cluster = {"nodes": [{"gpus": 3, "memory_mib": 40}], "slots_per_gpu": 2}
    data = prepare(made(cluster=cluster, moe=document()["moe"] | {"dense_mib": 0}), "balance")
    assert kinds(data, PREVIOUS) == []
    assert data.free_mib is not None
    assert kinds(replace(data, free_mib=data.free_mib - 1), PREVIOUS) == ["memory_exceeded"]


@pytest.mark.parametrize("seed", RANDOM)
def test_the_checker_agrees_with_brute_force(seed: int) -> None:
    data = RANDOM[seed]
    optimum, plan = brute_optimum(data)
    assert plan, "every random instance has a plan"
    hosts = [[list(held) for held in layer] for layer in plan["hosts"]]
    report = check_solution(data, Solution(instance=data.name, problem="balance", hosts=hosts))
    assert report.violations == []
    assert report.objective == pytest.approx(optimum, rel=1e-11)
    assert report.objective is not None
    assert report.objective >= optimum


# --- solved and bounded ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", RANDOM)
def test_search_and_bounds_hold(seed: int) -> None:
    data = RANDOM[seed]
    optimum, _ = brute_optimum(data)
    assert data.balance is not None
    found = balance_layers(data.balance)
    report = check_solution(data, Solution.from_arrays(data, found.hosts))
    assert report.violations == []
    assert report.objective is not None
    assert found.value <= optimum <= report.objective * (1 + 1e-11)
    assert report.objective <= optimum * 1.35  # tiny instances: the search is near
    listed = combinatorial_bounds(data)
    assert [bound.method for bound in listed] == ["largest piece", "mean load"]
    assert all(0 < bound.value <= optimum for bound in listed)


def test_exact_formulations_find_the_optimum(tmp_path: Any) -> None:
    jobs, expected = [], []
    for data in RANDOM.values():
        optimum, _ = brute_optimum(data)
        for formulation, solver in formulations_of(data):
            jobs.append((solver, data, formulation, False))
            expected.append(optimum)
    assert len(jobs) == 4 * len(RANDOM)
    for job, answer, optimum in zip(jobs, solve_jobs(tmp_path, jobs), expected, strict=True):
        reason, _, bound, plan = answer
        assert reason in ("optimal", "imprecise" if job[0] == "cpsat" else "optimal"), job[2]
        report = check_solution(job[1], plan)
        assert report.violations == []
        assert report.objective == pytest.approx(optimum, rel=5e-6), job[2]
        assert optimum * (1 - 5e-6) <= bound <= optimum * (1 + 1e-7), job[2]


@pytest.mark.parametrize("rule", ["even", "optimal"])
def test_solve_closes_a_small_instance(rule: str) -> None:
    instance = made(balance={"rule": rule})
    outcome = solve(instance, problem="balance", time_limit_s=20)
    record = outcome.record
    assert record.status == "optimal"
    assert record.objective_unit == "tokens"
    optimum, _ = brute_optimum(prepare(instance, "balance"))
    assert outcome.upper_bound == pytest.approx(optimum, rel=1e-9)
    assert record.lower_bound_from
    assert outcome.solution is not None
    assert outcome.solution.objective == outcome.upper_bound


def test_time_limit_is_looked_at_between_layers() -> None:
    loads = np.random.default_rng(0).lognormal(0, 1, (6, 64))
    moe = {"name": "t", "layers": 6, "experts": 64, "top_k": 1, "expert_mib": 1}
    routing = [{"layer": l, "load": row.tolist()} for l, row in enumerate(loads)]
    cluster = {"nodes": [{"gpus": 8}], "slots_per_gpu": 9}
    data = prepare(made(moe=moe, routing=routing, cluster=cluster), "balance")
    assert data.balance is not None
    hasty, patient = (balance_layers(data.balance, time_limit_s=limit) for limit in (0.0, 60.0))
    values = []
    for found in (hasty, patient):
        report = check_solution(data, Solution.from_arrays(data, found.hosts))
        assert report.violations == []
        assert report.objective is not None
        assert found.value <= report.objective
        values.append(report.objective)
    assert values[1] < values[0]
    assert "layers)" in patient.source


def test_large_programs_are_not_started_unasked() -> None:
    moe = {"name": "t", "layers": 1, "experts": 128, "top_k": 1, "expert_mib": 1}
    cluster = {"nodes": [{"gpus": 16}], "slots_per_gpu": 9}
    routing = [{"layer": 0, "load": list(range(1, 129))}]
    data = prepare(made(moe=moe, cluster=cluster, routing=routing), "balance")
    choice, why = choose(data, None, None)
    assert choice is None
    assert why is not None
    assert f"more than {LARGEST_NONZEROS['balance']:,}" in why


def test_bound_lists_everything() -> None:
    report = bounds(made(), problem="balance", methods=["all"], time_limit_s=20)
    found = {bound.method: bound.value for bound in report.bounds}
    assert set(found) == {
        "balance by layer",
        "largest piece",
        "mean load",
        "lp balance_even",
        "lp balance_even_ordered",
    }
    assert report.unit == "tokens"
    assert max(found.values()) <= brute_optimum(prepared())[0]
    assert any("lp balance_optimal:" in line for line in report.missing)


def test_a_formulation_for_the_other_rule_is_refused() -> None:
    with pytest.raises(InputError, match="its rule is even, this formulation is for optimal"):
        solve(made(), problem="balance", formulation="balance_optimal", time_limit_s=5)


def test_plans_are_exported(tmp_path: Any) -> None:
    outcome = solve(made(), problem="balance", time_limit_s=20)
    assert outcome.solution is not None
    layout = export_plan(made(), outcome.solution, "tensorrt-llm", tmp_path / "map.yaml")
    assert layout.experts_of_slots.shape == (2, 6)
    assert (tmp_path / "map.yaml").read_text()


def test_hosts_and_plans_are_two_ways_to_write_one_thing() -> None:
    rng = np.random.default_rng(0)
    slots = np.array([2, 3, 1])
    plan = np.stack(
        [np.concatenate([np.sort(rng.choice(5, q, replace=False)) for q in slots]) for _ in "abc"]
    )
    plan[0, 1] = -1
    hosts = hosts_of(plan, slots, 5)
    assert hosts.sum() == 17
    assert (plan_of(hosts, slots) == plan).all()
    with pytest.raises(ValueError, match="in the 1 slots of GPU 2"):
        plan_of(np.ones((1, 5, 3), dtype=bool), np.array([5, 5, 1]))
