"""``balance`` in an instance file: read, refused, prepared; why there is no plan."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from balance_instances import PREVIOUS, document, made, prepared

from moeopt.errors import InputError
from moeopt.instance import read_instance_file, write_instance_file
from moeopt.instance_layer import layer_of
from moeopt.prepare import explain_infeasible, prepare
from moeopt.solving import solve


def test_the_load_of_the_routing_is_one_window() -> None:
    data = prepared()
    assert data.balance is not None
    assert data.balance.loads.tolist() == [[[9, 3, 3, 1], [1, 1, 1, 1]]]
    assert data.balance.slots.tolist() == [2, 2, 2]
    assert (data.balance.rule, data.balance.previous, data.scenarios) == ("even", None, ())
    assert data.gpu_kind.tolist() == [0, 0, 0]


def test_windows_and_the_plan_in_use() -> None:
    windows = [[[1, 2, 3, 4], [4, 3, 2, 1]], [[5, 5, 5, 5], [0, 0, 0, 1]]]
    data = prepared(windows=windows, previous=PREVIOUS, max_moves=2, rule="optimal")
    balance = data.balance
    assert balance is not None
    assert balance.loads.tolist() == windows
    assert balance.previous is not None
    assert balance.previous.tolist() == [[0, 1, 0, 2, 0, 3], [0, 1, 1, 2, 2, 3]]
    assert (balance.rule, balance.most_moves) == ("optimal", 2)
    assert data.gpu_kind.tolist() == [0, 1, 2]


def test_groups_on_nodes() -> None:
    instance = made(
        moe={"name": "t", "layers": 2, "experts": 4, "top_k": 1, "expert_mib": 1}
        | {"expert_groups": 2},
        cluster={"nodes": [{"gpus": 2}, {"gpus": 2}], "slots_per_gpu": 2},
        balance={"groups_on_nodes": True},
    )
    data = prepare(instance, "balance")
    assert data.balance is not None
    assert (data.balance.nodes, data.balance.groups) == (2, 2)
    assert data.gpu_kind.tolist() == [0, 0, 1, 1]
    outcome = solve(instance, problem="balance", time_limit_s=10)
    assert outcome.record.status == "optimal"
    assert outcome.record.formulation is None  # none models groups
    assert outcome.upper_bound == 7.0  # experts 0 and 1 on both GPUs of a node: 12 / 2, 2 / 2


def test_a_sidecar_and_a_copy_are_the_same_instance(tmp_path: Any) -> None:
    windows = np.arange(2 * 2 * 40, dtype=float).reshape(2, 2, 40)
    wide = made(
        moe={"name": "t", "layers": 2, "experts": 40, "top_k": 1, "expert_mib": 1},
        cluster={"nodes": [{"gpus": 4}], "slots_per_gpu": 10},
        routing=[{"layer": 0, "load": [1] * 40}, {"layer": 1, "load": [1] * 40}],
        balance={"windows": list(windows), "previous": [[[e % 4] for e in range(40)]] * 2},
    )
    write_instance_file(wide, tmp_path / "wide.json", sidecar=True)
    assert json.loads((tmp_path / "wide.json").read_text())["balance"]["windows"][1] == {
        "npz": "balance.windows.1"
    }
    again = read_instance_file(tmp_path / "wide.json")
    assert again == wide
    assert again != made()
    data = prepare(again, "balance")
    assert data.balance is not None
    assert (data.balance.loads == windows).all()


def test_a_layer_keeps_its_windows_and_its_plan_in_use() -> None:
    windows = [[[1, 2, 3, 4], [4, 3, 2, 1]]]
    one = layer_of(made(balance={"windows": windows, "previous": PREVIOUS, "max_moves": 1}), 4)
    data = prepare(one, "balance")
    assert data.balance is not None
    assert data.balance.loads.tolist() == [[[4, 3, 2, 1]]]
    assert data.balance.previous is not None
    assert data.balance.previous.tolist() == [[0, 1, 1, 2, 2, 3]]
    assert data.balance.most_moves is None


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"max_moves": 1}, ["balance.max_moves: needs balance.previous, the plan in use"]),
        (
            {"windows": [[[1, 2, 3, 4]], [[1, 2, 3, -4], [1, 1, 1, 1]]]},
            [
                "balance.windows[0]: is 1 × 4, but there are 2 layers of 4 experts",
                "balance.windows[1][0][3]: must not be negative, is -4",
            ],
        ),
        (
            {"previous": [[[0, 0], [3], [1], [2]]]},
            [
                "balance.previous: has 1 layers, not 2",
                "balance.previous[0][1][0]: GPU 3 does not exist (GPUs are 0..2)",
                "balance.previous[0][0]: GPU 0 appears more than once",
            ],
        ),
        (
            {"previous": [[[0], [0], [0], [1]], [[0], [1], [2]]]},
            [
                "balance.previous[0]: GPU 0 holds 3 experts, it has 2 slots",
                "balance.previous[1]: has 3 entries for 4 experts",
            ],
        ),
        ({"rule": "any"}, ["balance.rule: must be 'even' or 'optimal', not \"any\""]),
        (
            {"max_moves": -1, "previous": PREVIOUS},
            ["balance.max_moves: must be at least 0, not -1"],
        ),
        ({"windows": []}, None),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], lines: list[str] | None) -> None:
    with pytest.raises(InputError) as error:
        made(balance=changes)
    if lines is not None:
        assert error.value.problems == lines


def test_groups_that_do_not_fit_nodes() -> None:
    cluster = {"nodes": [{"gpus": 1}, {"gpus": 2}], "slots_per_gpu": 3}
    with pytest.raises(InputError) as error:
        made(cluster=cluster, balance={"groups_on_nodes": True})
    assert error.value.problems == [
        "balance.groups_on_nodes: needs equally many GPUs in every node",
        "balance.groups_on_nodes: 1 groups cannot be divided equally among 2 nodes",
    ]


def test_slots_are_needed() -> None:
    cluster = {"nodes": [{"gpus": 3, "memory_mib": 100}]}
    moe = document()["moe"] | {"dense_mib": 0}
    with pytest.raises(InputError, match=r"needs cluster\.slots_per_gpu"):
        prepare(made(cluster=cluster, moe=moe), "balance")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": {"nodes": [{"gpus": 3}], "slots_per_gpu": 1}}, "1 slots too few"),
        ({"cluster": {"nodes": [{"gpus": 3}], "slots_per_gpu": 5}}, "would be there twice"),
        (
            {
                "cluster": {"nodes": [{"gpus": 3, "memory_mib": 39}], "slots_per_gpu": 2},
                "moe": document()["moe"] | {"dense_mib": 0},
            },
            "GPU 2: 2 layers × 2 slots × 10 MiB are 40 MiB, 39 are free",
        ),
        (
            {"balance": {"previous": [[[0], [1], [2], []]] * 2, "max_moves": 5}},
            "at least 6 copies must move, 5 may",
        ),
    ],
)
def test_why_there_is_no_plan(changes: dict[str, Any], words: str) -> None:
    instance = made(**changes)
    assert words in "\n".join(explain_infeasible(prepare(instance, "balance")))
    outcome = solve(instance, problem="balance", time_limit_s=5)
    assert outcome.record.status == "infeasible"
    assert outcome.solution is None


def test_so_many_moves_are_enough() -> None:
    options = {"previous": [[[0], [1], [2], []]] * 2, "max_moves": 6}
    assert explain_infeasible(prepared(**options)) == []
    outcome = solve(made(balance=options), problem="balance", time_limit_s=20)
    assert outcome.record.status == "optimal"
    assert outcome.report is not None
    assert outcome.report.details["moves"] == 6
