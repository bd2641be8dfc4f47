"""The column bound never exceeds an optimum, whatever its multipliers are."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from brute import brute_optimum
from make_data import random_data, random_scenarios

from moeopt.catalog import read_instance
from moeopt.errors import InputError
from moeopt.heuristics.anneal import anneal_layer
from moeopt.prepare import prepare
from moeopt.proofs.columns import column_bound, supports, verify
from moeopt.proofs.columns_ascent import Multipliers
from moeopt.proofs.columns_lattice import Lattice, count_sets
from moeopt.proofs.columns_patterns import groups_of, improve, partitions, shortfall
from moeopt.proofs.columns_price import BITS, Pricing

SAME = 1e-9  # the judge's own sums are rounded


def all_partitions(items):
    """Partitions of a list, the plain way."""
    if not items:
        yield []
        return
    for rest in all_partitions(items[1:]):
        yield [[items[0]], *rest]
        for i in range(len(rest)):
            yield [*rest[:i], [items[0], *rest[i]], *rest[i + 1 :]]


def case(problem, seed):
    """A tiny layer: 5 to 7 experts on 2 to 4 GPUs, scenarios of 2 to 6 experts of mixed sizes."""
    rng = np.random.default_rng(seed)
    placement = problem == "placement"
    gpus = int(rng.integers(2, 5 if placement else 4))
    # Brute force looks at (2**G - 1)**E plans with replicas.
    experts = int(rng.integers(5, 8 if placement or gpus == 2 else 6))
    top_k = int(rng.integers(2, min(6 if placement else 3, experts) + 1))
    data = random_data(
        problem,
        rng,
        experts=experts,
        gpus=gpus,
        top_k=top_k,
        max_members=int(rng.integers(top_k, min(6, experts) + 1)),
        scenarios=int(rng.integers(1, 12 if placement else 24)),
        spare=int(rng.random() < 0.2),
    )
    assert data.slots is not None
    return data


def bound_of(data, **options):
    return column_bound(
        data.scenarios[0],
        data.experts,
        data.gpus,
        data.slots,
        replicas=data.problem == "replication",
        **options,
    )


def verified(data, multipliers):
    return verify(
        multipliers,
        data.scenarios[0],
        data.experts,
        data.gpus,
        data.slots,
        replicas=data.problem == "replication",
    )


# --- sets and their sums ------------------------------------------------------------------------


@pytest.mark.parametrize(("experts", "largest"), [(1, 1), (4, 2), (6, 6), (7, 4), (3, 5)])
def test_lattice_numbers_every_set_and_adds_up_subsets(experts, largest):
    lattice = Lattice(experts, largest)
    sets = [
        s
        for d in range(min(largest, experts) + 1)
        for s in itertools.combinations(range(experts), d)
    ]
    assert len(lattice) == len(sets) == count_sets(experts, largest)
    number = {s: int(lattice.numbers(np.array(s, dtype=int))) for s in sets}
    assert sorted(number.values()) == list(range(len(sets)))
    assert all(lattice.sets([n]) == [list(s)] for s, n in number.items())
    rng = np.random.default_rng(experts)
    value, weight = rng.integers(-99, 99, len(sets)), rng.integers(-99, 99, experts)
    total, sums = lattice.add_subsets(value.copy()), lattice.sums(weight)
    for s, n in number.items():
        assert total[n] == sum(value[m] for t, m in number.items() if set(t) <= set(s))
        assert sums[n] == sum(weight[e] for e in s)


@pytest.mark.parametrize("k", range(2, 8))
def test_partitions_are_all_of_them(k):
    table = partitions(k)
    found = {frozenset(m for m in row if m) for row in table.parts.tolist()}
    expected = {
        frozenset(sum(1 << i for i in part) for part in p if len(part) > 1)
        for p in all_partitions(list(range(k)))
    } - {frozenset()}
    assert found == expected
    assert len(found) == len(table.parts)


@pytest.mark.parametrize("k", range(2, 8))
@pytest.mark.parametrize("gpus", [2, 8])
def test_prices_stay_valid(k, gpus):
    rng = np.random.default_rng(k)
    group = groups_of(random_scenarios(rng, 9, k, 8), gpus)[0]
    shapes = list(all_partitions(list(range(k))))
    least = -(-k // gpus)
    for _ in range(6):
        for s, price in enumerate(group.price):
            for p in shapes:
                paid = math.fsum(price[sum(1 << i for i in part)] for part in p)
                assert paid <= max(least, *map(len, p)) - least + 1e-9, (s, p)
        assert (group.price >= 0).all()
        assert (shortfall(group) >= -(2**8)).all()
        improve(group, rng.random(group.price.shape) * (rng.random(group.price.shape) < 0.3), 0.7)


def test_column_costs_are_the_prices_of_their_traces():
    rng = np.random.default_rng(5)
    scenarios = random_scenarios(rng, 7, 2, 15, max_members=5)
    groups = groups_of(scenarios, 4)
    for group in groups:
        improve(group, rng.random(group.price.shape), 0.5)
    lattice = Lattice(7, 4)
    cost = Pricing(lattice, groups).cost()
    for n, members in enumerate(lattice.sets(np.arange(len(lattice)))):
        true = 0.0
        for group in groups:
            for s, p in enumerate(group.weight):
                mask = sum(1 << i for i in range(group.k) if group.members[s, i] in members)
                true += p * group.price[s, mask]
        assert true - 1e-12 <= cost[n] * 2.0**-BITS <= true


# --- the bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_placement_is_solved_to_the_optimum(seed):
    data = case("placement", seed)
    optimum, _ = brute_optimum(data)
    found = bound_of(data)
    assert found.root_value <= found.value <= optimum + SAME
    assert found.closed
    assert found.value == pytest.approx(optimum, abs=2e-7)
    assert sorted(e for s in found.sets for e in s) == list(range(data.experts))
    assert found.sets_value == pytest.approx(optimum, abs=2e-7)
    assert max(map(len, found.sets)) <= data.slots
    assert len(found.sets) <= data.gpus
    assert verified(data, found.multipliers) == found.root_value


@pytest.mark.parametrize("seed", range(40))
def test_replication_is_bounded(seed):
    data = case("replication", seed)
    optimum, _ = brute_optimum(data)
    found = bound_of(data)
    assert found.value <= optimum + SAME
    assert verified(data, found.multipliers) == found.root_value


def test_replication_bound_is_often_more_than_the_least_time():
    better = 0
    for seed in range(40):
        data = case("replication", seed)
        layer = data.scenarios[0]
        least = float(layer.weight @ -(-layer.sizes // data.gpus))
        better += bound_of(data).value > least + 1e-3
    assert better >= 10


@pytest.mark.parametrize("problem", ["placement", "replication"])
@pytest.mark.parametrize("seed", range(15))
def test_perturbed_certificates_are_still_valid(problem, seed):
    data = case(problem, seed)
    optimum, _ = brute_optimum(data)
    best = bound_of(data).multipliers
    rng = np.random.default_rng(seed)
    for size in (1e-6, 1e-2, 1.0, 1e3):
        noisy = Multipliers(
            best.dual + size * rng.normal(size=best.dual.shape),
            tuple(p + size * rng.normal(size=p.shape) for p in best.price),
        )
        assert verified(data, noisy) <= optimum + SAME
    broken = Multipliers(
        np.full_like(best.dual, np.nan), tuple(np.full_like(p, np.inf) for p in best.price)
    )
    assert verified(data, broken) <= optimum + SAME


def test_multipliers_of_another_layer_are_refused():
    a, b = case("placement", 1), case("placement", 2)
    with pytest.raises(InputError, match="another layer"):
        verified(b, bound_of(a).multipliers)


def test_an_upper_bound_changes_nothing_but_the_effort():
    for seed in range(8):
        data = case("placement", seed)
        optimum, _ = brute_optimum(data)
        assert bound_of(data, upper=optimum).value == pytest.approx(optimum, abs=2e-7)


def test_stopped_it_returns_the_best_bound_so_far():
    data = prepare(read_instance("gpt-oss-20b_l10_8gpu"), "placement")
    heard = []
    calls = itertools.count()
    found = bound_of(data, stop=lambda: next(calls) >= 6, on_bound=heard.append)
    assert not found.closed
    assert 1.0 < found.value == heard[-1] == max(heard)
    assert heard == sorted(heard)
    assert found.iterations <= 6
    assert verified(data, found.multipliers) == found.root_value
    nothing = bound_of(data, stop=lambda: True)
    assert nothing.iterations <= 1
    assert nothing.value >= 1.0 - SAME


def test_real_layer_is_proved_optimal():
    data = prepare(read_instance("gpt-oss-20b_l10_8gpu"), "placement")
    found = bound_of(data, time_limit_s=120)
    assert found.closed
    assert found.value == pytest.approx(1.0967457573, abs=1e-8)
    assert found.sets_value == pytest.approx(found.value, abs=2e-7)


@pytest.mark.parametrize("name", ["gpt-oss-20b_l10_8gpu_5slots", "dbrx_16x4_seed0_5slots"])
@pytest.mark.parametrize("problem", ["placement", "replication"])
@pytest.mark.parametrize("slots", [5, 6])
def test_no_plan_of_a_real_layer_costs_less(name, problem, slots):
    data = dataclasses.replace(prepare(read_instance(name), problem), slots=slots)
    layer = data.scenarios[0]
    hosts = np.zeros((data.experts, data.gpus), dtype=bool)
    hosts[np.arange(data.experts), np.arange(data.experts) % data.gpus] = True
    _, best = anneal_layer(
        layer, hosts, slots, replicas=problem == "replication", iterations=30_000
    )
    calls = itertools.count()
    found = bound_of(data, stop=lambda: next(calls) >= 40)
    assert 1.0 < found.value <= best
    assert verified(data, found.multipliers) == found.root_value


def test_what_is_too_large_is_said():
    rng = np.random.default_rng(0)
    wide = random_scenarios(rng, 12, 9, 3)
    assert "9 experts" in str(supports(wide, 12, 4, 3))
    narrow = random_scenarios(rng, 64, 4, 3)
    assert "sets of at most 8 of 64" in str(supports(narrow, 64, 8, 8))
    assert "cannot host" in str(supports(narrow, 64, 8, 3))
    assert supports(narrow, 64, 32, 2) is None
    with pytest.raises(InputError, match="sets of at most"):
        column_bound(narrow, 64, 8, 8, replicas=False)
