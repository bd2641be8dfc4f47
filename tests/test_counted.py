"""Layers whose time counts tokens: times of plans, gains of copies, annealing."""

from __future__ import annotations

import numpy as np
import pytest
from make_data import random_data

from moeopt.dispatch import COMPILED, layer_times
from moeopt.heuristics.counted import GrowingLayer, anneal_layers, counted_layers
from moeopt.heuristics.counted_kernels import set_copy

FORMS = ("unit", "sum", "max", "p2")


def random_hosts(data, rng, extra):
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    for l in range(data.layers):
        hosts[l, np.arange(data.experts), rng.integers(data.gpus, size=data.experts)] = True
        for _ in range(extra):
            hosts[l, rng.integers(data.experts), rng.integers(data.gpus)] = True
    return hosts


def make(form, seed):
    rng = np.random.default_rng(seed)
    sizes = {"experts": 6, "gpus": 3, "top_k": 3, "scenarios": 8, "max_tokens": 5}
    return random_data("replication", rng, form=form, **sizes), rng


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_times_are_exact_without_replicas_and_never_below(form, seed):
    data, rng = make(form, seed)
    for extra in (0, 3):
        hosts = random_hosts(data, rng, extra)
        for l, layer in enumerate(counted_layers(data)):
            best = layer_times(data.layer_time, data.scenarios[l], hosts[l])[0]
            found = layer.times(hosts[l])
            if extra == 0:
                np.testing.assert_allclose(found, best, rtol=1e-12)
            assert (found >= best * (1 - 1e-12)).all()


@pytest.mark.parametrize("form", ["sum", "max", "p2"])
def test_many_scenarios_are_judged_by_the_compiled_rule(form, monkeypatch):
    data, rng = make(form, 11)
    hosts = random_hosts(data, rng, 4)[0]
    few, how = layer_times(data.layer_time, data.scenarios[0], hosts)
    assert COMPILED not in how
    monkeypatch.setattr("moeopt.dispatch.COMPILED_FROM", 3)
    many, how = layer_times(data.layer_time, data.scenarios[0], hosts)
    assert how == COMPILED
    assert not how.startswith("exact")
    assert (many >= few * (1 - 1e-12)).all()
    assert many.sum() <= few.sum() * 1.1


@pytest.mark.parametrize("form", FORMS)
def test_gains_and_changes_are_differences_of_times(form):
    data, rng = make(form, 7)
    hosts = random_hosts(data, rng, 2)[0]
    layer = counted_layers(data)[0]
    candidates = np.argwhere(~hosts)
    growing = GrowingLayer(layer, hosts)
    gains = growing.gains(candidates)
    for (e, g), gain in zip(candidates.tolist(), gains.tolist(), strict=True):
        more = hosts.copy()
        more[e, g] = True
        assert gain == pytest.approx(layer.expected(hosts) - layer.expected(more), abs=1e-9)
    e, g = candidates[0].tolist()
    growing.add(e, g)
    more = growing.hosts
    others = np.argwhere(~more)
    again = GrowingLayer(layer, more).gains(others)
    np.testing.assert_allclose(growing.gains(others), again, atol=1e-9)
    state = layer.state(hosts)
    for e, g in candidates.tolist():
        set_copy(e, g, True, layer.first, layer.row, layer.count, *state)
        set_copy(e, g, False, layer.first, layer.row, layer.count, *state)
    for after, before in zip(state, layer.state(hosts), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_annealing_is_never_worse_and_keeps_the_room(form):
    gained = 0.0
    for seed in range(6):
        data, rng = make(form, seed)
        hosts = random_hosts(data, rng, 2)
        layer = counted_layers(data)[0]
        limit = hosts[0].sum(axis=0) + rng.integers(0, 2, size=data.gpus)
        found = layer.anneal(hosts[0], limit, seed=seed, time_limit_s=0.2)
        assert found.any(axis=1).all()
        assert (found.sum(axis=0) <= limit).all()
        gain = layer.expected(hosts[0]) - layer.expected(found)
        assert gain >= -1e-9
        gained += gain
        again = anneal_layers(data, hosts, seed=0, deadline=-1.0)
        assert np.array_equal(again, hosts)  # no time
    assert gained > 0
