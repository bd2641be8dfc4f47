"""``joint`` from end to end: what is certified, what is charged, who is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from brute import brute_optimum
from make_data import random_data

from moeopt.catalog import read_instance
from moeopt.choosing import choose
from moeopt.instance import Instance, JointOptions
from moeopt.joint.lengths import lengths_bound
from moeopt.prepare import prepare
from moeopt.solving import solve


def steady(name: str, **joint_options) -> Instance:
    instance = read_instance(name)
    return instance.model_copy(update={"joint": JointOptions(waves=1, **joint_options)})


@pytest.mark.parametrize(
    ("options", "charged", "limit"),
    [({}, "activated", 5e-4), ({"charged": "resident", "uniform_slots": True}, "resident", 1e-2)],
)
def test_steady_state_is_certified(options, charged, limit):
    outcome = solve(
        steady("mixtral-8x7b_4gpu_steady_sum", **options),
        problem="joint",
        time_limit_s=30,
        gap=limit,
    )
    record = outcome.record
    assert record.status == "optimal"
    assert record.gap <= limit
    assert record.charged == charged
    assert record.lower_bound_from == "layer functions + knapsack"
    assert record.formulation is None  # no solver was needed


def test_formulations_only_relax_what_they_do_not_know():
    """Charging residents or asking for equal slots makes an exact formulation a relaxation."""
    data = random_data("joint", np.random.default_rng(0), form="sum")
    choice, _ = choose(data, "joint_work", "highs")
    assert choice.kind(data) == "exact"
    assert choice.kind(replace(data, charged="resident")) == "relaxation"
    assert choice.kind(replace(data, uniform_slots=True)) == "relaxation"


def test_attention_of_the_fullest_gpu_counts_only_where_the_steps_are_known() -> None:
    """Two waves are better than one here; a bound of one wave's caches was above their optimum."""
    instance = Instance.from_document(
        {
            "schema": "moeopt-instance/1",
            "name": "whole_experts",
            "moe": {
                "name": "tiny",
                "layers": 1,
                "experts": 3,
                "top_k": 1,
                "expert_mib": 8.0,
                "dense_mib": 0.0,
                "kv_kib_per_token": 1024.0,
            },
            "cluster": {"nodes": [{"gpus": 2, "memory_mib": 18.0}]},
            "layer_time": {
                "form": "sum",
                "expert_us": 0.01,
                "token_us": 0.01,
                "attention_us_per_mib": 1.0,
            },
            "routing": [{"layer": 0, "load": [1, 1, 1]}],
            "requests": [{"name": "c", "count": 6, "prompt_tokens": 1, "output_tokens": 1}],
            "joint": {"waves": 2},
        }
    )
    data = prepare(instance, "joint")
    optimum, _ = brute_optimum(data)
    assert optimum * (1 - 1e-6) <= lengths_bound(data).value <= optimum
