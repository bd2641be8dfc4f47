"""prepare: instances become the arrays of one problem."""

from __future__ import annotations

import copy
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.prepare import prepare
from moeopt.problem import PROBLEMS, ProblemData

DOCUMENT: dict[str, Any] = {
    "schema": "moeopt-instance/1",
    "name": "toy",
    "moe": {
        "name": "toy",
        "layers": 2,
        "experts": 4,
        "top_k": 2,
        "expert_mib": 0.1,
        "dense_mib": 0.3,
        "kv_kib_per_token": 0.7,
    },
    "cluster": {
        "nodes": [
            {"gpus": 2, "memory_mib": 10.1, "reserved_mib": 0.2},
            {"gpus": 1, "memory_mib": 8},
            {"gpus": 1, "memory_mib": 10.1, "reserved_mib": 0.2},
        ]
    },
    "layer_time": {
        "form": "max",
        "base_us": 1,
        "expert_us": 2,
        "token_base_us": 3,
        "token_us": 4,
        "attention_base_us": 5,
        "attention_us_per_mib": 6,
    },
    "routing": [
        {
            "layer": 7,
            "scenarios": {
                "experts": [[3, 0], [1], [0, 3], [0, 3], [1, 2, 0]],
                "weight": [1, 2, 3, 4, 10],
                "tokens": [[5, 1], [1], [1, 5], [5, 1], [1, 2, 3]],
            },
        },
        {
            "layer": 9,
            "scenarios": {"experts": [[2, 1], [1, 2]], "weight": [1, 3]},
            "load": [1, 2, 3, 4],
        },
    ],
    "requests": [
        {"name": "chat", "count": 3, "prompt_tokens": 10, "output_tokens": 5},
        {
            "name": "code",
            "count": 2,
            "prompt_tokens": 1,
            "output_tokens": 2,
            "usage": [[0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0]],
        },
    ],
}


def made(problem: str, **changes: Any) -> ProblemData:
    return prepare(Instance.from_document(copy.deepcopy(DOCUMENT) | changes), problem)


def test_scenarios_are_sorted_merged_and_normalised() -> None:
    first, second = made("replication").scenarios
    assert first.ptr.tolist() == [0, 2, 3, 5, 8]
    assert first.expert.tolist() == [0, 3, 1, 0, 3, 0, 1, 2]
    # The same experts with other tokens are another scenario.
    assert first.tokens.tolist() == [1, 5, 1, 5, 1, 3, 1, 2]
    assert first.weight.tolist() == [0.2, 0.1, 0.2, 0.5]
    assert (second.expert.tolist(), second.tokens.tolist()) == ([1, 2], [1, 1])
    assert second.weight.tolist() == [1.0]


def test_merging_keeps_the_weight_of_every_activation() -> None:
    rng = np.random.default_rng(3)
    experts = [
        sorted(rng.choice(6, rng.integers(1, 5), replace=False).tolist()) for _ in range(400)
    ]
    tokens = [rng.integers(1, 3, len(e)).tolist() for e in experts]
    weight = rng.integers(0, 9, 400).tolist()
    expected: dict[tuple[tuple[int, int], ...], Fraction] = {}
    for e, n, w in zip(experts, tokens, weight, strict=True):
        key = tuple(zip(e, n, strict=True))
        expected[key] = expected.get(key, Fraction(0)) + Fraction(w, sum(weight))
    shuffled = [rng.permutation(len(e)) for e in experts]
    document = copy.deepcopy(DOCUMENT)
    document["moe"] |= {"layers": 1, "experts": 6}
    document["requests"] = None
    document["routing"] = [
        {
            "layer": 0,
            "scenarios": {
                "experts": [[e[i] for i in p] for e, p in zip(experts, shuffled, strict=True)],
                "tokens": [[n[i] for i in p] for n, p in zip(tokens, shuffled, strict=True)],
                "weight": weight,
            },
        }
    ]
    (found,) = prepare(Instance.from_document(document), "placement").scenarios
    keys = [
        tuple(zip(found.members(s).tolist(), found.counts(s).tolist(), strict=True))
        for s in range(len(found))
    ]
    assert keys == list(expected)  # in the order of their first appearance
    assert found.weight == pytest.approx([float(w) for w in expected.values()], abs=1e-15)


def test_load_is_given_or_expected() -> None:
    load = made("placement").load
    # 0.2 (1, 0, 0, 5) + 0.1 (0, 1, 0, 0) + 0.2 (5, 0, 0, 1) + 0.5 (3, 1, 2, 0)
    assert load[0] == pytest.approx([2.7, 0.6, 1.0, 1.2], abs=1e-15)
    assert load[1].tolist() == [1, 2, 3, 4]


def test_sizes_are_whole_bytes() -> None:
    data = made("joint")
    mib = 2**20
    assert data.expert_mib * mib == 104858  # 0.1 MiB, rounded up
    assert data.free_mib is not None
    reserved, dense = -(-2 * mib // 10), -(-3 * mib // 10)
    small, large = 8 * mib - dense, 101 * mib // 10 - reserved - dense
    assert (data.free_mib * mib).tolist() == [large, large, small, large]
    assert data.gpu_kind.tolist() == [1, 1, 0, 1]
    assert data.requests is not None
    # 0.7 KiB × 15 tokens = 10,752 bytes exactly: no double of 0.7 rounds it up.
    assert (data.requests.kv_mib * mib).tolist() == [10752, -(-7 * 1024 * 3 // 10)]


def test_requests_and_usage() -> None:
    data = made("joint")
    requests = data.requests
    assert requests is not None
    assert requests.names == ("chat", "code")
    assert requests.count.tolist() == [3, 2]
    assert requests.prompt_tokens.tolist() == [10, 1]
    assert requests.output_tokens.tolist() == [5, 2]
    assert requests.usage[0, 0] == pytest.approx(2 * data.load[0] / 5.5)
    assert requests.usage[0, 1] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert requests.usage[1].tolist() == [[0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0]]
    assert data.scenarios == ()
    assert made("placement").requests is None


def test_the_rest_is_carried_over() -> None:
    data = made("joint")
    lt = data.layer_time
    assert (lt.form, lt.base_us, lt.expert_us, lt.token_base_us, lt.token_us) == ("max", 1, 2, 3, 4)
    assert (data.attention_base_us, data.attention_us_per_mib) == (5, 6)
    assert (data.layers, data.experts, data.top_k, data.gpus, data.slots) == (2, 4, 2, 4, None)
    assert data.layer_numbers == (7, 9)
    assert data.sha256 == Instance.from_document(DOCUMENT).sha256
    slots_only = made("placement", cluster={"nodes": [{"gpus": 2}], "slots_per_gpu": 2})
    assert slots_only.free_mib is None
    assert (slots_only.slots, slots_only.gpu_kind.tolist()) == (2, [0, 0])


def test_waves_are_given_or_derived() -> None:
    assert made("placement").waves == 0
    assert made("joint", joint={"waves": 5}).waves == 5
    steps = made("joint", joint={"wave_steps": [5, 5, 2]})
    assert (steps.waves, steps.wave_steps) == (3, (5, 5, 2))
    # One wave holds all KV cache; two lengths.
    assert made("joint").waves == 3


def chats(count: int, lengths: int, kv_kib: float = 1024) -> ProblemData:
    """Classes of ``count`` requests in all, 8 MiB of KV cache each; one wave has room for 10."""
    document = copy.deepcopy(DOCUMENT)
    document["moe"] |= {"expert_mib": 1, "dense_mib": 0, "kv_kib_per_token": kv_kib}
    document["cluster"]["nodes"] = [{"gpus": 2, "memory_mib": 44}]
    classes = [
        {"name": f"{o}", "count": 1, "prompt_tokens": 8 - o, "output_tokens": o}
        for o in range(1, lengths + 1)
    ]
    classes[0]["count"] = count - lengths + 1
    return prepare(Instance.from_document(document | {"requests": classes}), "joint")


def test_default_waves_suffice_for_the_kv_cache() -> None:
    assert chats(1, 1).waves == 1  # never more than requests
    assert chats(10, 1).waves == 1 + 1
    assert chats(11, 2).waves == 2 + 2
    assert chats(60, 8).waves == 8
    assert chats(95, 3).waves == 11  # ten are needed by memory alone, whatever the limit
    assert chats(10, 1, kv_kib=0).waves == 2


@pytest.mark.parametrize(
    ("problem", "changes", "lines"),
    [
        (
            "packing",
            {},
            [f"problem 'packing' is unknown (known: {', '.join(PROBLEMS)})"],
        ),
        (
            "replication",
            {"routing": [{"layer": l, "load": [1, 1, 1, 1]} for l in (0, 1)]},
            ["problem replication needs routing[*].scenarios: no layer has any"],
        ),
        ("joint", {"requests": None}, ["problem joint needs `requests`"]),
        (
            "joint",
            {
                "requests": None,
                "moe": {key: DOCUMENT["moe"][key] for key in DOCUMENT["moe"] if key[:2] != "kv"},
                "cluster": {"nodes": [{"gpus": 2}], "slots_per_gpu": 2},
            },
            [
                "problem joint needs `requests`",
                "problem joint needs moe.kv_kib_per_token",
                "problem joint needs memory_mib in every node of cluster.nodes",
            ],
        ),
    ],
)
def test_missing_ingredients(problem: str, changes: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        made(problem, **changes)
    assert caught.value.problems == lines


def test_joint_needs_no_scenarios() -> None:
    routing = [{"layer": l, "load": [1, 1, 1, 1]} for l in (0, 1)]
    assert made("joint", routing=routing).load.tolist() == [[1, 1, 1, 1]] * 2


def test_many_scenarios_are_prepared_in_about_a_second() -> None:
    experts = np.argsort(np.random.default_rng(1).random((300_000, 32)), axis=1)[:, :4]
    document = copy.deepcopy(DOCUMENT) | {"requests": None}
    document["moe"] |= {"layers": 1, "experts": 32}
    document["routing"] = [
        {"layer": 0, "scenarios": {"experts": experts, "weight": np.ones(300_000)}}
    ]
    instance = Instance.from_document(document)
    start = time.process_time()
    (scenarios,) = prepare(instance, "placement").scenarios
    assert time.process_time() - start < 3  # measured: 0.25 s
    assert len(scenarios) == len(np.unique(np.sort(experts, axis=1), axis=0))
    assert scenarios.weight.sum() == pytest.approx(1, abs=1e-12)
