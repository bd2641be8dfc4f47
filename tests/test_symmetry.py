"""Formulations without the symmetry of the GPUs keep every plan, under other names."""

from __future__ import annotations

import numpy as np
import pytest
from make_data import random_data
from scipy.optimize import Bounds, LinearConstraint, milp

from moeopt.catalog import load_formulation
from moeopt.checker import check_solution
from moeopt.compile import compile_model
from moeopt.declarative import declarative
from moeopt.solution import Solution

NAMES = (
    "placement_assignment_ordered",
    "placement_assignment_orbitope",
    "placement_representatives",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_a_warm_start_satisfies_the_rows_at_its_own_value(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = random_data("placement", rng, experts=6, gpus=3, top_k=3, scenarios=5, spare=1)
    formulation = load_formulation(name)
    assert data.slots is not None
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    for layer in hosts:
        free = np.repeat(np.arange(data.gpus), data.slots)
        layer[np.arange(data.experts), rng.permutation(free)[: data.experts]] = True
    plan = Solution.from_arrays(data, hosts)
    value = check_solution(data, plan).objective
    with declarative():
        model = formulation.build(data)
    linear = compile_model(model)
    lower, upper = linear.lower.copy(), linear.upper.copy()
    for component, values in formulation.start(data, plan).items():
        block = linear.columns[component]
        part = slice(block.start, block.start + block.size)
        lower[part] = upper[part] = values.ravel()
    result = milp(
        linear.cost,
        constraints=LinearConstraint(linear.matrix, linear.row_lower, linear.row_upper),
        bounds=Bounds(lower, upper),
        integrality=linear.integer.astype(int),
    )
    assert result.success, result.message
    assert result.fun + linear.offset == pytest.approx(value)
