"""Bounds over time: monotone, thin, and never better than what was proved in the end."""

from __future__ import annotations

import itertools
import random

import pytest

from moeopt.catalog import read_instance
from moeopt.comparing import lp_bound, root_bound
from moeopt.prepare import prepare
from moeopt.solvers.base import SolveSettings
from moeopt.trajectory import MOST_POINTS, Trajectory


def test_only_improvements_are_kept():
    trajectory = Trajectory()
    for point in [(0.1, None, 1.0), (0.2, None, 1.0), (0.3, 4.0, None), (0.4, 5.0, 0.5)]:
        trajectory.add(*point)
    trajectory.add(0.5, 3.0, 2.0)
    rows = trajectory.points(1.0, 3.0, 2.5)
    assert rows == [(0.1, None, 1.0), (0.3, 4.0, 1.0), (0.5, 3.0, 2.0), (1.0, 3.0, 2.5)]


def test_no_claim_is_better_than_the_final_bounds():
    trajectory = Trajectory()
    trajectory.add(0.1, 1.0, 0.9)  # a solver's claims
    trajectory.add(0.2, 1.0, 0.99)
    assert trajectory.points(0.3, 1.1, 0.95) == [(0.1, 1.1, 0.9), (0.2, 1.1, 0.95)]
    # The checker rejected the plan; the bound was not proved.
    assert trajectory.points(0.3, None, 0.5) == [(0.1, None, 0.5)]
    assert trajectory.points(0.3, None, None) == []


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 50 * MOST_POINTS])
def test_thinning_keeps_ends_order_and_truth(count):
    rng = random.Random(count)
    trajectory, known = Trajectory(), {}
    seconds, upper, lower = 0.0, 1000.0, 0.0
    for _ in range(count):
        seconds += rng.expovariate(10)
        upper, lower = upper - 400 * rng.random() / count, lower + 400 * rng.random() / count
        trajectory.add(seconds, upper, lower)
        known[round(seconds, 3)] = (upper, lower)
    rows = trajectory.points(seconds + 1, upper, lower)
    assert len(rows) <= MOST_POINTS
    assert rows[0][0] == min(known)
    assert rows[-1][1:] == (upper, lower)
    for before, after in itertools.pairwise(rows):
        assert before[0] <= after[0]
        assert before[1] >= after[1]
        assert before[2] <= after[2]
    assert all(at in known for at, *_ in rows)


@pytest.mark.parametrize("solver", ["highs", "cpsat"])
def test_bounds_at_the_root_lie_between_lp_and_optimum(solver):
    optimum = 1.1
    data = prepare(read_instance("smoke_replication_pairs"), "replication")
    settings = SolveSettings(time_limit_s=60.0)
    lp = lp_bound(data, "replication_matching", settings)
    root = root_bound(data, "replication_matching", solver, settings)
    assert lp is not None
    assert root is not None
    assert lp - 1e-9 <= root <= optimum
