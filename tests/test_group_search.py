"""The exhaustive search over groups against brute force, and its proofs of DBRX-size placements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from brute import brute_optimum
from make_data import random_data, random_scenarios, scenarios_of

from moeopt.catalog import read_instance
from moeopt.checker import check_solution
from moeopt.heuristics.placement import place
from moeopt.prepare import prepare
from moeopt.proofs.group_search import group_search, unsupported
from moeopt.solution import Solution


def cases():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        experts, gpus = int(rng.integers(2, 8)), int(rng.integers(1, 5))
        gpus = min(gpus, 3) if experts > 6 else gpus
        slots = -(-experts // gpus) + int(rng.integers(0, 3))
        data = random_data("placement", rng, experts=experts, gpus=gpus, top_k=1, scenarios=1)
        top = min(4, experts)
        layer = random_scenarios(rng, experts, 1, 12, 1, top)
        yield replace(data, slots=slots, scenarios=(layer,))


CASES = list(cases())


def value_of(data, hosts):
    report = check_solution(data, Solution.from_arrays(data, hosts[None]))
    assert not report.violations
    return report.objective


@pytest.mark.parametrize("data", CASES)
def test_optimum_plan_and_bound(data):
    optimum = brute_optimum(data)[0]
    shape = data.experts, data.gpus, data.slots
    found = group_search(data.scenarios[0], *shape)
    assert found.complete
    assert optimum - 1e-12 <= found.lower <= optimum
    assert value_of(data, found.hosts) == pytest.approx(optimum, abs=1e-12)
    for upper in (optimum, optimum + 0.01, optimum - 1e-6):
        again = group_search(data.scenarios[0], *shape, upper=upper)
        assert again.complete
        assert min(upper, optimum) - 1e-12 <= again.lower <= min(upper, optimum)
        if upper > optimum:
            assert value_of(data, again.hosts) == pytest.approx(optimum, abs=1e-12)
        if upper < optimum:
            assert again.hosts is None


def test_interrupted_search_keeps_a_bound():
    data = prepare(read_instance("dbrx_16x4_seed2"), "placement")
    calls = iter([False, False, True])
    found = group_search(data.scenarios[0], 16, 4, 4, stop=lambda: next(calls))
    assert not found.complete
    assert 0.999999 < found.lower <= 1.0
    assert value_of(data, found.hosts) > found.lower
    assert not group_search(data.scenarios[0], 16, 4, 4, time_limit_s=0.0).complete


@pytest.mark.parametrize(
    ("seed", "optimum"), [(0, 1.913807142146901), (1, 1.792993470987576), (2, 1.9676699250067358)]
)
def test_dbrx_placements_are_proved_optimal(seed, optimum):
    data = prepare(read_instance(f"dbrx_16x4_seed{seed}"), "placement")
    upper = check_solution(data, place(data, time_limit_s=1.0)).objective
    found = group_search(data.scenarios[0], 16, 4, 4, upper=upper)
    assert found.complete
    assert found.lower <= upper
    best = upper if found.hosts is None else min(upper, value_of(data, found.hosts))
    assert best == pytest.approx(optimum, abs=1e-12)
    assert best * (1 - 1e-11) <= found.lower <= best


def test_what_is_refused():
    layer = scenarios_of([[0, 1, 2, 3, 4]])
    assert "four" in unsupported(layer, 5, 2, 3)
    with pytest.raises(ValueError, match="do not hold"):
        group_search(scenarios_of([[0, 1]]), 5, 2, 2)
    assert "64" in unsupported(scenarios_of([[0, 1]]), 65, 8, 9)
