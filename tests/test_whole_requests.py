"""Whole requests on GPUs: the largest cache from below, and from above, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moeopt.joint.memory import Memory
from moeopt.joint.repair import place_requests
from moeopt.joint.whole_requests import largest_cache, least_sum, level_caches


def requests(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Counts and bytes of three classes, and a number of GPUs."""
    counts = rng.integers(0, 3, 3)
    counts[0] += 1
    return counts, rng.integers(1, 30, 3) * int(rng.integers(1, 4)), int(rng.integers(2, 4))


def brute_largest(sizes: np.ndarray, gpus: int) -> int:
    """Least possible largest cache."""
    return min(
        max(int(sizes[np.array(where) == g].sum()) for g in range(gpus))
        for where in itertools.product(range(gpus), repeat=len(sizes))
    )


def test_largest_cache_is_a_bound_of_every_dealing_and_often_attained():
    rng = np.random.default_rng(0)
    bounds, plans = 0, 0
    for _ in range(60):
        counts, kv, gpus = requests(rng)
        best = brute_largest(np.repeat(kv, counts), gpus)
        bound = largest_cache(counts, kv, gpus)
        assert bound <= best
        bounds += bound == best
        z = np.zeros((3, gpus), dtype=np.int64)
        z[:, 0] = counts
        level_caches(z, np.full(gpus, 10_000), kv)
        assert (z >= 0).all()
        assert (z.sum(axis=1) == counts).all()
        assert best <= (kv @ z).max()
        plans += (kv @ z).max() == best
    assert bounds > 45
    assert plans > 55


def test_least_sum_is_the_next_subset_sum():
    rng = np.random.default_rng(1)
    for _ in range(40):
        counts, kv, _ = requests(rng)
        sizes = np.repeat(kv, counts)
        sums = {sum(c) for r in range(len(sizes) + 1) for c in itertools.combinations(sizes, r)}
        for least in {0, 1, int(sizes.sum() // 2), int(sizes.sum())}:
            assert least_sum(counts, kv, least) == min(s for s in sums if s >= least)
    assert least_sum(np.array([2]), np.array([0]), 0) == 0


@pytest.mark.parametrize("seed", range(4))
def test_levelling_keeps_to_the_room(seed):
    rng = np.random.default_rng(seed)
    kv = rng.integers(50, 400, 6) * 1024
    counts = rng.integers(5, 40, 6)
    total = int(kv @ counts)
    left = (total * np.array([0.1, 0.4, 0.4, 0.4])).astype(np.int64)
    z = place_requests(counts, left, Memory(0, left, kv, 0, 1, False))
    assert z is not None
    used = kv @ z
    assert (z.sum(axis=1) == counts).all()
    assert (used <= left).all()
    # The first GPU is as full as it can be, the other three share the rest almost evenly.
    assert used.max() <= (total - used[0]) / 3 + 2 * 1024
    assert used[0] >= left[0] - kv.min()
