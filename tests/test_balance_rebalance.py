"""The published heuristic, and the drop-in for it that is never worse."""

from __future__ import annotations

import itertools
import math
import sys
import time
import types

import numpy as np
import pytest
from balance_brute import brute

from moeopt.balance import (
    balance_data,
    check_balance,
    rebalance_experts,
    solve_balance,
)
from moeopt.balance.eplb import published_plan
from moeopt.balance.even import mean_largest
from moeopt.balance.rebalance import logical_maps
from moeopt.errors import InputError

#: The example of the published load balancer: 2 layers, 12 experts, 16 slots, 4 groups, 2 nodes,
#: 8 GPUs, and its answer.
WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PHY2LOG = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


# --- the published heuristic ---------------------------------------------------------------------


def test_published_example() -> None:
    found = published_plan(WEIGHT, 16, 4, 2, 8)
    assert found.slots.tolist() == PHY2LOG
    assert found.count.tolist() == [np.bincount(row).tolist() for row in PHY2LOG]
    for row, rank, count in zip(found.slots, found.rank, found.count, strict=True):
        for e in range(12):
            assert sorted(rank[row == e].tolist()) == list(range(count[e]))


def test_published_falls_back_to_one_group() -> None:
    assert np.array_equal(
        published_plan(WEIGHT, 16, 3, 2, 8).slots, published_plan(WEIGHT, 16, 1, 1, 8).slots
    )


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((16, 5, 1, 8), "12 experts cannot be divided equally among 5 groups"),
        ((16, 4, 2, 5), "5 GPUs cannot be divided equally among 2 nodes"),
        ((15, 4, 2, 8), "15 slots cannot be divided equally among 8 GPUs"),
        ((8, 4, 2, 8), "8 slots cannot hold 12 experts"),
        ((16, 4, 0, 8), "at least one of each"),
    ],
)
def test_published_refuses(numbers: tuple[int, int, int, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        published_plan(WEIGHT, *numbers)


# --- the drop-in ---------------------------------------------------------------------------------


def assert_maps_agree(plan: np.ndarray, slots: np.ndarray, count: np.ndarray) -> None:
    assert plan.dtype == slots.dtype == count.dtype == np.int64
    assert slots.shape == (*count.shape, count.max())
    for l, e in itertools.product(range(len(plan)), range(count.shape[1])):
        here = np.flatnonzero(plan[l] == e)
        assert count[l, e] == len(here) > 0
        assert sorted(slots[l, e, : len(here)].tolist()) == here.tolist()
        assert (slots[l, e, len(here) :] == -1).all()


@pytest.mark.parametrize("numbers", [(16, 4, 2, 8), (16, 3, 2, 8), (16, 1, 1, 4), (24, 4, 4, 8)])
@pytest.mark.parametrize("fast", [True, False])
def test_rebalance_never_below_published(numbers: tuple[int, int, int, int], fast: bool) -> None:
    plan, slots, count = rebalance_experts(WEIGHT, *numbers, fast=fast)
    assert_maps_agree(plan, slots, count)
    published = published_plan(WEIGHT, *numbers).slots
    replicas, groups, nodes, gpus = numbers
    if groups % nodes:
        groups = nodes = 1
    data = balance_data(WEIGHT, gpus=gpus, replicas=replicas, nodes=nodes, groups=groups)
    report = check_balance(data, plan)
    assert [line for line in report.violations if "times on GPU" not in line] == []
    values = [(mean_largest(data, l, plan[l]), mean_largest(data, l, published[l])) for l in (0, 1)]
    assert all(ours <= theirs for ours, theirs in values)
    assert any(ours < theirs for ours, theirs in values)


def test_rebalance_with_more_slots_than_experts_on_a_gpu() -> None:
    plan, slots, count = rebalance_experts([[3.0, 1]], 6, 1, 1, 2)
    assert np.array_equal(plan, published_plan([[3.0, 1]], 6, 1, 1, 2).slots)
    assert_maps_agree(plan, slots, count)


def test_duplicate_is_taken_where_it_is_better() -> None:
    # 28 with expert 0 twice on a GPU, 28.5 without: the published plan is as it is, ours no worse.
    weight = [[30.0, 8, 11, 7]]
    plan, _, _ = rebalance_experts(weight, 6, 1, 1, 2)
    data = balance_data(weight, gpus=2, replicas=6)
    assert brute(data).best == 28.5
    published = published_plan(weight, 6, 1, 1, 2).slots
    value = mean_largest(data, 0, plan[0])
    assert value == min(28.5, mean_largest(data, 0, published[0]))


def test_rebalance_takes_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = types.ModuleType("torch")

    class Tensor:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def detach(self) -> Tensor:
            return self

        def cpu(self) -> Tensor:
            return self

        def double(self) -> Tensor:
            return Tensor(self.array.astype(np.float64))

        def numpy(self) -> np.ndarray:
            return self.array

    Tensor.__module__ = "torch"
    torch.from_numpy = Tensor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    answer = rebalance_experts(Tensor(np.array(WEIGHT, dtype=np.float32)), 16, 4, 2, 8)
    assert all(isinstance(part, Tensor) for part in answer)
    expected = rebalance_experts(WEIGHT, 16, 4, 2, 8)
    assert all(np.array_equal(a.array, b) for a, b in zip(answer, expected, strict=True))


@pytest.mark.parametrize(
    ("weight", "words"),
    [([1.0, 2], "shape"), ([[1.0, -2]], "not below 0"), ([[1.0, math.nan]], "not below 0")],
)
def test_rebalance_refuses(weight: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        rebalance_experts(weight, 2, 1, 1, 1)


def test_layers_without_load() -> None:
    plan, slots, count = rebalance_experts(np.zeros((2, 8)), 12, 1, 1, 4)
    assert_maps_agree(plan, slots, count)
    data = balance_data(np.zeros((2, 8)), gpus=4, replicas=12)
    outcome = solve_balance(data)
    assert outcome.report.objective == 0
    assert outcome.lower.tolist() == outcome.gap.tolist() == [0, 0]
    assert check_balance(data, plan).balancedness.tolist() == [[1, 1]]


def test_logical_maps() -> None:
    slots, count = logical_maps(np.array([[2, 0, 2, 1]]), 3)
    assert slots.tolist() == [[[1, -1], [3, -1], [0, 2]]]
    assert count.tolist() == [[1, 1, 2]]


def test_fast_is_fast() -> None:
    weight = np.random.default_rng(0).lognormal(0, 1, (1, 256))
    rebalance_experts(weight, 288, 1, 1, 32, fast=True)  # compiled
    seconds = []
    for seed in range(5):
        weight = np.random.default_rng(seed).lognormal(0, 1, (1, 256))
        begin = time.process_time()
        rebalance_experts(weight, 288, 1, 1, 32, fast=True)
        seconds.append(time.process_time() - begin)
    assert min(seconds) <= 0.010
