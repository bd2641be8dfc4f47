"""Counts that leave room beside large pieces."""

from __future__ import annotations

import numpy as np

from moeopt.balance import balance_data, solve_balance
from moeopt.balance.crowding import crowding, make_room
from moeopt.balance.even import mean_largest
from moeopt.balance.greedy import greedy_counts


def test_no_plan_with_these_counts_is_below_their_crowding() -> None:
    tight = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gpus, experts = int(rng.integers(2, 6)), int(rng.integers(6, 12))
        slots = rng.integers(2, 5, gpus)
        weight = rng.lognormal(0, 1.5, experts)
        # A random plan: whatever its counts are, no expert twice on a GPU.
        plan = np.concatenate([rng.choice(experts, q, replace=False) for q in slots])
        count = np.bincount(plan, minlength=experts)
        kept = np.flatnonzero(count)
        data = balance_data(weight[kept], gpus=gpus, slots=slots)
        largest = mean_largest(data, 0, np.searchsorted(kept, plan))
        bound = crowding(weight[kept], count[kept], np.cumsum(np.sort(slots)))
        assert bound <= largest * (1 + 1e-12)
        tight += bound > 0.9 * largest
    assert tight > 20


def test_one_piece_more_finds_room() -> None:
    """A heavy expert in 7 pieces needs the 14 smallest experts, more than there are small ones."""
    weight = np.random.default_rng(0).lognormal(0, 1, (58, 256))[36]
    room = np.cumsum(np.full(96, 3))
    count = greedy_counts(weight, 288, 96)
    before = crowding(weight, count, room)
    made = count.copy()
    make_room(weight, made, room)
    mean = weight.sum() / 96
    assert made.sum() == 288
    assert made.min() == 1
    assert crowding(weight, made, room) < mean < 1.005 * mean < before
    outcome = solve_balance(balance_data(weight, gpus=96, replicas=288))
    assert outcome.gap[0] < 0.005
