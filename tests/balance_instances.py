"""Small instances of ``balance``, as documents and prepared."""

from __future__ import annotations

from typing import Any

import numpy as np

from moeopt.instance import Instance
from moeopt.prepare import prepare
from moeopt.problem import ProblemData

#: Previous plan of four experts on three GPUs with two slots, in both layers.
PREVIOUS = [[[0, 1, 2], [0], [1], [2]], [[0], [0, 1], [1, 2], [2]]]


def document(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "schema": "moeopt-instance/1",
        "name": "four",
        "moe": {"name": "toy", "layers": 2, "experts": 4, "top_k": 1, "expert_mib": 10},
        "cluster": {"nodes": [{"gpus": 3}], "slots_per_gpu": 2},
        "layer_time": {"form": "unit"},
        "routing": [{"layer": 3, "load": [9, 3, 3, 1]}, {"layer": 4, "load": [1, 1, 1, 1]}],
    }
    return made | changes


def made(**changes: Any) -> Instance:
    return Instance.from_document(document(**changes))


def prepared(**options: Any) -> ProblemData:
    return prepare(made(balance=options or None), "balance")


def random_instance(seed: int) -> Instance:
    rng = np.random.default_rng(seed)
    experts, gpus, slots = [(4, 2, 3), (4, 3, 2), (5, 3, 2), (3, 2, 2)][seed % 4]
    windows = rng.integers(0, 12, (1 + seed % 2, 1, experts)).astype(float)
    balance: dict[str, Any] = {
        "windows": list(windows),
        "rule": ("even", "optimal")[seed // 4 % 2],
    }
    if seed // 8 % 2:
        held = np.tile(np.arange(experts), gpus)[: gpus * slots].reshape(gpus, slots)
        hosts = [[g for g in range(gpus) if e in held[g]] for e in range(experts)]
        balance |= {"previous": [hosts], "max_moves": int(rng.integers(0, 3))}
    return made(
        name=f"random{seed}",
        moe={"name": "toy", "layers": 1, "experts": experts, "top_k": 1, "expert_mib": 1},
        cluster={"nodes": [{"gpus": gpus}], "slots_per_gpu": slots},
        routing=[{"layer": 0, "load": [1] * experts}],
        balance=balance,
    )


RANDOM = {seed: prepare(random_instance(seed), "balance") for seed in range(16)}
