"""``affinity`` as a problem of an instance: files, checker, bounds and solve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moeopt.bounding import bounds
from moeopt.checker import check_solution
from moeopt.errors import InputError
from moeopt.feasibility import explain_infeasible
from moeopt.instance import Instance, read_instance_file
from moeopt.instance_layer import layer_of
from moeopt.make.affinity import next_tokens
from moeopt.prepare import prepare
from moeopt.problem import ProblemData, objective_unit
from moeopt.solution import Solution
from moeopt.solving import solve

SMOKE = Path(__file__).resolve().parents[1] / "instances" / "smoke"


def document(name: str, **changes) -> dict:
    found = json.loads((SMOKE / f"smoke_affinity_{name}.json").read_text(encoding="utf-8"))
    return found | changes


def data_of(name: str, **changes) -> ProblemData:
    return prepare(Instance.from_document(document(name, **changes)), "affinity")


def plan_of(data: ProblemData, rows: list[list[int]], **more) -> Solution:
    hosts = [[[g] for g in row] for row in rows]
    return Solution(instance=data.name, problem="affinity", hosts=hosts, **more)


def test_the_file_is_what_is_solved() -> None:
    data = data_of("chain")
    assert data.affinity is not None
    assert data.affinity.flow.shape == (2, 6, 6)
    assert data.affinity.flow[0, 0, 1] == 8
    assert data.scenarios == ()
    assert objective_unit(data) == "tokens"
    touch = data_of("touch_nodes")
    assert touch.affinity is not None
    assert touch.affinity.node.tolist() == [0, 0, 1, 1] == touch.gpu_kind.tolist()
    assert (touch.affinity.near, touch.affinity.far) == (1.0, 4.0)
    assert objective_unit(touch) == "transfers"


def test_the_checker_counts_by_hand() -> None:
    data = data_of("nodes")
    assert data.affinity is not None
    row = [0, 0, 1, 1, 2, 2, 3, 3]
    report = check_solution(data, plan_of(data, [row, row]))
    cost = 0.0
    for e, f, tokens in document("nodes")["routing"][0]["next"]:
        here, there = row[e], row[f]
        cost += tokens * (0 if here == there else 1 if here // 2 == there // 2 else 3)
    assert report.objective == cost
    assert report.exact
    assert report.violations == []
    assert report.evaluated_by == "exact: tokens counted"
    words = dict(report.summary())
    assert "change GPU" in words["tokens"]
    wrong = check_solution(data, plan_of(data, [row, row], objective=cost + 1))
    assert [v.kind for v in wrong.violations] == ["objective_mismatch"]


def test_the_checker_refuses() -> None:
    data = data_of("even")
    good = [0, 0, 1, 1, 2, 2]
    hosts = [[[g] for g in good] for _ in range(3)]
    hosts[0][0] = [0, 1]
    twice = Solution(instance=data.name, problem="affinity", hosts=hosts)
    report = check_solution(data, twice)
    assert report.objective is None
    assert {v.kind for v in report.violations} >= {"expert_replicated", "experts_uneven"}
    uneven = check_solution(data, plan_of(data, [[0, 0, 0, 1, 1, 2], good, good]))
    assert {"experts_uneven", "slots_exceeded"} <= {v.kind for v in uneven.violations}
    assert data.affinity is not None
    heavy = np.argsort(data.affinity.load[0])
    row = np.empty(6, dtype=int)
    row[heavy] = good
    full = check_solution(data, plan_of(data, [row.tolist(), good, good]))
    assert "load_exceeded" in {v.kind for v in full.violations}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("chain", {"affinity": None}, "needs the block `affinity`"),
        ("touch", {"affinity": {"kind": "inter"}}, r"needs routing\[0\].next"),
        ("chain", {"affinity": {"kind": "intra"}}, r"needs routing\[0\].scenarios"),
        ("chain", {"affinity": {"kind": "inter", "near": 2.0}}, "0 <= near <= far"),
        ("chain", {"affinity": {"kind": "inter", "max_load": 0.9}}, "affinity.max_load"),
        ("chain", {"affinity": {"kind": "across"}}, "affinity.kind"),
    ],
)
def test_what_is_missing_is_said(name: str, changes: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        data_of(name, **changes)


def test_why_there_is_no_plan() -> None:
    assert "divided equally among 2" in explain_infeasible(data_of("infeasible"))[0]
    hot = document("chain", affinity={"kind": "inter", "max_load": 1.1})
    hot["routing"][1]["load"] = [90, 1, 1, 1, 1, 1]
    lines = explain_infeasible(prepare(Instance.from_document(hot), "affinity"))
    assert lines[0].startswith("layer 1, expert 0: 90 tokens, no GPU may have more than")
    small = document("chain")
    small["moe"] |= {"dense_mib": 0.0}
    small["cluster"]["nodes"] = [{"gpus": 3, "memory_mib": 5.0}]
    lines = explain_infeasible(prepare(Instance.from_document(small), "affinity"))
    assert len(lines) == 3
    assert "6 experts × 1 MiB are 6 MiB, 5 are free" in lines[0]


def test_a_layer_of_its_own() -> None:
    touch = read_instance_file(SMOKE / "smoke_affinity_touch.json")
    assert prepare(layer_of(touch, 1), "affinity").layers == 1
    chain = read_instance_file(SMOKE / "smoke_affinity_chain.json")
    with pytest.raises(InputError, match="needs the block"):
        prepare(layer_of(chain, 1), "affinity")


def test_solve_and_bound() -> None:
    outcome = solve("smoke_affinity_pair", problem="affinity", time_limit_s=20)
    assert outcome.record.status == "optimal"
    assert outcome.upper_bound == outcome.lower_bound == 19.0
    report = bounds("smoke_affinity_touch", problem="affinity", methods=["layers", "combinatorial"])
    assert {bound.method for bound in report.bounds} == {"psd", "columns", "partners"}
    assert all(0 < bound.value <= 2.162716 for bound in report.bounds)


def test_tokens_of_the_next_layer() -> None:
    ids = np.array([[[0, 1], [2, 0]], [[1, 0], [0, 1]]], dtype=np.uint8)
    (rows,) = next_tokens(ids, 3)
    found = {(int(e), int(f)): int(n) for e, f, n in rows}
    assert found == {(0, 0): 2, (0, 1): 1, (0, 2): 1, (1, 0): 2, (1, 1): 1, (1, 2): 1}
