"""``topology`` as a problem of an instance: read, prepared, checked, solved, bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute import brute_optimum

from moeopt.bounding import bounds
from moeopt.catalog import read_instance
from moeopt.checker import check_solution
from moeopt.choosing import choose
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.instance_layer import layer_of
from moeopt.prepare import explain_infeasible, prepare
from moeopt.problem import ProblemData
from moeopt.solution import Solution
from moeopt.solving import solve


def made(**changes: Any) -> Instance:
    document: dict[str, Any] = {
        "schema": "moeopt-instance/1",
        "name": "servers",
        "moe": {"name": "toy", "layers": 2, "experts": 3, "top_k": 2, "expert_mib": 10},
        "cluster": {
            "nodes": [{"gpus": 2}, {"gpus": 1}],
            "slots_per_gpu": 2,
            "hops": [[0, 3], [1, 0]],
        },
        "layer_time": {"form": "unit"},
        "routing": [{"layer": 3, "load": [6, 3, 1]}, {"layer": 4, "load": [1, 1, 2]}],
        "topology": {"dispatch_node": [0, 1]},
    }
    return Instance.from_document(document | changes)


def prepared(**topology: Any) -> ProblemData:
    return prepare(made(topology={"dispatch_node": [0, 1]} | topology), "topology")


# --- read and prepared ----------------------------------------------------------------------------


def test_prepared() -> None:
    data = prepared()
    topology = data.topology
    assert topology is not None
    assert (topology.dispatch.tolist(), topology.collect.tolist()) == ([[0], [1]], [[1], [0]])
    assert topology.weight == pytest.approx(np.array([[1.2, 0.6, 0.2], [0.5, 0.5, 1.0]]))
    assert topology.cost.tolist() == [[3, 3], [1, 1]]
    assert topology.capacity_per_layer.tolist() == [3, 2]  # never more than there are experts
    assert topology.capacity.tolist() == [6, 4]
    assert data.gpu_kind.tolist() == [0, 0, 1]
    assert (data.scenarios, topology.replicas) == ((), 0)
    own = prepared(weighted=False, capacity=4, capacity_per_layer=2, collect_node=[1, 1]).topology
    assert own is not None
    assert (own.weight == 1).all()
    assert (own.capacity.tolist(), own.capacity_per_layer.tolist()) == ([4, 4], [2, 2])
    assert own.cost.tolist() == [[3, 3], [4, 0]]
    several = prepared(dispatch_node=[[0, 1], [1, 0]], share=[1, 3]).topology
    assert several is not None
    assert several.share.tolist() == [0.25, 0.75]
    assert several.collect.tolist() == [[1, 0], [0, 1]]


def test_memory_leaves_room_for_whole_experts() -> None:
    cluster = {"nodes": [{"gpus": 2, "memory_mib": 29}, {"gpus": 1, "memory_mib": 40}]}
    cluster["hops"] = [[0, 3], [1, 0]]
    moe = {"name": "toy", "layers": 2, "experts": 3, "top_k": 2, "expert_mib": 10, "dense_mib": 0}
    topology = prepare(made(cluster=cluster, moe=moe), "topology").topology
    assert topology is not None
    assert topology.capacity.tolist() == [4, 4]  # 2 on each GPU of the first server
    assert topology.capacity_per_layer.tolist() == [3, 3]


def test_a_layer_keeps_its_streams() -> None:
    whole = made(topology={"dispatch_node": [0, 1], "capacity": 3, "replicas": 3})
    for number, dispatch, collect in ((3, 0, 1), (4, 1, 0)):
        topology = prepare(layer_of(whole, number), "topology").topology
        assert topology is not None
        assert topology.dispatch.tolist() == [[dispatch]]
        assert topology.collect.tolist() == [[collect]]
        assert topology.replicas == 1
        assert topology.capacity.tolist() == [3, 2]
    given = made(topology={"dispatch_node": [0, 1], "collect_node": [0, 0]})
    cut = prepare(layer_of(given, 4), "topology").topology
    assert cut is not None
    assert cut.collect.tolist() == [[0]]


@pytest.mark.parametrize(
    ("topology", "lines"),
    [
        ({"dispatch_node": [0]}, ["topology.dispatch_node: has 1 entries for 2 layers"]),
        (
            {"dispatch_node": [0, 2]},
            ["topology.dispatch_node[1][0]: node 2 does not exist (nodes are 0..1)"],
        ),
        (
            {"dispatch_node": [[0, 1], [1]]},
            ["topology.dispatch_node[1]: must have 2 streams, as many as other layers"],
        ),
        (
            {"dispatch_node": [[0, 1], [1, 0]], "collect_node": [0, 1]},
            [
                "topology.collect_node[0]: must have 2 streams, as many as other layers",
                "topology.collect_node[1]: must have 2 streams, as many as other layers",
            ],
        ),
        (
            {"dispatch_node": [[], []]},
            ["topology.dispatch_node: must have at least one node a layer"],
        ),
        (
            {"dispatch_node": [0, 1], "share": [1, -2]},
            [
                "topology.share: has 2 entries for 1 streams",
                "topology.share[1]: must not be negative, is -2",
            ],
        ),
        ({"dispatch_node": [0, 1], "share": [0]}, ["topology.share: all entries are 0"]),
        ({"dispatch_node": [0, 1], "replicas": -1}, None),
        ({"dispatch_node": [0, True]}, None),
        ({}, None),
    ],
)
def test_what_does_not_fit_is_said(topology: dict[str, Any], lines: list[str] | None) -> None:
    with pytest.raises(InputError) as error:
        made(topology=topology)
    if lines is not None:
        assert error.value.problems == lines


def test_block_and_hops_are_needed() -> None:
    cluster = {"nodes": [{"gpus": 2}], "slots_per_gpu": 2}
    with pytest.raises(InputError) as error:
        prepare(made(cluster=cluster, topology=None), "topology")
    assert [line.split(":")[0] for line in error.value.problems] == [
        "problem topology needs cluster.hops (moeopt instance topology writes them)",
        "problem topology needs `topology`",
    ]


def test_why_there_is_no_plan() -> None:
    assert explain_infeasible(prepared(capacity=3)) == []
    assert explain_infeasible(prepared(capacity=2)) == [
        "2 servers have room for 4 experts in all layers, there are 6: 2 too many"
    ]
    assert explain_infeasible(prepared(capacity_per_layer=1)) == [
        "2 servers have room for 2 experts in each layer, there are 3: 1 too many",
        "2 servers have room for 4 experts in all layers, there are 6: 2 too many",
    ]
    outcome = solve("smoke_topology_infeasible", problem="topology", time_limit_s=5)
    assert outcome.record.status == "infeasible"
    assert outcome.solution is None


# --- checked --------------------------------------------------------------------------------------


def kinds(data: ProblemData, hosts: list[Any], **more: Any) -> list[str]:
    plan = Solution(instance="servers", problem="topology", hosts=hosts, **more)
    return sorted({violation.kind for violation in check_solution(data, plan).violations})


GOOD = [[[0], [1], [2]], [[0], [2], [2]]]


def test_the_checker_counts_hops() -> None:
    data = prepared(collect_node=[0, 0], weighted=False)
    plan = Solution(instance="servers", problem="topology", hosts=GOOD, objective=7)
    report = check_solution(data, plan)
    assert report.violations == []
    # Layer 3: two experts at home, one there and back again, 3 + 1; layer 4: 1 hop each.
    assert report.details["layers"] == [4, 3]
    assert (report.objective, report.exact, report.evaluated_by) == (7, True, "exact: nearest copy")
    assert report.details["servers"] == [3, 3]
    assert report.details["replicas"] == 0
    assert report.details["hops_a_visit"] == 7 / 6
    assert ("servers", "3 to 3 experts on each") in report.summary()


def test_every_violation() -> None:
    data = prepared(capacity=3)
    assert kinds(data, GOOD) == []
    assert kinds(data, GOOD, objective=1.0) == ["objective_mismatch"]
    assert kinds(data, GOOD, dispatch=[[], []]) == ["dispatch_shape"]
    assert kinds(data, [GOOD[0], [[0], [1], [2]]]) == ["server_full"]
    assert kinds(data, [GOOD[0], [[], [2], [2]]]) == ["expert_not_hosted"]
    assert kinds(data, [GOOD[0], [[0, 2], [2], [2]]]) == [
        "replicas_exceeded",
        "server_full",
        "server_layer_full",
        "slots_exceeded",
    ]
    many = prepared(replicas=1, dispatch_node=[[0, 1], [1, 0]])
    assert kinds(many, [[[0, 2], [1], [2]], GOOD[1]]) == []
    assert kinds(many, [[[0, 1], [1], [2]], GOOD[1]]) == []  # of no use, but allowed
    assert kinds(many, [[[0, 1, 2], [1], [2]], GOOD[1]]) == ["replicas_exceeded"]


# --- solved and bounded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "proof"),
    [("smoke_topology_chain", "server flow"), ("smoke_topology_replicas", "server rents")],
)
def test_solve_without_a_solver(name: str, proof: str) -> None:
    outcome = solve(name, problem="topology", time_limit_s=20)
    record = outcome.record
    assert (record.status, record.objective_unit, record.formulation) == ("optimal", "hops", None)
    assert record.lower_bounds[proof] == pytest.approx(record.upper_bound, rel=1e-9)
    assert outcome.upper_bound == pytest.approx(
        brute_optimum(prepare(read_instance(name), "topology"))[0], rel=1e-12
    )


def test_the_exact_search_closes_what_rents_leave_open() -> None:
    outcome = solve("smoke_topology_replicas_ring", problem="topology", time_limit_s=30)
    assert outcome.record.status == "optimal"
    assert outcome.upper_bound == pytest.approx(22 / 15, rel=1e-12)


def test_bound_lists_everything() -> None:
    for name, methods, asked in (
        ("smoke_topology_chain", {"server flow", "layers alone"}, ["layers", "combinatorial"]),
        (
            "smoke_topology_replicas_ring",
            {"server rents", "copies", "lp topology_replicas", "lp topology_distances"},
            ["all"],
        ),
    ):
        report = bounds(name, problem="topology", methods=asked, time_limit_s=20)
        found = {bound.method: bound.value for bound in report.bounds}
        assert methods == set(found)
        optimum = brute_optimum(prepare(read_instance(name), "topology"))[0]
        assert max(found.values()) <= optimum * (1 + 1e-12)
    assert report.missing == [
        "lp topology_assignment: it has one copy of each expert, 1 more may be there"
    ]


def test_large_programs_are_not_started_unasked() -> None:
    data = prepare(read_instance("deepseek-r1_topology_dragonfly"), "topology")
    choice, why = choose(data, None, None)
    assert choice is None
    assert why is not None
    assert "1,425,408 nonzeros are too many" in why


@pytest.mark.parametrize("graph", ["fat-tree", "dragonfly", "dragonfly-sparse"])
def test_deepseek_r1_is_proved_optimal(graph: str) -> None:
    outcome = solve(f"deepseek-r1_topology_{graph}", problem="topology", time_limit_s=30)
    assert outcome.record.status == "optimal"
    assert outcome.gap is not None
    assert outcome.gap < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["fat-tree", "dragonfly", "dragonfly-sparse"])
def test_copies_of_deepseek_r1_within_two_percent(graph: str) -> None:
    outcome = solve(f"deepseek-r1_topology_{graph}_replicas", problem="topology", time_limit_s=300)
    assert outcome.gap is not None
    assert 0 <= outcome.gap < 0.02
