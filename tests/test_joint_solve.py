"""``joint`` from end to end: what is certified, what is charged, who is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from make_data import random_data

from moeopt.catalog import read_instance
from moeopt.choosing import choose
from moeopt.instance import Instance
from moeopt.instance_parts import JointOptions
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
