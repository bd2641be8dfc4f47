"""Lower bounds of ``balance`` against all plans of tiny layers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from balance_brute import brute, grouped, tiny

from moeopt.balance import bounding, check_balance, dual_function
from moeopt.balance.bounding import bound_layer
from moeopt.balance.bounds import component_bound, mean_bound, piece_bound
from moeopt.balance.data import balance_data
from moeopt.balance.dual_function import DualLayer, _contents, dual_bound, proves_above
from moeopt.balance.exact import whole_loads

#: Brute force sums doubles.
ROUNDING = 1 + 1e-12


@pytest.mark.parametrize("rule", ["even", "optimal"])
def test_bounds_hold(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounding, "WORTH", 1e-6)
    monkeypatch.setattr(dual_function, "_MOST_STEPS", 24)  # seconds instead of a minute
    methods, tight = set(), 0
    for seed in range(216):
        data = tiny(seed, rule=rule)
        best = brute(data).best
        upper = np.full(data.windows, best * 1.01) if seed % 2 else None
        bound = bound_layer(data, 0, upper)
        assert bound.value <= best * ROUNDING, (seed, bound)
        methods.add(bound.method)
        tight += bound.value >= best * (1 - 1e-9)
    expected = {"mean", "piece", "components", "mean of windows: piece"}
    assert methods >= (expected | {"dual function"} if rule == "even" else expected)
    assert tight >= 10  # not only true, but sharp on some


@pytest.mark.parametrize("rule", ["even", "optimal"])
def test_bounds_hold_with_groups(rule: str) -> None:
    methods, tight = set(), 0
    for seed in range(24):
        data = grouped(seed, rule=rule)
        best = brute(data).best
        bound = bound_layer(data, 0, np.full(data.windows, best))
        assert bound.value <= best * ROUNDING, (seed, bound)
        methods.add(bound.method)
        tight += bound.value >= best * (1 - 1e-9)
    assert "packings: mean" in methods
    assert rule == "even" or tight >= 3


@pytest.mark.parametrize("rule", ["even", "optimal"])
def test_bounds_hold_without_enumeration(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounding, "MOST_PACKINGS", 0)
    for seed in range(24):
        data = grouped(seed, rule=rule)
        bound = bound_layer(data, 0, None)
        assert "packings" not in bound.method
        assert 0 < bound.value <= brute(data).best * ROUNDING


@pytest.mark.parametrize("which", ["mean", "piece", "components"])
def test_each_bound_holds(which: str) -> None:
    for seed in range(216):
        data = tiny(seed, rule="optimal")
        for loads in data.loads[:, 0]:
            whole, unit = whole_loads(loads)
            value = {
                "mean": lambda w=whole, d=data: mean_bound(w, d.gpus),
                "piece": lambda w=whole, d=data: piece_bound(w, d.replicas, d.gpus),
                "components": lambda w=whole, d=data: component_bound(w, d.slots),
            }[which]()
            one = balance_data(loads, gpus=data.gpus, slots=data.slots, rule="optimal")
            assert float(value * unit) <= brute(one).best * ROUNDING, seed


def test_component_bound_by_hand() -> None:
    # Two GPUs of two slots, no extra replica: the GPU of the heaviest expert has a second one.
    assert component_bound([10, 3, 2, 1], np.array([2, 2])) == 11
    # With one extra replica of the heaviest: two GPUs, and everybody is on them.
    assert component_bound([10, 1, 1], np.array([2, 2])) == 6


def test_huge_and_tiny_loads() -> None:
    data = balance_data([1e-300, 1e300, 1.0, 2.0], gpus=2, replicas=6)
    bound = bound_layer(data, 0, np.array([1e300]))
    best = check_balance(data, np.array([[1, 0, 2, 1, 0, 3]])).per_layer[0]
    assert 0.4e300 <= bound.value <= best


def test_any_function_proves_only_what_is_true() -> None:
    rng = np.random.default_rng(0)
    proved = 0
    for seed in range(200):
        data = tiny(seed, rule="even")
        loads = data.loads[0, 0]
        whole, unit = whole_loads(loads)
        layer = DualLayer(whole, tuple(data.slots.tolist()))
        one = balance_data(loads, gpus=data.gpus, slots=data.slots)
        best = brute(one).best
        for _ in range(20):
            steps = int(rng.integers(1, 13))
            function = np.sort(rng.integers(-6, 12, steps + 1))
            target = Fraction(best * float(rng.uniform(0.8, 1.1))) / unit
            if target > 0 and proves_above(layer, function, target):
                proved += 1
                assert float(target * unit) < best * ROUNDING
    assert proved >= 50


def test_dual_function_is_much_better_where_experts_are_hot() -> None:
    weight = np.random.default_rng(0).permutation(np.arange(1, 65) ** -0.8)
    whole, unit = whole_loads(weight)
    data = balance_data(weight, gpus=24, replicas=72)
    simple = max(
        mean_bound(whole, 24), piece_bound(whole, 72, 24), component_bound(whole, data.slots)
    )
    upper = simple * Fraction(6, 5)
    layer = DualLayer(whole, tuple(data.slots.tolist()))
    proved = dual_bound(layer, simple, upper)
    assert simple * Fraction(102, 100) < proved < upper
    assert bound_layer(data, 0, np.array([float(upper * unit)])).method == "dual function"


@pytest.mark.parametrize(("slots", "steps"), [(1, 5), (2, 7), (3, 8), (4, 6)])
def test_contents_are_all_partitions(slots: int, steps: int) -> None:
    found = {tuple(row) for row in _contents(slots, steps).tolist()}
    every = np.indices((steps + 1,) * slots).reshape(slots, -1).T
    full = {tuple(sorted(row, reverse=True)) for row in every[every.sum(axis=1) == steps].tolist()}
    assert found == full
