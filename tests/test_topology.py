"""The problem ``topology``: flow, prices, copies and baselines against brute force and the LP."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linprog
from topology_brute import assert_fits, brute_topology, random_data

from moeopt.errors import InputError
from moeopt.topology.baselines import BASELINES
from moeopt.topology.bounds import layers_bound
from moeopt.topology.certificate import certified
from moeopt.topology.data import TopologyData
from moeopt.topology.exact import layer_values, on_grid, value_above
from moeopt.topology.flow import best_flow
from moeopt.topology.solve import bound, find_plan
from moeopt.topology.spread import copies_on_servers, hosts_of


def lp_value(data: TopologyData) -> float:
    """The relaxation of the published program, without any code of the package's own."""
    shape = (data.layers, data.experts, data.servers)
    columns = np.arange(np.prod(shape)).reshape(shape)
    cost = (data.weight[:, :, None] * data.cost[:, None, :]).ravel()
    rows, right = [], []
    for s in range(data.servers):
        groups = [(columns[:, :, s], data.capacity[s])]
        groups += [(columns[l, :, s], data.capacity_per_layer[s]) for l in range(data.layers)]
        for members, room in groups:
            row = np.zeros(cost.size)
            row[members.ravel()] = 1
            rows.append(row)
            right.append(room)
    each = np.kron(np.eye(data.layers * data.experts), np.ones(data.servers))
    result = linprog(cost, np.array(rows), right, each, np.ones(len(each)))
    assert result.status == 0
    return float(result.fun)


# --- one copy of each expert ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_flow_is_the_lp_and_the_certificate_is_the_flow(seed: int) -> None:
    data = random_data(seed)
    flow = best_flow(data)
    assert flow is not None
    assert_fits(data, flow.plan)
    assert (flow.plan.sum(axis=2) == 1).all()
    value = value_above(data, flow.plan)
    assert value == pytest.approx(lp_value(data), rel=1e-9, abs=1e-9)  # the LP is integral
    assert flow.value <= value
    assert flow.value == pytest.approx(value, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("seed", range(40, 52))
def test_flow_is_the_best_of_all_plans(seed: int) -> None:
    data = random_data(seed, small=True)
    flow = best_flow(data)
    assert flow is not None
    best, servers = brute_topology(data)
    assert len(servers) == data.layers
    assert value_above(data, flow.plan) == pytest.approx(best, rel=1e-12, abs=1e-12)
    assert flow.value <= best * (1 + 1e-15)
    layers = layers_bound(data)
    assert layers is not None
    assert layers <= best * (1 + 1e-15)


def test_any_prices_are_a_bound_but_not_negative_ones() -> None:
    data = random_data(41, small=True)
    best, _ = brute_topology(data)
    grid = on_grid(data)
    rng = np.random.default_rng(0)
    largest = int(grid.weight.max() * grid.cost.max())
    for _ in range(50):
        server = rng.integers(0, largest + 1, data.servers)
        layer = rng.integers(0, largest + 1, (data.layers, data.servers))
        assert certified(data, grid, server, layer) <= best
    with pytest.raises(ValueError, match="negative"):
        certified(data, grid, server - largest - 1, layer)


def test_no_flow_without_room() -> None:
    data = random_data(3)
    full = replace(data, capacity=np.zeros_like(data.capacity))
    assert best_flow(full) is None
    assert find_plan(full) is None
    assert bound(full) is None


def test_values_are_exact() -> None:
    data = TopologyData(
        hops=np.array([[0.0, 0.3], [0.7, 0.0]]),
        node_of_gpu=np.arange(2),
        dispatch=np.array([[0, 1]]),
        collect=np.array([[1, 1]]),
        share=np.array([0.25, 0.75]),
        weight=np.array([[0.1, 0.2]]),
        capacity=np.array([2, 2]),
        capacity_per_layer=np.array([2, 2]),
        replicas=1,
    )
    plan = np.array([[[True, False], [True, True]]])
    alone = Fraction(0.25) * Fraction(0.3) + Fraction(0.75) * (Fraction(0.7) + Fraction(0.3))
    near = Fraction(0.25) * Fraction(0.3)
    assert layer_values(data, plan) == [Fraction(0.1) * alone + Fraction(0.2) * near]
    value = value_above(data, plan)
    assert Fraction(value) >= layer_values(data, plan)[0] > Fraction(np.nextafter(value, 0))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_fit_and_are_no_better_than_the_flow(name: str) -> None:
    for seed in range(30):
        data = random_data(seed)
        plan = BASELINES[name](data, seed)
        assert_fits(data, plan)
        assert (plan.sum(axis=2) == 1).all()
        flow = best_flow(data)
        assert flow is not None
        assert value_above(data, plan) >= flow.value


def test_baselines_in_ample_room() -> None:
    data = TopologyData(
        hops=1.0 - np.eye(3),
        node_of_gpu=np.arange(3),
        dispatch=np.array([[0], [2]]),
        collect=np.array([[0], [2]]),
        share=np.ones(1),
        weight=np.array([[1.0, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]),
        capacity=np.full(3, 6),
        capacity_per_layer=np.full(3, 3),
    )
    where = {name: rule(data, 0).argmax(axis=2).tolist() for name, rule in BASELINES.items()}
    assert where["round robin"] == [[0, 1, 2, 0, 1, 2]] * 2
    assert where["contiguous"] == [[0, 0, 1, 1, 2, 2]] * 2
    assert where["greedy"][0] == [2, 1, 1, 0, 0, 0] or where["greedy"][0][3:] == [0, 0, 0]
    assert where["random"] == BASELINES["random"](data, 0).argmax(axis=2).tolist()
    assert where["random"] != BASELINES["random"](data, 1).argmax(axis=2).tolist()


# --- GPUs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_experts_are_dealt_out_evenly(seed: int) -> None:
    data = random_data(seed)
    flow = best_flow(data)
    assert flow is not None
    hosts = hosts_of(data, flow.plan)
    assert (copies_on_servers(data, hosts) == flow.plan).all()
    for s in range(data.servers):
        mine = hosts[:, :, data.node_of_gpu == s]
        assert (mine.sum(axis=1).max(axis=1) <= -(-flow.plan[:, :, s].sum(axis=1) // 2)).all()
        assert mine.sum(axis=(0, 1)).max() <= -(-flow.plan[:, :, s].sum() // 2)


def test_data_that_do_not_fit_are_refused() -> None:
    data = random_data(0)
    for change, words in (
        ({"hops": data.hops[:1]}, "hops: shape"),
        ({"hops": data.hops + 1}, "0 on the diagonal"),
        ({"dispatch": data.dispatch + 9}, "dispatch: servers are"),
        ({"collect": data.collect[:, :0]}, "collect: shape"),
        ({"weight": -1 - data.weight}, "weight: finite"),
        ({"replicas": -1}, "replicas"),
        ({"capacity": data.capacity - 99}, "below 0"),
        ({"node_of_gpu": data.node_of_gpu + 9}, "node_of_gpu"),
    ):
        with pytest.raises(InputError, match=words):
            replace(data, **change)
