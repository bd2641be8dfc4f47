"""Heuristics against brute force, the checker and each other."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

import brute
import numpy as np
import pytest
from make_data import random_data

from moeopt import dispatch
from moeopt.bounds import combinatorial_bounds
from moeopt.catalog import read_instance
from moeopt.checker import check_solution
from moeopt.heuristics import anneal as annealing
from moeopt.heuristics import anneal_kernels as kernels
from moeopt.heuristics import (
    anneal_plan,
    anneal_search,
    anneal_times,
    greedy,
    neighbourhood,
    scenario_cut,
)
from moeopt.heuristics.capacity import room, slots, spread
from moeopt.heuristics.placement import place
from moeopt.heuristics.replication import replicate
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.solution import Solution

STEPS = 4_000


def instance(seed: int, problem: str, **changes) -> ProblemData:
    """A tiny random instance of varied size."""
    rng = np.random.default_rng(seed)
    gpus = int(rng.integers(2, 4))
    experts = int(rng.integers(4, 7 if problem == "placement" else 6))
    top_k = int(rng.integers(2, min(experts, 5)))
    arguments = {
        "experts": experts,
        "gpus": gpus,
        "top_k": top_k,
        "scenarios": int(rng.integers(4, 12)),
        "max_members": min(experts, top_k + int(rng.integers(0, 2))),
        "form": "unit",
        "limit": "slots",
        "spare": int(rng.integers(0, 2)),
    }
    return random_data(problem, rng, **(arguments | changes))


def search_of(data: ProblemData, seed: int = 0, **changes) -> anneal_search.Search:
    """A search over all layers, loaded with an even spread."""
    arguments = {"replicas": data.problem == "replication", "seed": seed} | changes
    per_layer = min(slots(data), data.experts)
    search = anneal_search.Search(
        data.scenarios, data.experts, data.gpus, per_layer, room(data), **arguments
    )
    search.load(spread(data))
    return search


def value_of(data: ProblemData, hosts: np.ndarray) -> float:
    report = check_solution(data, Solution.from_arrays(data, hosts))
    assert not report.violations
    return report.objective


# --- whole plans ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("problem", ["placement", "replication"])
def test_reaches_the_optimum(seed, problem):
    data = instance(seed, problem)
    heuristic = place if problem == "placement" else replicate
    plan = heuristic(data, seed=seed, time_limit_s=60, iterations=STEPS)
    report = check_solution(data, plan)
    assert not report.violations
    assert report.objective == pytest.approx(brute.brute_optimum(data)[0], abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("problem", ["placement", "replication"])
@pytest.mark.parametrize("limit", ["memory", "both"])
def test_reaches_the_optimum_where_layers_share_memory(seed, problem, limit):
    data = instance(
        seed, problem, layers=2, experts=4, gpus=2, top_k=2, max_members=3, limit=limit, kinds=2
    )
    heuristic = place if problem == "placement" else replicate
    plan = heuristic(data, seed=seed, time_limit_s=60, iterations=STEPS)
    report = check_solution(data, plan)
    assert not report.violations
    assert report.objective == pytest.approx(brute.brute_optimum(data)[0], abs=1e-9)


@pytest.mark.parametrize("form", ["sum", "max", "p2"])
@pytest.mark.parametrize("problem", ["placement", "replication"])
def test_other_forms_are_not_worse_than_contiguous(form, problem):
    for seed in range(4):
        data = instance(seed, problem, form=form)
        heuristic = place if problem == "placement" else replicate
        report = check_solution(data, heuristic(data, seed=seed, time_limit_s=20))
        assert not report.violations
        base = greedy.contiguous(data)
        if base is not None:
            assert report.objective <= value_of(data, base) + 1e-9
        assert report.objective >= brute.brute_optimum(data)[0] - 1e-9


@pytest.mark.parametrize("name", ["dbrx_16x4_seed0", "dbrx_16x4_seed0_5slots"])
def test_not_worse_than_greedy_and_contiguous(name):
    problem = "replication" if "slots" in name else "placement"
    data = prepare(read_instance(name), problem)
    heuristic = place if problem == "placement" else replicate
    # Almost no annealing: the simple plans must count.
    report = check_solution(data, heuristic(data, time_limit_s=0.0, iterations=1))
    assert not report.violations
    for simple in (greedy.greedy(data), greedy.contiguous(data)):
        assert report.objective <= value_of(data, simple) + 1e-9


@pytest.mark.parametrize(
    ("name", "problem", "value", "iterations"),
    [
        ("dbrx_16x4_seed0", "placement", 1.9138071421469007, 100_000),
        ("gpt-oss-20b_l10_8gpu", "placement", 1.0967457572787405, 200_000),
        pytest.param(
            "dbrx_16x4_seed0_5slots",
            "replication",
            1.66611837958355,
            1_500_000,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_finds_the_best_known_plans(name, problem, value, iterations):
    data = prepare(read_instance(name), problem)
    hosts = annealing.anneal(data, seed=1, iterations=iterations)
    assert value_of(data, hosts) == pytest.approx(value, abs=1e-9)
    assert combinatorial_bounds(data)[0].value <= value


@pytest.mark.parametrize("problem", ["placement", "replication"])
def test_iterations_and_seed_decide(problem):
    data = instance(3, problem, layers=2, experts=6, gpus=3)
    plans = [annealing.anneal(data, seed=5, iterations=STEPS) for _ in range(2)]
    assert np.array_equal(*plans)
    heuristic = place if problem == "placement" else replicate
    solutions = [heuristic(data, seed=5, time_limit_s=600, iterations=STEPS) for _ in range(2)]
    assert solutions[0] == solutions[1]


def test_stop_and_time_limit():
    data = prepare(read_instance("gpt-oss-20b_l10_8gpu_5slots"), "replication")
    warm = instance(0, "replication")
    replicate(warm, iterations=100)  # compiled now
    begin = time.monotonic()
    hosts = annealing.anneal(data, time_limit_s=1.0)
    assert time.monotonic() - begin < 20
    assert value_of(data, hosts) < value_of(data, spread(data))
    calls = itertools.count()
    plan = replicate(data, time_limit_s=600, stop=lambda: next(calls) > 3)
    assert not check_solution(data, plan).violations
    assert next(calls) < 100
    assert replicate(data, time_limit_s=600, stop=lambda: True) is not None


def test_single_layer_interface():
    data = instance(1, "replication")
    start = spread(data)[0]
    hosts, value = annealing.anneal_layer(
        data.scenarios[0], start, data.slots, replicas=True, iterations=STEPS
    )
    assert value == pytest.approx(value_of(data, hosts[None]), abs=1e-12)
    assert value <= annealing.exact_value(data.scenarios[0], start)
    with pytest.raises(ValueError, match="room"):
        annealing.anneal_layer(data.scenarios[0], start, 1, replicas=True, iterations=10)


# --- kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 9))
def test_matching_and_formula_agree_with_hall(size):
    rng = np.random.default_rng(size)
    for gpus in (1, 2, 3, 5, 8):
        masks = rng.integers(1, 2**gpus, (200, size))
        sparse = np.minimum(masks, masks & rng.integers(0, 2**gpus, (200, size)))
        masks = np.where(sparse > 0, sparse, masks)
        expected = dispatch.unit_times(masks)
        place = np.zeros(size, dtype=np.int64)
        scratch = np.zeros((3, gpus), dtype=np.int64)
        for row, time_ in zip(masks, expected, strict=True):
            bits = row.astype(np.uint64)
            assert anneal_times.match(size, bits, place, scratch) == time_
            assert np.bincount(place).max() == time_
            assert (row >> place & 1).all()
            if size <= 4:
                padded = np.full(4, 2**64 - 1, dtype=np.uint64)
                padded[:size] = bits
                assert anneal_times.time_of_four(*padded) == time_


def moves(search: anneal_search.Search):
    rows, plan = search.rows, search.plan
    cells = range(len(plan.content))
    for c, d in itertools.combinations(cells, 2):
        if anneal_plan.can_swap(rows, plan, c, d):
            yield c, d, -1
    if search.replicas:
        for c, j in itertools.product(cells, range(len(plan.mask))):
            if anneal_plan.can_replace(rows, plan, c, j):
                yield c, -1, j


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("problem", ["placement", "replication"])
@pytest.mark.parametrize("top_k", [2, 4, 6])
def test_change_is_the_difference(seed, problem, top_k):
    shared = bool(seed % 2)
    data = instance(
        seed,
        problem,
        experts=8,
        gpus=int(np.random.default_rng(seed).integers(2, 5)),
        top_k=top_k,
        max_members=top_k + 1,
        scenarios=30,
        spare=2,
        layers=2 if shared else 1,
        limit="both" if shared else "slots",
    )
    search = search_of(data, seed)
    rng = np.random.default_rng(seed)
    many = search.replicas
    for _ in range(60):
        possible = list(moves(search))
        c, d, j = possible[rng.integers(len(possible))]
        before = search.value
        delta = anneal_plan.change(search.rows, search.plan, many, c, d, j, search.work)
        anneal_plan.apply(search.rows, search.plan, many, c, d, j, search.work)
        hosts = search.hosts()
        exact = value_of(data, hosts)  # checks slots, memory and hosting too
        assert before + delta == pytest.approx(exact, abs=1e-9)
        assert float(search.rows.weight @ search.plan.time) == pytest.approx(exact, abs=1e-9)
        # What moves keep is what a fresh start would compute.
        kept = [np.copy(a) for a in (search.plan.time, search.plan.cell, search.plan.mask)]
        counts = search.plan.count.copy()
        search.restore(search.plan.content.copy())
        for a, b in zip(kept, (search.plan.time, search.plan.cell, search.plan.mask), strict=True):
            assert np.array_equal(a, b)
        assert np.array_equal(counts, search.plan.count)


def test_descent_ends_in_a_local_optimum():
    for seed in range(6):
        data = instance(seed, "replication", experts=7, gpus=3, scenarios=25, spare=1)
        search = search_of(data)
        search.descend()
        for c, d, j in moves(search):
            delta = anneal_plan.change(search.rows, search.plan, True, c, d, j, search.work)
            assert delta >= -kernels.LEAST_GAIN


def test_random_numbers_are_uniform():
    random = np.array([12345], dtype=np.uint64)
    draws = np.array([kernels._below(random, 7) for _ in range(14_000)])
    assert set(draws.tolist()) == set(range(7))
    assert np.abs(np.bincount(draws) - 2000).max() < 250
    reals = np.array([kernels._real(random) for _ in range(10_000)])
    assert 0 <= reals.min() < 0.01
    assert 0.99 < reals.max() < 1
    assert abs(reals.mean() - 0.5) < 0.02


# --- neighbourhoods ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_split_is_the_best_of_all(seed):
    data = instance(
        seed, "placement", experts=9, gpus=3, top_k=3, max_members=5, scenarios=30, spare=seed % 2
    )
    search = search_of(data)
    start, hosts = search.value, search.hosts()[0]
    freed = np.flatnonzero(hosts[:, 0] | hosts[:, 1])
    best = math.inf
    for chosen in itertools.combinations(freed, int(hosts[:, 0].sum())):
        trial = hosts.copy()
        trial[freed, :2] = False
        trial[list(chosen), 0] = True
        trial[[e for e in freed if e not in chosen], 1] = True
        best = min(best, annealing.exact_value(data.scenarios[0], trial))
    gain = neighbourhood.split_pair(search, 0, 1)
    assert start - gain == pytest.approx(best, abs=1e-9)
    assert search.value == pytest.approx(best, abs=1e-9)
    assert value_of(data, search.hosts()) == pytest.approx(best, abs=1e-9)


def test_neighbourhoods_only_improve():
    for problem in ("placement", "replication"):
        data = instance(
            2, problem, experts=12, gpus=4, top_k=4, max_members=5, scenarios=60, spare=1
        )
        search = search_of(data)
        before = search.value
        after = neighbourhood.improve(search)
        assert after < before
        assert value_of(data, search.hosts()) == pytest.approx(after, abs=1e-9)


# --- simple plans -----------------------------------------------------------------------------


def plain_greedy(data: ProblemData) -> np.ndarray:
    """The greedy of the docstring, written out: one layer."""
    (scenarios,) = data.scenarios
    hosts = np.zeros((data.experts, data.gpus), dtype=bool)
    occurs = np.bincount(
        scenarios.expert, np.repeat(scenarios.weight, scenarios.sizes), data.experts
    )

    def cost(h: np.ndarray) -> float:
        total = 0.0
        for s, p in enumerate(scenarios.weight):
            there = [tuple(np.flatnonzero(h[e])) for e in scenarios.members(s)]
            total += p * dispatch.matching_time([x for x in there if x])
        return total

    while (hosts.sum(axis=0) < data.slots).any():
        best = None
        for e, g in np.argwhere(~hosts & (hosts.sum(axis=0) < data.slots)):
            trial = hosts.copy()
            trial[e, g] = True
            first = 0.0 if hosts[e].any() else 1.0 + occurs[e]
            key = (round(first, 12), -round(cost(trial), 10))
            if best is None or key > best[0]:
                best = (key, e, g)
        if best is None:
            break
        if best[0][0] == 0 and cost(hosts) <= scenarios.weight @ -(-scenarios.sizes // data.gpus):
            break
        hosts[best[1], best[2]] = True
    return hosts


@pytest.mark.parametrize("seed", range(12))
def test_greedy_is_the_published_one(seed):
    data = instance(seed, "replication", spare=1 + seed % 2)
    assert value_of(data, greedy.greedy(data)) == pytest.approx(
        value_of(data, plain_greedy(data)[None]), abs=1e-9
    )


def test_greedy_single_copies_and_room():
    for seed in range(6):
        data = instance(seed, "placement", layers=2, limit="both")
        hosts = greedy.greedy(data)
        assert (hosts.sum(axis=2) == 1).all()
        value_of(data, hosts)
    full = replace(instance(0, "placement"), slots=1)
    assert greedy.greedy(full) is None
    assert greedy.contiguous(full) is None


def test_contiguous_and_random():
    data = prepare(read_instance("gpt-oss-20b_l10_8gpu"), "placement")
    assert (greedy.contiguous(data)[0].argmax(axis=1) == np.arange(32) // 4).all()
    a, b = (greedy.random(data, seed=s) for s in (0, 0))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, greedy.random(data, seed=1))
    value_of(data, a)


# --- scenario cut -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("form", ["unit", "max"])
def test_cut_bounds_are_valid(share, form):
    for seed in range(5):
        data = instance(
            seed, "replication", form=form, layers=1 + seed % 2, experts=4, gpus=2, top_k=3,
            max_members=4,
        )  # fmt: skip
        fewer, summary = scenario_cut.cut(data, share)
        value = brute.brute_optimum(data)[0]
        exact = brute.brute_optimum(fewer)[0]
        for layer, old, covered in zip(
            fewer.scenarios, data.scenarios, summary.covered, strict=True
        ):
            assert layer.weight.sum() == pytest.approx(1.0)
            assert covered >= share * (1 - 1e-9)
            assert len(layer) <= len(old)
            smallest = layer.weight.min() * covered
            assert covered - smallest < share + 1e-9  # one less would be too few
        bounds = [scenario_cut.valid_bound(exact, summary)]
        layers = [
            brute.brute_optimum(replace(fewer, scenarios=(s,), layers=1))[0]
            for s in fewer.scenarios
        ]
        bounds.append(scenario_cut.valid_bound(layers, summary))
        for bound in bounds:
            assert bound <= value + 1e-12
            if share == 1.0:
                assert bound == pytest.approx(value, rel=1e-6)
        assert bounds[1] >= bounds[0] - 1e-9


def test_cut_refuses_nonsense():
    with pytest.raises(ValueError, match="share"):
        scenario_cut.cut(instance(0, "placement"), 0.0)
