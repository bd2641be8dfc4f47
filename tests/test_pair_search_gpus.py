"""The tree over GPUs against brute force, against the tree over masks, and each of its charges."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
from make_data import scenarios_of

from moeopt import dispatch
from moeopt.catalog import read_instance
from moeopt.heuristics.anneal import exact_value
from moeopt.prepare import prepare
from moeopt.problem import Scenarios
from moeopt.proofs.pair_search import pair_search
from moeopt.proofs.pair_search_gpus import (
    GpuTree,
    check_inequalities,
    lack_excess,
    shared_patterns,
    supports,
)
from moeopt.proofs.pair_search_gpus_kernel import charge, fill_losses, fill_reduced, sum_subsets


def random_layer(rng: np.random.Generator, experts: int, share: float = 1.0) -> Scenarios:
    sets = [s for s in combinations(range(experts), 4) if rng.random() < share]
    return scenarios_of(sets or [(0, 1, 2, 3)], weight=rng.exponential(size=max(len(sets), 1)))


@cache
def plans(experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Every vector of masks of four GPUs, and the most experts that one of these GPUs hosts."""
    rows = np.stack(np.meshgrid(*[np.arange(1, 16)] * experts), axis=-1).reshape(-1, experts)
    return rows, np.max([(rows >> g & 1).sum(axis=1) for g in range(4)], axis=0)


def optimum_of(layer: Scenarios, experts: int, slots: int) -> float:
    """Least expected time over every vector of masks."""
    rows, most = plans(experts)
    rows = rows[most <= slots]
    four = np.array(list(product(range(1, 16), repeat=4)))
    times = np.zeros((16,) * 4)
    times[tuple(four.T)] = dispatch.unit_times(four)
    value = np.zeros(len(rows))
    for s, p in enumerate(layer.weight):
        value += p * times[tuple(rows[:, layer.members(s)].T)]
    return float(value.min())


@pytest.mark.parametrize(("seed", "slots"), [(0, 2), (1, 3), (2, 4), (3, 2), (4, 3)])
def test_against_all_plans(seed: int, slots: int) -> None:
    rng = np.random.default_rng(seed)
    layer = random_layer(rng, 5, share=1.0 if seed < 3 else 0.6)
    optimum = optimum_of(layer, 5, slots)
    for upper, rungs in ((optimum, (1.0,)), (1.3 * optimum, (0.7, 0.9, 1.0)), (optimum, (0.97,))):
        result = pair_search(
            layer, 5, 4, slots, upper=upper, rungs=rungs, count=False, trees=("gpus",), threads=1
        )
        assert result.lower <= optimum * (1 + 1e-12)
        assert result.lower >= min(max(rungs) * upper, optimum) * (1 - 1e-6)
        if 1.0 in rungs:
            assert result.complete
            assert result.value == pytest.approx(optimum, rel=1e-6)
        if result.hosts is not None:
            assert result.hosts.any(axis=1).all()
            assert result.hosts.sum(axis=0).max() <= slots
            assert exact_value(layer, result.hosts) == pytest.approx(result.value, rel=1e-12)


@pytest.mark.parametrize(
    ("seed", "experts", "slots"), [(0, 6, 2), (1, 7, 2), (2, 7, 3), (3, 8, 2), (4, 8, 3), (5, 7, 4)]
)
def test_against_the_tree_over_masks(seed: int, experts: int, slots: int) -> None:
    rng = np.random.default_rng(seed)
    layer = random_layer(rng, experts, share=(1.0, 0.5)[seed % 2])
    masks = pair_search(layer, experts, 4, slots, upper=3.0, count=False, trees=("masks",))
    gpus = pair_search(layer, experts, 4, slots, upper=3.0, count=False, trees=("gpus",))
    assert masks.complete
    assert gpus.complete
    assert gpus.value == pytest.approx(masks.value, rel=1e-9)
    assert gpus.lower == pytest.approx(masks.lower, rel=1e-5)
    assert gpus.method in ("gpus", "scenario")


def test_excess_of_what_gpus_lack() -> None:
    table = lack_excess()
    lacks = np.array(list(product(range(16), repeat=4)))
    masks = ((~lacks[:, None, :] >> np.arange(4)[:, None] & 1) << np.arange(4)).sum(axis=2)
    nowhere = (masks == 0).any(axis=1)
    found = table[tuple(lacks.T)]
    assert (found[nowhere] == -1).all()
    np.testing.assert_array_equal(found[~nowhere], dispatch.unit_times(masks[~nowhere]) - 1)


def test_inequalities_are_checked() -> None:
    excess, shared = lack_excess(), shared_patterns()
    check_inequalities(excess, shared)
    with pytest.raises(ArithmeticError, match="0 GPUs fixed"):
        check_inequalities(excess, np.zeros_like(shared))  # nothing is taken off
    with pytest.raises(ArithmeticError):
        check_inequalities(excess, np.ones_like(shared))  # pays where nothing is gained
    fixed_only = shared.copy()
    fixed_only[1:, 1:] = False
    with pytest.raises(ArithmeticError, match="2 GPUs fixed"):
        check_inequalities(excess, fixed_only)


def test_sum_subsets() -> None:
    table = np.random.default_rng(0).integers(-9, 9, 64).astype(np.int32)
    by_hand = [sum(table[x] for x in range(64) if x & ~whole == 0) for whole in range(64)]
    sum_subsets(table)
    np.testing.assert_array_equal(table, by_hand)


@pytest.mark.parametrize(("seed", "slots"), [(0, 2), (1, 2), (2, 3), (3, 3), (4, 4), (5, 2)])
def test_charges_never_exceed_the_excess(seed: int, slots: int) -> None:
    """With no, one or two GPUs fixed: charges, losses of pairs and prices, against random plans."""
    rng = np.random.default_rng(seed)
    experts = 7
    layer = random_layer(rng, experts, share=(1.0, 0.5)[seed % 2])
    tree = GpuTree(layer, experts, slots, 1)
    _, weight, excess = tree.charges[:3]
    full = (1 << experts) - 1
    plans = tree.columns[rng.integers(len(tree.columns), size=(4000, 4))]
    plans = plans[np.bitwise_and.reduce(plans, axis=1) == 0][:300]
    assert len(plans) > 10
    tight = 0
    for plan in plans.tolist():
        rows = [tree.patterns[tree.row[column]] for column in plan]
        value = int((weight.astype(np.int64) * excess[tuple(rows)]).sum())
        for fixed, thirds in ((0, 2), (1, 2), (2, 3)):
            cost, over, loss = np.zeros((3, full + 1), dtype=np.int32)
            first = rows[0] if fixed > 0 else tree.patterns[0]
            second = rows[1] if fixed > 1 else tree.patterns[0]
            both = plan[0] & plan[1] if fixed == 2 else 0
            free = full & ~both
            known = charge(first, second, free, *tree.charges, cost, over)
            fill_losses(over, free, tree.lacked, tree.size, thirds, loss)
            others = 3 - fixed  # of each open GPU
            rest = plan[fixed:]
            doubled = 2 * cost[rest].sum() - others * loss[[column & free for column in rest]].sum()
            assert 2 * known + doubled <= 2 * value
            tight += 2 * known + doubled == 2 * value
            if fixed == 2:  # the sum over the pair itself: also a bound, never below the other one
                common = rest[0] & rest[1]
                gain = sum(
                    over[common | 1 << e] - over[common]
                    for e in range(experts)
                    if free & ~(rest[0] | rest[1]) & 1 << e
                )
                exact = known + cost[rest].sum() - over[common] + gain
                assert 2 * known + doubled <= 2 * exact <= 2 * value
            else:
                combined = (4 - fixed - 1) * loss
                reduced = np.zeros(len(tree.columns), dtype=np.int64)
                limited = full if fixed == 0 else plan[0]
                back = fill_reduced(
                    2 * cost - combined, tree.columns, limited, 4 - fixed, 2 * value, 30, reduced
                )
                priced = reduced[tree.row[rest] - 1].sum() - back
                assert 2 * known + priced <= 2 * value
    assert tight > 0


def test_what_it_cannot_take() -> None:
    fours = scenarios_of([[0, 1, 2, 3], [1, 2, 3, 4]])
    assert supports(fours, 6, 4, 2) is None
    assert "GPUs" in str(supports(fours, 6, 3, 3))
    assert "experts" in str(supports(scenarios_of([[0, 1, 2]]), 6, 4, 2))
    assert "17 experts" in str(supports(fours, 17, 4, 5))
    assert "every GPU" in str(supports(fours, 6, 4, 6))


@pytest.mark.parametrize(("seed", "slots", "upper"), [(0, 8, 1.111991), (0, 9, 1.042341)])
def test_shipped_instances(seed: int, slots: int, upper: float) -> None:
    """Two per cent and less where neither masks nor counting get anywhere, in a second."""
    data = prepare(read_instance(f"dbrx_16x4_seed{seed}"), "placement")
    data = replace(data, slots=slots, problem="replication")
    result = pair_search(
        data.scenarios[0], 16, 4, slots, upper=upper, rungs=(0.98,), count=False, trees=("gpus",)
    )
    assert result.method == "gpus"
    assert 0.98 * upper * (1 - 1e-9) <= result.lower <= upper
