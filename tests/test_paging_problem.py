"""``paging`` as a problem of an instance: read, prepared, checked, bounded and solved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from paging_brute import brute_paging

from moeopt.bounding import bounds
from moeopt.catalog import load_formulation, read_instance
from moeopt.checker import check_solution
from moeopt.compile import compile_model
from moeopt.declarative import declarative
from moeopt.errors import InputError
from moeopt.heuristics.paging import evict
from moeopt.instance import Instance
from moeopt.make import make
from moeopt.prepare import explain_infeasible, prepare
from moeopt.problem import ProblemData, objective_unit
from moeopt.running import Run
from moeopt.serving.exchange import export_plan
from moeopt.solution import Solution, validate_against
from moeopt.solution_paging import solution_of_evictions
from moeopt.solving import solve

ROWS = [[0], [0], [1], [1], [2], [0], [0], [2], [1], [1], [2], [0], [0], [2]]


def made(paging: dict[str, Any] | None = None, **changes: Any) -> Instance:
    document: dict[str, Any] = {
        "schema": "moeopt-instance/1",
        "name": "cached",
        "moe": {"name": "toy", "layers": 2, "experts": 3, "top_k": 1, "expert_mib": 10},
        "cluster": {"nodes": [{"gpus": 1}], "slots_per_gpu": 3},
        "layer_time": {"form": "unit"},
        "routing": [{"layer": l, "load": [1, 1, 1]} for l in range(2)],
        "paging": {"requests": ROWS, "cache": 3} if paging is None else paging,
    }
    return Instance.from_document(document | changes)


def prepared(**changes: Any) -> ProblemData:
    return prepare(made({"requests": ROWS, "cache": 3} | changes), "paging")


def problems(paging: dict[str, Any] | None, **changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        prepare(made(paging, **changes), "paging")
    return caught.value.problems


# --- the block -----------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    assert problems({"cache": 3}) == ["paging: needs either requests or trace"]
    assert problems({"requests": ROWS, "trace": "gpt-oss-20b", "cache": 3}) == [
        "paging: needs either requests or trace"
    ]
    assert problems({"requests": [[0], [3], [1, 1], []], "batch": 2, "load_us": [1, 0, 1]}) == [
        "paging.batch: belongs to a trace",
        "paging.load_us: has 3 entries, needs 1 or 2",
        "paging.load_us[1]: must be positive",
        "paging.requests[3]: has no experts",
        "paging.requests[1][0]: expert 3 does not exist (experts are 0..2)",
        "paging.requests[2]: expert 1 appears more than once",
    ]
    both = {"requests": ROWS, "cache": 3, "load_us": [1], "load_gb_s": 1}
    assert problems(both) == ["paging: load_us and load_gb_s say the same thing twice"]
    assert problems({"trace": "gpt-oss", "cache": 3})[0].startswith("paging.trace: 'gpt-oss' is no")
    assert problems({"trace": "gpt-oss-20b", "cache": 3}) == [
        "paging.trace: has 24 layers of 32 experts, the instance 2 of 3"
    ]
    two = {"nodes": [{"gpus": 2}], "slots_per_gpu": 3}
    assert problems({"requests": ROWS}, cluster=two) == [
        "problem paging is of one GPU, cluster has 2",
        "problem paging needs paging.cache, or memory_mib in cluster.nodes",
    ]
    with pytest.raises(InputError, match="problem paging needs `paging`"):
        prepare(read_instance("smoke_placement_unit"), "paging")


def test_units_and_costs() -> None:
    assert objective_unit(prepared()) == "misses"
    one = prepared(load_us=[4]).paging
    assert one is not None
    assert one.load_us is not None
    assert one.load_us.tolist() == [4, 4]
    data = prepared(load_gb_s=2.0)
    assert objective_unit(data) == "us"
    assert data.paging is not None
    assert data.paging.load_us == pytest.approx([10 * 2**20 / 2e9 * 1e6] * 2)


def test_cache_from_memory() -> None:
    moe = {"name": "toy", "layers": 2, "experts": 3, "top_k": 1, "expert_mib": 10, "dense_mib": 5}
    cluster = {"nodes": [{"gpus": 1, "memory_mib": 44.9}]}
    data = prepare(made({"requests": ROWS}, moe=moe, cluster=cluster), "paging")
    assert data.paging is not None
    assert data.paging.cache == 3
    assert explain_infeasible(data) == []
    large = prepare(made({"requests": ROWS, "cache": 4}, moe=moe, cluster=cluster), "paging")
    assert explain_infeasible(large) == [
        "a cache of 4 experts × 10 MiB needs 40 MiB, 39.9 are free after reserved and dense"
    ]


def test_a_request_wider_than_the_cache() -> None:
    data = prepare(made({"requests": [[0], [0, 2]], "cache": 1}), "paging")
    assert explain_infeasible(data) == ["request 1 asks for 2 experts at once, the cache holds 1"]


def test_shipped_instances_are_those_of_the_recipe(tmp_path: Any) -> None:
    for path in make("paging", None, tmp_path):
        assert path.read_bytes() == (read_path(path.name)).read_bytes()


def read_path(name: str) -> Any:
    from pathlib import Path

    return Path(__file__).parent.parent / "instances" / "real" / name


def test_a_part_of_a_trace() -> None:
    whole = read_instance("gpt-oss-20b_1gpu_paging_batch8")
    assert whole.paging is not None
    options = whole.paging.model_copy(update={"sequences": 3})
    data = prepare(whole.model_copy(update={"paging": options}), "paging")
    assert data.paging is not None
    assert data.paging.cache == 384
    assert 0 < len(data.paging.requests) < 20_000
    assert data.paging.requests.widest <= 12
    options = whole.paging.model_copy(update={"sequences": 1000})
    with pytest.raises(InputError, match=r"paging.sequences: the trace has 180"):
        prepare(whole.model_copy(update={"paging": options}), "paging")


# --- the checker ---------------------------------------------------------------------------------


def checked(data: ProblemData, rows: list[tuple[int, int, int]], **changes: Any) -> Any:
    plan = solution_of_evictions(data, np.zeros((0, 2), dtype=np.int64))
    return check_solution(data, plan.model_copy(update={"evictions": rows} | changes))


def test_plans_are_replayed() -> None:
    data = prepared(load_us=[1, 2.5])
    plan = evict(data)
    report = check_solution(data, plan)
    assert report.violations == []
    assert report.exact
    assert report.evaluated_by == "exact: evictions replayed"
    assert report.details["misses"] == sum(report.details["misses_by_layer"])
    assert ("misses", "11 of 14 (78.5714%)") in report.summary()
    assert validate_against(made({"requests": ROWS, "cache": 3, "load_us": [1, 2.5]}), plan) == []
    claim = check_solution(data, plan.model_copy(update={"objective": 16.0}))
    assert [v.kind for v in claim.violations] == ["objective_mismatch"]


def test_violations_of_a_plan() -> None:
    data = prepared()
    report = checked(data, [(2, 0, 1), (5, 0, 0), (5, 0, 0)])
    kinds = [v.kind for v in report.violations]
    assert kinds[:2] == ["eviction_absent", "eviction_absent"]
    assert set(kinds[2:]) == {"cache_exceeded"}
    first = report.violations[0]
    assert first.message == "evictions[0]: expert 1 of layer 0 is not in the cache at request 2"
    assert report.violations[2].message == "request 3: 4 experts in a cache of 3"


def test_plans_that_are_none_are_refused() -> None:
    data, instance = prepared(), made()
    with pytest.raises(InputError, match=r"evictions\[0\]: request 14, layer 0 or expert 0"):
        checked(data, [(14, 0, 0)])
    with pytest.raises(InputError, match="hosts: a plan of paging has none"):
        checked(data, [], hosts=[[[0]]])
    with pytest.raises(InputError, match="evictions: missing"):
        checked(data, None)
    plan = evict(data)
    hosted = plan.model_copy(update={"hosts": [[[0]]], "evictions": None})
    assert validate_against(instance, hosted) == [
        "hosts: a plan of paging has none",
        "evictions: missing, the problem is paging",
    ]
    outside = plan.model_copy(update={"evictions": [(0, 2, 0)]})
    assert validate_against(instance, outside) == [
        "evictions[0]: request 0, layer 2 or expert 0 does not exist"
    ]
    placed = Solution(instance="cached", problem="placement", hosts=[], evictions=[])
    assert "evictions: the problem placement has none" in validate_against(instance, placed)


# --- solving -------------------------------------------------------------------------------------


def test_equal_loads_are_solved_without_a_solver() -> None:
    outcome = solve(made(), problem="paging", time_limit_s=20)
    assert outcome.record.status == "optimal"
    assert outcome.record.formulation is None
    data = prepared()
    assert data.paging is not None
    assert outcome.upper_bound == outcome.lower_bound == brute_paging(data.paging)[0]


def test_unequal_loads_are_solved_by_the_flow() -> None:
    outcome = solve(read_instance("smoke_paging_costs"), problem="paging", time_limit_s=30)
    assert outcome.record.formulation == "paging_flow"
    assert (outcome.record.status, outcome.upper_bound) == ("optimal", 16.0)
    assert outcome.solution is not None
    assert outcome.solution.evictions


def test_a_plan_without_hosts_is_no_map_for_servers(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="a plan of paging has none"):
        export_plan(made(), evict(prepared()), "vllm", tmp_path / "map.json")


def test_bounds_are_listed() -> None:
    report = bounds(made(), problem="paging", methods=["combinatorial", "layers"])
    assert [bound.method for bound in report.bounds] == ["farthest next use", "first loads"]
    assert report.missing == ["layers: paging does not separate by layer"]
    assert report.unit == "misses"


@pytest.mark.parametrize("name", ["paging_intervals", "paging_flow"])
def test_a_plan_starts_a_formulation(name: str) -> None:
    """The columns of a plan satisfy the rows, and make the plan again."""
    data, module = prepared(load_us=[1, 2.5]), load_formulation(name)
    with declarative():
        linear = compile_model(module.build(data))
    plan = evict(data)
    y = module.start(data, plan)["y"]
    x = np.zeros(len(linear.cost))
    x[: len(y)] = y
    if name == "paging_intervals":
        assert (linear.matrix @ x >= linear.row_lower - 1e-9).all()
    objective = check_solution(data, plan).objective
    assert linear.cost @ x + linear.offset == pytest.approx(objective)
    again = module.solution({"y": y}, data)
    report = check_solution(data, again)
    assert report.violations == []
    assert report.objective == objective


def test_a_formulation_has_something_to_decide() -> None:
    data = prepare(made({"requests": [[0], [0]], "cache": 2}), "paging")
    assert load_formulation("paging_flow").supports(data) == "nothing is to be decided"
    run = Run(data, 0.0, None)
    run.bound()
    run.offer(evict(data), "a pass")
    assert run.closed(0.0)
