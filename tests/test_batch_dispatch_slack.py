"""The search within the slack: never against a dispatch that exists, and worth its time."""

from __future__ import annotations

import numpy as np
import pytest
from brute import brute_time
from make_data import layer_time

from moeopt.batch_dispatch import dispatch_batch, layer_batch
from moeopt.batch_dispatch import solve as solving
from moeopt.batch_dispatch.data import LayerBatch
from moeopt.batch_dispatch.descent import descend
from moeopt.batch_dispatch.prices import Prices, on_grid, priced_bound
from moeopt.batch_dispatch.slack import prepare_slack, try_time
from moeopt.batch_dispatch.slack_search import IMPOSSIBLE, POSSIBLE, UNKNOWN
from moeopt.problem import LayerTime

MIXED = ("sum", "max", "p2")


def small(seed: int, form: str) -> tuple[LayerBatch, float]:
    """A batch of five experts on three GPUs, and the least time of whole tokens."""
    rng = np.random.default_rng(seed)
    time = layer_time(form, rng)
    hosts = rng.random((5, 3)) < 0.5
    hosts[np.arange(5), rng.integers(0, 3, 5)] = True
    counts = rng.integers(1, 8, 5)
    where = tuple(tuple(np.flatnonzero(row).tolist()) for row in hosts)
    least = brute_time(time, where, tuple(counts.tolist()), True)
    return layer_batch(hosts, counts, time), least


def best_prices(batch: LayerBatch) -> Prices:
    _, activation, token, _ = descend(batch, 1.0 / batch.copies[batch.owner])
    return on_grid(batch, activation, token)


@pytest.mark.parametrize("form", MIXED)
def test_no_time_of_a_dispatch_is_impossible(form: str) -> None:
    proved = 0
    for seed in range(20):
        batch, least = small(seed, form)
        rng = np.random.default_rng(seed)
        random = Prices(rng.integers(0, 9, 3), rng.integers(0, 9, 3))
        for prices in (random, best_prices(batch)):
            slack = prepare_slack(batch, prices)
            assert slack is not None
            for factor in (1.0, 1.0 + 1e-9, 1.05):
                answer, sent, _ = try_time(slack, least * factor, 100_000)
                assert answer == POSSIBLE
                assert sent is not None
                assert np.add.reduceat(sent, batch.first[:-1]).tolist() == batch.tokens.tolist()
        low = priced_bound(batch, prices)
        for part in (0.3, 0.6, 0.9, 0.999):
            proved += try_time(slack, low + part * (least - low), 100_000)[0] == IMPOSSIBLE
    # Not all: a group of GPUs may divide a split expert as it likes.
    assert proved > 20


def test_bounds_are_raised_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    hosts = np.zeros((256, 8), dtype=bool)
    hosts[np.arange(256), rng.permutation(np.arange(256) % 8)] = True
    hosts[np.arange(20), (hosts.argmax(axis=1)[:20] + 3) % 8] = True
    counts = rng.integers(5, 40, 256)
    batch = layer_batch(hosts, counts, LayerTime("sum", 0.0, 14.78, 0.0, 0.0945))
    found = dispatch_batch(batch)
    monkeypatch.setattr(solving, "_NODES", 0)
    without = dispatch_batch(batch)
    assert (without.proof, found.proof) == ("linear program", "slack")
    assert without.bound < found.bound <= found.time <= without.time
    assert found.gap < 0.75 * without.gap


def test_a_search_without_steps_proves_nothing() -> None:
    batch, least = small(0, "sum")
    slack = prepare_slack(batch, best_prices(batch))
    assert slack is not None
    assert try_time(slack, least, 0) == (UNKNOWN, None, 0)


def test_too_many_choices_are_not_searched() -> None:
    batch = layer_batch(np.ones((64, 2), dtype=bool), [3] * 64, LayerTime("sum", 0.0, 1.0, 0.0, 1))
    assert prepare_slack(batch, Prices(np.ones(2, np.int64), np.ones(2, np.int64))) is None
