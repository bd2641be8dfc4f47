"""Copies in ``topology``: rents of places, the greedy guarantee and the search."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import e as EULER

import numpy as np
import pytest
from topology_brute import assert_fits, brute_topology, random_data

from moeopt.topology.bounds import copies_are_useless, copies_bound, layers_bound
from moeopt.topology.classes import groups_of
from moeopt.topology.copies import add_greedily
from moeopt.topology.data import TopologyData
from moeopt.topology.exact import layer_values, value_above
from moeopt.topology.flow import best_flow
from moeopt.topology.prices import certified as certified_rents
from moeopt.topology.prices import price_bound
from moeopt.topology.prices_program import Prices, solve_prices
from moeopt.topology.search import anneal
from moeopt.topology.small_sets import largest_size, least_of_small_sets
from moeopt.topology.solve import find_plan


def with_copies(seed: int) -> TopologyData:
    data = random_data(seed, replicas=1 + seed % 4, small=True)
    return replace(data, capacity=np.minimum(data.capacity + 1, data.layers * data.experts))


@pytest.mark.parametrize("seed", range(60, 80))
def test_bounds_of_copies_hold_and_plans_fit(seed: int) -> None:
    data = with_copies(seed)
    best, _ = brute_topology(data)
    slack = 1e-12 * max(1.0, best)
    for value in (price_bound(data), copies_bound(data), layers_bound(data)):
        assert value is None or value <= best + slack
    found = find_plan(data)
    assert found is not None
    assert found.value is not None
    assert_fits(data, found.plan)
    assert found.value <= best + slack <= value_above(data, found.plan) + 2 * slack


def test_rents_are_tight_on_many_small_instances() -> None:
    gaps = []
    for seed in range(60, 90):
        data = with_copies(seed)
        best, _ = brute_topology(data)
        value = price_bound(data)
        assert value is not None
        if best > 0:
            gaps.append(1 - value / best)
    assert len(gaps) >= 20
    assert np.mean(gaps) < 0.05


def test_any_rents_are_a_bound() -> None:
    rng = np.random.default_rng(0)
    for seed in (61, 66, 71):
        data = with_copies(seed)
        best, _ = brute_topology(data)
        groups, unit = groups_of(data, 4)
        largest = max(float(group.weights[-1] * group.way.max()) for group in groups)
        for _ in range(10):
            prices = Prices(
                largest * rng.random(data.servers),
                largest * rng.random((len(groups), data.servers)),
                float(largest * rng.random()),
            )
            value = certified_rents(data, groups, prices, unit)
            assert value is not None
            assert value <= best * (1 + 1e-12)
        nonsense = Prices(
            np.full(data.servers, np.nan), -np.ones((len(groups), data.servers)), np.inf
        )
        assert certified_rents(data, groups, nonsense, unit) is not None
        solved = solve_prices(data, groups)
        assert solved is not None
        assert certified_rents(data, groups, solved, unit, late=lambda: True) is None


def test_large_sets_are_bounded_where_they_are_too_many_to_look_at(monkeypatch) -> None:
    from moeopt.topology import prices

    for seed in range(60, 75):
        data = with_copies(seed)
        best, _ = brute_topology(data)
        whole = price_bound(data)
        monkeypatch.setattr(prices, "largest_size", lambda servers: 1)
        part = price_bound(data)
        monkeypatch.undo()
        assert part is not None
        assert whole is not None
        assert part <= best + 1e-12
        assert part <= whole + 1e-9


def test_small_sets_are_all_looked_at() -> None:
    rng = np.random.default_rng(3)
    way, rent = rng.integers(0, 9, (3, 5)), rng.integers(0, 6, 5)
    knots = np.array([0, 1, 4])
    found = least_of_small_sets(way, rent, knots, 3)
    for m, weight in enumerate(knots.tolist()):
        for size in range(1, 4):
            values = [
                weight * way[:, list(s)].min(axis=1).sum() + rent[list(s)].sum()
                for s in combinations(range(5), size)
            ]
            assert found[m, size - 1] == min(values)
    assert [largest_size(s) for s in (1, 4, 16, 32, 64)] == [1, 4, 16, 4, 3]


def test_one_stream_needs_no_copies() -> None:
    data = replace(random_data(9, small=True), replicas=3)
    data = replace(
        data, dispatch=data.dispatch[:, :1], collect=data.collect[:, :1], share=np.ones(1)
    )
    assert copies_are_useless(data)
    assert brute_topology(data)[0] == brute_topology(replace(data, replicas=0))[0]
    assert copies_bound(data) is None
    found = find_plan(data)
    assert found is not None
    assert found.method == "server flow"


def saving(data: TopologyData, base: np.ndarray, plan: np.ndarray) -> float:
    values = [sum(layer_values(data, p), Fraction(0)) for p in (base, plan)]
    return float(values[0] - values[1])


def best_saving(data: TopologyData, base: np.ndarray) -> float:
    """The most that any copies beside the given first ones save."""
    places = np.argwhere(~base).tolist()
    best = 0.0
    for size in range(min(data.replicas, len(places)) + 1):
        for chosen in combinations(places, size):
            plan = base.copy()
            plan[tuple(np.array(chosen, dtype=int).reshape(-1, 3).T)] = True
            if (plan.sum(axis=(0, 1)) <= data.capacity).all() and (
                plan.sum(axis=1) <= data.capacity_per_layer
            ).all():
                best = max(best, saving(data, base, plan))
    return best


@pytest.mark.parametrize("roomy", [True, False])
def test_greedy_keeps_its_guarantee(roomy: bool) -> None:
    for seed in range(60, 84):
        data = replace(with_copies(seed), replicas=2)
        if roomy:  # only the number of copies limits
            full = np.full(data.servers, data.layers * data.experts)
            data = replace(data, capacity=full, capacity_per_layer=full)
        flow = best_flow(data)
        assert flow is not None
        assert share_of_best(data, flow.plan) >= (1 - 1 / EULER if roomy else 0.5) - 1e-9


def share_of_best(data: TopologyData, base: np.ndarray) -> float:
    plan = add_greedily(data, base)
    assert (plan >= base).all()
    assert_fits(data, plan)
    best = best_saving(data, base)
    return saving(data, base, plan) / best if best > 0 else 1.0


def first_on_server_0(hops: np.ndarray, starts: list[list[int]], **more) -> TopologyData:
    """One expert a layer, of weight 1; tokens end where they start."""
    servers, layers = len(hops), len(starts)
    defaults = {
        "node_of_gpu": np.arange(servers),
        "share": np.full(len(starts[0]), 1 / len(starts[0])),
        "capacity": np.full(servers, layers),
        "capacity_per_layer": np.ones(servers, dtype=int),
        "replicas": 2,
    }
    streams = np.array(starts)
    weight = np.ones((layers, 1))
    return TopologyData(hops, dispatch=streams, collect=streams, weight=weight, **(defaults | more))


def test_greedy_is_not_always_the_best() -> None:
    # Room for one copy on server 1 and one on 2: greedy gives 1 to layer 0, which 2 serves almost
    # as well; layer 1, whose tokens start on server 3, is left with nothing.
    hops = np.full((4, 4), 10.0) * (1 - np.eye(4))
    hops[1, 2] = hops[2, 1] = hops[3, 1] = hops[1, 3] = 1
    data = first_on_server_0(hops, [[1], [3]], capacity=np.array([2, 1, 1, 0]))
    base = np.zeros((2, 1, 4), dtype=bool)
    base[:, :, 0] = True
    assert share_of_best(data, base) == pytest.approx(20 / 36)
    # Two copies for four streams: server 3 serves the middle two, 1 and 2 serve two each.
    hops = np.full((8, 8), 10.0) * (1 - np.eye(8))
    for start, near in ((4, 1), (5, 1), (5, 3), (6, 3), (6, 2), (7, 2)):
        hops[start, near] = hops[near, start] = 1
    share = np.array([1, 1.1, 1.1, 1])
    data = first_on_server_0(hops, [[4, 5, 6, 7]], share=share)
    base = np.zeros((1, 1, 8), dtype=bool)
    base[:, :, 0] = True
    assert share_of_best(data, base) == pytest.approx((2.2 * 18 + 20) / (4.2 * 18))


def test_search_improves_greedy_and_keeps_all_limits() -> None:
    rng = np.random.default_rng(5)
    servers, experts = 8, 64
    hops = np.where(np.arange(8)[:, None] // 2 == np.arange(8) // 2, 1.0, 3.0)
    np.fill_diagonal(hops, 0)
    everywhere = np.tile(np.arange(servers), (2, 1))
    data = TopologyData(
        hops=hops,
        node_of_gpu=np.arange(servers),
        dispatch=everywhere,
        collect=everywhere,
        share=np.full(servers, 1 / servers),
        weight=rng.lognormal(0, 1, (2, experts)),
        capacity=np.full(servers, 21),
        capacity_per_layer=np.full(servers, 11),
        replicas=35,
    )
    flow = best_flow(data)
    assert flow is not None
    greedy = add_greedily(data, flow.plan)
    plan = anneal(data, greedy, seed=1)
    assert_fits(data, plan)
    assert (anneal(data, greedy, seed=1) == plan).all()
    value, lower = value_above(data, plan), price_bound(data)
    assert lower is not None
    assert lower <= value < value_above(data, greedy) < value_above(data, flow.plan)
    assert value - lower < 0.02 * value
    assert (anneal(data, greedy, stop=lambda: True) >= 0).all()
