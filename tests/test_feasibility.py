"""explain_infeasible: every reason in words, and never one for an instance that has a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute import brute_optimum

from moeopt.feasibility import explain_infeasible
from moeopt.instance import Instance
from moeopt.prepare import prepare
from moeopt.problem import ProblemData


def made(
    problem: str = "joint",
    *,
    layers: int = 2,
    experts: int = 3,
    expert_mib: float = 100,
    memory_mib: tuple[float, ...] | None = (400, 400),
    slots: int | None = None,
    requests: tuple[tuple[int, int, int], ...] = (),
    **joint: Any,
) -> ProblemData:
    """Requests are (count, MiB of KV cache, output tokens)."""
    nodes: list[dict[str, Any]] = [{"gpus": 2}]
    if memory_mib is not None:
        nodes = [{"gpus": 1, "memory_mib": mib} for mib in memory_mib]
    document = {
        "schema": "moeopt-instance/1",
        "name": "toy",
        "moe": {
            "name": "toy",
            "layers": layers,
            "experts": experts,
            "top_k": 1,
            "expert_mib": expert_mib,
            "dense_mib": 0,
            "kv_kib_per_token": 1024,
        },
        "cluster": {"nodes": nodes, "slots_per_gpu": slots},
        "layer_time": {"form": "unit"},
        "routing": [
            {"layer": i, "scenarios": {"experts": [[e] for e in range(experts)], "weight": weight}}
            for i, weight in enumerate([[1] * experts] * layers)
        ],
        "requests": [
            {"name": f"c{c}", "count": n, "prompt_tokens": kv - out, "output_tokens": out}
            for c, (n, kv, out) in enumerate(requests)
        ]
        or None,
        "joint": joint or None,
    }
    return prepare(Instance.from_document(document), problem)


REASONS = [
    (
        made("placement", memory_mib=None, slots=1),
        "2 GPUs × 1 slots are 2 slots a layer, but a layer has 3 experts: "
        "1 slots too few in each layer",
    ),
    (
        made("placement", memory_mib=(300, 250)),
        "experts need 600 MiB in all (2 layers × 3 experts × 100 MiB), GPUs have 550 MiB free "
        "after reserved and dense: 50 MiB are missing",
    ),
    (
        made("replication", layers=1, experts=1, memory_mib=(90, 80)),
        "one expert needs 100 MiB, no GPU has more than 90 MiB free after reserved and dense",
    ),
    (
        made("placement", memory_mib=(350, 250)),
        "whole experts: with 100 MiB each, the GPUs' free memory hold 5 experts, but there are 6 "
        "(2 layers × 3 experts × 100 MiB): 1 too many",
    ),
    (
        made("placement", memory_mib=(800, 100), slots=2),
        "whole experts: with 100 MiB each, the GPUs' free memory and its slots hold 5 experts, "
        "but there are 6 (2 layers × 3 experts × 100 MiB): 1 too many",
    ),
    (
        made(requests=((1, 201, 1),), waves=9),
        "one request of class 'c0' needs 201 MiB of KV cache, no GPU has more than 200 MiB for it "
        "(GPU 0: 400 MiB free, of which experts take at least 200 MiB)",
    ),
    (
        made(layers=1, experts=2, requests=((5, 210, 1),), waves=2),
        "5 requests need 210 MiB of KV cache or more each, the GPUs' free memory holds 4 of them "
        "in 2 waves",
    ),
    (
        made(requests=((7, 50, 1),), waves=1),
        "requests need 350 MiB of KV cache, 1 wave has 1 × 200 MiB beside one copy of every "
        "expert: 1 wave more at least",
    ),
    (
        made(requests=((17, 50, 1), (1, 10, 2)), waves=2),
        "requests need 860 MiB of KV cache, 2 waves have 2 × 200 MiB beside one copy of every "
        "expert: 3 waves more at least",
    ),
    (
        made(requests=((6, 50, 4), (1, 10, 2)), wave_steps=[4, 2]),
        "requests of 4 output tokens and more need 300 MiB of KV cache, 1 wave of 4 steps and "
        "more has 1 × 200 MiB beside one copy of every expert: 1 wave more at least",
    ),
    (
        made(requests=((1, 50, 4),), wave_steps=[3, 2]),
        "class 'c0' decodes 4 tokens, the longest wave has 3 steps",
    ),
    (
        made(memory_mib=(300, 300), requests=((1, 1, 1),), waves=1),
        "one request of class 'c0' needs 1 MiB of KV cache, no GPU has more than 0 MiB for it "
        "(GPU 0: 300 MiB free, of which experts take at least 300 MiB)",
    ),
]


@pytest.mark.parametrize(("data", "line"), REASONS, ids=range(len(REASONS)))
def test_reasons(data: ProblemData, line: str) -> None:
    assert explain_infeasible(data) == [line]


def test_feasible_data_have_no_reason() -> None:
    assert explain_infeasible(made("placement", memory_mib=None, slots=2)) == []
    assert explain_infeasible(made("placement", memory_mib=(300, 300))) == []
    assert explain_infeasible(made(requests=((1, 200, 1),), waves=1)) == []
    assert explain_infeasible(made(requests=((4, 50, 4), (4, 50, 1)), wave_steps=[4, 2])) == []


def test_a_reason_is_never_wrong() -> None:
    rng = np.random.default_rng(5)
    feasible, reasons = 0, 0
    for _ in range(150):
        requests = [
            (int(rng.integers(1, 3)), int(rng.integers(3, 150)), int(rng.integers(1, 3)))
            for _ in range(rng.integers(1, 3))
        ]
        data = made(
            layers=int(rng.integers(1, 3)),
            experts=2,
            memory_mib=tuple(rng.integers(100, 400, 2).tolist()),
            slots=[None, 1, 2][rng.integers(3)],
            requests=tuple(requests),
            **[{"waves": 1}, {"waves": 2}, {"wave_steps": [2, 1]}][rng.integers(3)],
        )
        value, _ = brute_optimum(data)
        lines = explain_infeasible(data)
        feasible += value < np.inf
        reasons += bool(lines)
        assert not (lines and value < np.inf), (lines, data)
    assert feasible > 20  # the draw has both kinds
    assert reasons > 20
