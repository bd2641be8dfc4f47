"""Cuts in the number of requests alone, and requests packed by exchange."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from make_data import layer_time, random_data

from moeopt.checker import check_solution
from moeopt.heuristics import joint
from moeopt.joint.cost import cost_of
from moeopt.joint.lengths import lengths_bound
from moeopt.joint.memory import memory_of
from moeopt.joint.minorants_total import total_cuts, total_floor, union_lines
from moeopt.joint.partition_bound import partition_bounds
from moeopt.joint.repair import place_requests
from moeopt.joint.waves_program import WavesProgram


@pytest.mark.parametrize("form", ["sum", "max", "p2"])
def test_floors_are_below_every_wave(form):
    """Against the partition bound of random waves, which is exact in tests."""
    tight = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        cost = cost_of(layer_time(form, rng))
        experts, gpus, classes = int(rng.integers(2, 6)), int(rng.integers(2, 5)), 3
        usage = rng.integers(1, 20, (classes, experts)) / 4.0
        usage *= usage[0].sum() / usage.sum(axis=1, keepdims=True)
        most = rng.integers(1, 9, classes)
        charges = np.ones(experts, dtype=np.int64)
        high = int(rng.integers(1, most.sum() + 1))
        low = int(rng.integers(1, high + 1))
        points = np.linspace(low, high, 5)
        lines = union_lines(cost, usage, most.astype(float), charges, gpus, points)
        for times in (0.0, 1.0, 1.1, 1.5):
            theta = times * cost[4] * float(usage[0].sum()) / gpus
            floor = total_floor(*lines, gpus, float(low), float(high), theta)
            above = np.inf
            for _ in range(60):
                n = rng.integers(0, most + 1)
                while n.sum() > high:
                    n[rng.choice(np.flatnonzero(n))] -= 1
                while n.sum() < low:
                    n[rng.choice(np.flatnonzero(n < most))] += 1
                time = partition_bounds(cost, n @ usage, charges, 1, gpus)[0][gpus - 1]
                above = min(above, time - theta * n.sum())
            assert floor <= above + 1e-9 * abs(above)
            tight += floor >= above - 0.05 * abs(above)
    assert tight >= 8


def test_layers_that_some_class_leaves_idle_have_no_cuts():
    cost = cost_of(layer_time("sum", np.random.default_rng(0)))
    usage = np.ones((2, 2, 3))
    charges = np.array([[1, 1, 1], [1, 0, 1]])
    cuts = total_cuts(cost, usage, np.array([3, 3]), charges, 2, 1, 4)
    assert {layer for layer, _, _ in cuts} == {0}
    unit = cost_of(layer_time("unit", np.random.default_rng(0)))
    assert total_cuts(unit, usage, np.array([3, 3]), charges, 2, 1, 4) == []


@pytest.mark.parametrize("form", ["sum", "max", "p2"])
def test_bound_of_equal_lengths_below_brute_force(form, monkeypatch):
    from test_joint_layers import brute_value

    for seed in range(1 if form == "p2" else 5):
        data = random_data(
            "joint", np.random.default_rng(70 + seed), form=form, experts=3, top_k=1 + seed % 2,
            classes=2, max_count=3, waves=2, spare=seed % 3,
        )  # fmt: skip
        requests = replace(data.requests, output_tokens=np.full(2, 16))
        data = replace(data, requests=requests)
        with monkeypatch.context() as patch:
            optimum = brute_value(data, patch)
        bound = lengths_bound(data)
        assert bound.value <= optimum * (1 + 1e-12)
        plan = joint.plan(data, lengths=bound.lengths, time_limit_s=5)
        assert plan is not None
        report = check_solution(data, plan)
        assert report.violations == []
        assert report.objective >= optimum * (1 - 1e-9)


@pytest.mark.parametrize("form", ["sum", "p2"])
def test_totals_make_the_programme_stronger(form):
    """Hot experts, classes that differ: plain cuts let every group have its fewest tokens."""
    experts, classes = 5, 6
    data = random_data(
        "joint", np.random.default_rng(1), form=form, experts=experts, gpus=experts,
        classes=classes, waves=3,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    usage = np.array([3, 2, 1, 1, 1]) * rng.uniform(0.7, 1.3, (classes, data.layers, experts))
    requests = replace(
        data.requests, count=np.full(classes, 20), output_tokens=np.full(classes, 16),
        usage=0.6 * usage / usage.sum(axis=2, keepdims=True), kv_mib=np.full(classes, 1.0),
    )  # fmt: skip
    room = experts * data.layers * data.expert_mib + 50.0
    data = replace(data, requests=requests, free_mib=np.full(data.gpus, room / data.gpus))
    values = []
    for thorough in (False, True):
        program = WavesProgram(data, thorough=thorough)
        domains = (program.widest(16),) * 3
        values.append(program.bound((16,) * 3, domains).value)
    assert values[1] >= 1.05 * values[0]


def test_requests_that_only_fit_by_exchange():
    """Largest first leaves 4 beside 5 + 3; packed, all memory is used."""
    data = random_data("joint", np.random.default_rng(0), classes=3)
    requests = replace(data.requests, kv_mib=np.array([5.0, 4.0, 3.0]))
    memory = memory_of(replace(data, requests=requests))
    counts = np.array([2, 3, 2])
    mib = 2**20
    z = place_requests(counts, np.array([14, 14]) * mib, memory)
    assert z is not None
    assert (z.sum(axis=1) == counts).all()
    assert (memory.kv @ z <= 14 * mib).all()
    assert place_requests(counts, np.array([14, 13]) * mib, memory) is None
    assert place_requests(np.array([3, 0, 0]), np.array([9, 9]) * mib, memory) is None
