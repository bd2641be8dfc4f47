"""Small instances of ``activation``: random data, and a document to be changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from make_data import layer_time, scenarios_of

from moeopt.activation.data import MASS_UNITS, ActivationData
from moeopt.prepare_activation import dropped_mass
from moeopt.problem import ProblemData, Scenarios

FORMS = ("unit", "sum", "max", "p2")


def random_activation(
    seed: int,
    *,
    form: str,
    layers: int = 2,
    experts: int = 4,
    top_k: int = 3,
    gpus: int = 2,
    tokens: int = 2,
    fixed: bool = False,
) -> ProblemData:
    """Three steps of some tokens; every second seed has a slot to spare."""
    rng = np.random.default_rng(seed)
    steps = [
        [[rng.permutation(experts)[:top_k] for _ in range(tokens)] for _ in range(3)]
        for _ in range(layers)
    ]
    dropped = dropped_mass(-np.sort(-rng.integers(1, 20, (layers, top_k)), axis=1))
    slots = -(-experts // gpus) + seed % 2
    hosts = None
    if fixed:
        gpu_of = np.stack([rng.permutation(experts) % gpus for _ in range(layers)])
        hosts = gpu_of[:, :, None] == np.arange(gpus)
    activation = ActivationData(
        scenarios=tuple(tuple(_kept(layer, j) for j in range(1, top_k + 1)) for layer in steps),
        dropped=dropped,
        budget=int(rng.uniform(0.1, 0.9) * dropped[:, 0].sum()),
        batch=tokens,
        hosts=hosts,
    )
    return ProblemData(
        name=f"random_activation_{form}_{seed}",
        sha256="0" * 64,
        problem="activation",
        layers=layers,
        experts=experts,
        top_k=top_k,
        gpus=gpus,
        expert_mib=10.5,
        free_mib=None,
        slots=slots,
        layer_time=layer_time(form, rng),
        scenarios=(),
        load=np.ones((layers, experts)),
        gpu_kind=np.arange(gpus) if fixed else np.zeros(gpus, dtype=np.int64),
        attention_base_us=0.0 if form == "unit" else 1.25,
        layer_numbers=tuple(range(layers)),
        activation=activation,
    )


def _kept(steps: list[list[np.ndarray]], j: int) -> Scenarios:
    counts = [np.bincount(np.concatenate([t[:j] for t in step])) for step in steps]
    members = [np.flatnonzero(row).tolist() for row in counts]
    return scenarios_of(members, [row[row > 0].tolist() for row in counts])


def with_budget(data: ProblemData, budget: int) -> ProblemData:
    assert data.activation is not None
    return replace(data, activation=replace(data.activation, budget=budget))


def document(**changes: Any) -> dict[str, Any]:
    """Two layers of four experts, top-2, on two GPUs; one step of two tokens."""
    one = {"experts": [[0, 2]], "weight": [1]}
    both = {"experts": [[0, 1, 2]], "weight": [1], "tokens": [[1, 2, 1]]}
    made: dict[str, Any] = {
        "schema": "moeopt-instance/1",
        "name": "kept",
        "moe": {"name": "toy", "layers": 2, "experts": 4, "top_k": 2, "expert_mib": 10},
        "cluster": {"nodes": [{"gpus": 2}], "slots_per_gpu": 2},
        "layer_time": {"form": "sum", "expert_us": 3, "token_us": 1, "attention_base_us": 5},
        "routing": [{"layer": 3, "scenarios": both}, {"layer": 4, "scenarios": both}],
        "activation": {
            "gate_mass": [[0.7, 0.3], [3, 1]],
            "budget": 0.3,
            "batch": 2,
            "scenarios": [[one, both], [one, both]],
        },
    }
    return made | changes


def with_options(**changes: Any) -> dict[str, Any]:
    made = document()
    return made | {"activation": made["activation"] | changes}


assert MASS_UNITS == 100_000  # the budgets of the tests are written in these units
