"""Prescribed waves of ``joint``: every bound and every plan against brute force."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product
from pathlib import Path

import brute
import numpy as np
import pytest
from make_data import layer_time, random_data

from moeopt import solve
from moeopt.bounds import joint_bound
from moeopt.checker import check_solution
from moeopt.errors import InputError
from moeopt.feasibility import explain_infeasible
from moeopt.heuristics import joint
from moeopt.instance import Instance, read_instance_file
from moeopt.joint import prescribed_splits
from moeopt.joint.cost import cost_of
from moeopt.joint.layer_bound import layer_bound
from moeopt.joint.prescribed import solve_prescribed
from moeopt.joint.prescribed_layers import PrescribedLayers
from moeopt.joint.prescribed_search import search_hosts
from moeopt.joint.prescribed_splits import hosted_bounds, splits_bounds
from moeopt.joint.prescribed_time import confined, hosts_time, set_times
from moeopt.joint.prescribed_tree import hosts_tree
from moeopt.joint.prescribed_uniform import UniformLayers
from moeopt.joint.wave_dispatch import dispatch_wave
from moeopt.prepare import prepare
from moeopt.problem import LayerTime, ProblemData
from moeopt.solution import Solution

SMOKE = "smoke_joint_wave_requests"
FORMS = ("sum", "max", "p2")


def masks_of(hosts) -> np.ndarray:
    return np.array([sum(1 << g for g in h) for h in hosts])


def all_hosts(experts: int, gpus: int, extra: int):
    for hosts in product(brute.subsets(range(gpus)), repeat=experts):
        if sum(map(len, hosts)) <= experts + extra:
            yield hosts


def some_layer(seed: int, form: str, experts: int = 4, waves: int = 3):
    rng = np.random.default_rng(seed)
    time = layer_time(form, rng)
    tokens = rng.integers(1, 40, (waves, experts)) / 4.0 * rng.integers(0, 4, (waves, experts))
    return time, cost_of(time), np.ascontiguousarray(tokens), rng.integers(1, 9, waves) * 1.0


def resident_time(time, hosts, tokens, gpus: int) -> float:
    """Layer time where every host is charged: some set of experts forces it."""
    hosted = [sum(g in h for h in hosts) for g in range(gpus)]
    least = max(float(time.of(n, 0)) for n in hosted)
    for members in brute.subsets(range(len(hosts))):
        on = sorted({g for e in members for g in hosts[e]})
        load = float(sum(tokens[e] for e in members))
        least = brute.least_time(time, [hosted[g] for g in on], load, least)
    return least


def value_of(time, hosts, tokens, steps, resident_gpus: int = 0) -> float:
    """Brute force of a layer's waves: Σ D_w T_w."""
    if resident_gpus:
        each = [resident_time(time, hosts, w, resident_gpus) for w in tokens]
        return float(np.dot(steps, each))
    total = 0.0
    for d, w in zip(steps, tokens, strict=True):
        used = [e for e in range(len(w)) if w[e] > 0]
        if used:
            total += d * brute.brute_time(
                time, tuple(hosts[e] for e in used), tuple(w[used].tolist()), False
            )
        else:
            total += d * float(time.of(0, 0))
    return total


# --- one layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_times_of_known_hosts_are_exact(form):
    for seed in range(12):
        time, cost, tokens, _ = some_layer(seed, form, waves=1)
        rng = np.random.default_rng(seed)
        hosts = [tuple(sorted(rng.permutation(3)[: rng.integers(1, 3)].tolist())) for _ in range(4)]
        found = hosts_time(cost, tokens[0], masks_of(hosts), 3, False)
        assert found == pytest.approx(value_of(time, hosts, tokens, [1.0]), rel=1e-9)
        found = hosts_time(cost, tokens[0], masks_of(hosts), 3, True)
        assert found == pytest.approx(resident_time(time, hosts, tokens[0], 3), rel=1e-9)
        # Experts whose hosts are not known yet are left out.
        masks = masks_of(hosts)
        masks[0] = 0
        others = tokens.copy()
        others[0, 0] = 0.0
        assert hosts_time(cost, tokens[0], masks, 3, False) == pytest.approx(
            value_of(time, hosts, others, [1.0]), rel=1e-9
        )


@pytest.mark.parametrize("form", FORMS)
def test_times_of_sets_are_below_every_host(form):
    for seed in range(1 if form == "p2" else 3):
        time, cost, tokens, _ = some_layer(seed, form, experts=3, waves=1)
        times = set_times(cost, tokens[0], 3)
        for k in (1, 2) if form == "p2" else (1, 2, 3):
            best = min(value_of(time, h, tokens, [1.0]) for h in all_hosts(3, k, 9))
            assert times[7, k] <= best * (1 + 1e-9)
            assert times[7, k] == pytest.approx(best, rel=0.05)
        assert (np.diff(times[:, 1:], axis=1) <= 1e-9).all()


def test_too_many_choices_give_no_time():
    _, cost, _, _ = some_layer(0, "sum")
    assert hosts_time(cost, np.ones(4), np.array([7, 7, 7, 7]), 3, False) == 0.0


def test_confined_experts():
    inside = confined(np.array([0b01, 0b11, 0b00]), 2)
    assert inside.tolist() == [0, 0b001, 0, 0b011]


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_tree_finds_the_best_hosts(form, resident):
    for seed in range(1 if form == "p2" else 3):
        time, cost, tokens, steps = some_layer(seed, form)
        least = np.zeros(len(steps))
        for extra, gpus in ((0, 2), (1, 2), (2, 2), (0, 3))[: 3 if form == "p2" else 4]:
            charged = gpus if resident else 0
            wanted = min(
                value_of(time, h, tokens, steps, charged) for h in all_hosts(4, gpus, extra)
            )
            limits = (gpus, extra, 4, resident)
            bound, masks, _ = hosts_tree(cost, tokens, steps, least, *limits, np.inf, 200_000)
            assert bound == pytest.approx(wanted, rel=1e-9)
            hosts = [tuple(g for g in range(gpus) if m >> g & 1) for m in masks.tolist()]
            assert value_of(time, hosts, tokens, steps, charged) == pytest.approx(wanted, rel=1e-9)
            cut = hosts_tree(cost, tokens, steps, least, *limits, np.inf, 5)[0]
            assert cut <= wanted * (1 + 1e-9)
            enough = hosts_tree(cost, tokens, steps, least, *limits, 0.9 * wanted, 200_000)[0]
            assert 0.9 * wanted <= enough <= wanted * (1 + 1e-9)


def test_the_tree_keeps_the_slots():
    time, cost, tokens, steps = some_layer(0, "max")
    wanted = min(
        value_of(time, h, tokens, steps)
        for h in all_hosts(4, 2, 1)
        if max(sum(g in e for e in h) for g in range(2)) <= 3
    )
    found = hosts_tree(cost, tokens, steps, np.zeros(3), 2, 1, 3, False, np.inf, 200_000)
    assert found[0] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("resident", [False, True])
def test_annealed_hosts_keep_the_limits(form, resident):
    reached, seeds = 0, 1 if form == "p2" else 5
    for seed in range(seeds):
        time, cost, tokens, steps = some_layer(seed, form)
        start = np.eye(4, 3, dtype=bool)
        start[3, 0] = True
        total, hosts, share = search_hosts(
            cost, tokens, steps, np.zeros(3), start, np.zeros((3, 4, 3)), 1, 3, resident, 0.0,
            3000, seed,
        )  # fmt: skip
        assert hosts.any(axis=1).all()
        assert hosts.sum() <= 5
        assert hosts.sum(axis=0).max() <= 3
        assert share.sum(axis=2) == pytest.approx(tokens)
        assert not share[:, ~hosts].any()
        again = sum(
            d * dispatch_wave(cost, w, hosts, s, resident)[0]
            for d, w, s in zip(steps, tokens, share, strict=True)
        )
        assert again <= total * (1 + 1e-9)
        if not resident:
            wanted = min(value_of(time, h, tokens, steps) for h in all_hosts(4, 3, 1))
            assert total >= wanted * (1 - 1e-9)
            reached += total <= wanted * 1.01
    assert resident or reached >= 0.7 * seeds


# --- whole plans ---------------------------------------------------------------------------------


def prescribed(seed: int, form: str, experts: int = 3, **options) -> ProblemData:
    """Random instance whose requests are dealt out to the waves at random."""
    rng = np.random.default_rng(seed)
    data = random_data("joint", rng, form=form, experts=experts, gpus=2, layers=2, **options)
    assert data.requests is not None
    counts = [rng.multinomial(int(m), [0.5, 0.5]) for m in data.requests.count]
    return replace(data, wave_requests=np.array(counts), waves=2)


@pytest.mark.parametrize("charged", ["activated", "resident"])
@pytest.mark.parametrize("form", ["unit", *FORMS])
def test_bounds_and_plans_enclose_brute_force(form, charged):
    closed = 0
    for seed in range(2 if form == "p2" else 4):
        data = replace(prescribed(seed, form, spare=1), charged=charged)
        if explain_infeasible(data):
            continue
        found = solve_prescribed(data, seed=seed)
        assert found.solution is not None
        report = check_solution(data, found.solution)
        assert report.violations == []
        assert found.value <= report.objective * (1 + 1e-12)
        if charged == "resident":
            continue
        optimum, _ = brute.brute_optimum(data)
        assert found.value <= optimum * (1 + 1e-9)
        assert report.objective >= optimum * (1 - 1e-9)
        closed += report.objective <= optimum * 1.001
    assert closed >= 1 or charged == "resident"


@pytest.mark.parametrize("resident", [False, True])
def test_both_sides_of_a_layer_hold_for_fewer_replicas(resident):
    charged = "resident" if resident else "activated"
    data = replace(prescribed(3, "sum", spare=2), charged=charged)
    layers = PrescribedLayers(data)
    layers.anneal(2000, lambda: False)
    while layers.tighten(layers.bound()[1], lambda: False):
        pass
    assert resident or (np.diff(layers.lower, axis=1) <= 1e-9).all()
    assert (np.diff(layers.upper, axis=1) <= 1e-9).all()
    for l in range(data.layers):
        for r in range(layers.most + 1):
            values = {
                h: value_of(
                    data.layer_time, h, layers.tokens[l], layers.steps, 2 if resident else 0
                )
                for h in all_hosts(3, 2, r)
            }
            exact = [v for h, v in values.items() if not resident or sum(map(len, h)) == 3 + r]
            assert layers.lower[l, r] <= min(exact) * (1 + 1e-9)
            assert layers.upper[l, r] >= min(values.values()) * (1 - 1e-9)


@pytest.mark.parametrize("charged", ["activated", "resident"])
@pytest.mark.parametrize("form", ["unit", *FORMS])
def test_equal_slots_enclose_brute_force(form, charged):
    several = 0
    for seed in range(1 if form == "p2" else 3):
        data = prescribed(seed, form, experts=4, spare=2)
        data = replace(data, charged=charged, uniform_slots=True)
        layers = UniformLayers(data)
        for moves in (0, 2000):
            layers.anneal(moves, lambda: False)
        while layers.tighten(layers.bound()[1], lambda: False):
            pass
        for l, r in product(range(data.layers), layers.numbers.tolist()):
            values = [
                value_of(
                    data.layer_time, h, layers.tokens[l], layers.steps, 2 * (charged == "resident")
                )
                for h in all_hosts(4, 2, r)
                if all(sum(g in e for e in h) == (4 + r) // 2 for g in range(2))
            ]
            assert layers.lower[l, r] <= min(values) * (1 + 1e-9)
            assert min(values) * (1 - 1e-9) <= layers.upper[l, r] <= min(values) * 1.1
            assert (layers.hosts[l, r].sum(axis=0) == (4 + r) // 2).all()
        several += len(layers.numbers) > 1
        found = solve_prescribed(data, seed=seed)
        assert found.solution is not None
        report = check_solution(data, found.solution)
        assert report.violations == []
        assert found.value <= report.objective * (1 + 1e-12)
        assert report.objective <= found.value * 1.2
    assert several


def test_equal_slots_that_do_not_fit():
    data = replace(prescribed(0, "sum", spare=1), uniform_slots=True)  # 3 experts on 2 GPUs
    none = replace(data, free_mib=np.full(2, 2 * data.layers * data.expert_mib - 1.0))
    assert solve_prescribed(none).value == np.inf
    assert solve_prescribed(none).solution is None


def test_layer_bounds_of_waves_alone_are_not_above_the_tree():
    _, cost, tokens, steps = some_layer(1, "sum", experts=5)
    for extra in range(3):
        alone = [
            layer_bound(cost, w, 3, charged=(w > 0).astype(int), tree=True)[0][extra]
            for w in tokens
        ]
        tree = hosts_tree(
            cost, tokens, steps, np.array(alone), 3, extra, 5, False, np.inf, 500_000
        )[0]
        assert float(steps @ alone) <= tree * (1 + 1e-9)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("form", ["unit", *FORMS])
def test_shared_replicas_bound_every_host(form, resident):
    """Two waves with heavy experts of their own: one replica cannot serve both."""
    gained = 0
    for seed in range(1 if form == "p2" else 3):
        time, cost, tokens, steps = some_layer(seed, form, experts=3, waves=2)
        tokens[0, 0], tokens[1, 1] = 40.0, 50.0
        everybody = np.ones(3, dtype=int)
        alone = np.array(
            [
                layer_bound(
                    cost, w, 3, charged=everybody if resident else (w > 0).astype(int), tree=True
                )[0][[0, 1, 2, 2]]
                for w in tokens
            ]
        )
        apart = alone.copy()
        if resident:
            alone = np.maximum(alone, hosted_bounds(cost, tokens, 3, 3))
        bounds = splits_bounds(cost, tokens, steps, alone)
        assert (bounds >= steps @ alone - 1e-9).all()
        gained += (bounds > steps @ apart * (1 + 1e-6)).any()
        for extra in range(4 if form != "p2" else 2):
            wanted = min(
                value_of(time, h, tokens, steps, 3 if resident else 0)
                for h in all_hosts(3, 3, extra)
                if not resident or sum(map(len, h)) == 3 + extra
            )
            assert bounds[extra] <= wanted * (1 + 1e-9)
    assert gained or form == "unit"


def test_shared_replicas_are_counted():
    """Three waves, each heavy in an expert of its own: by hand."""
    cost = cost_of(LayerTime("max", 0.0, 1.0, 0.0, 1.0))
    tokens = np.full((3, 6), 2.0) + 10.0 * np.eye(3, 6)
    steps = np.array([3.0, 2.0, 1.0])
    alone = np.full((3, 5), 8.0)  # each expert of 12 tokens, on two GPUs, takes 6
    found = splits_bounds(cost, tokens, steps, alone)
    # The first replica serves wave 0, the next wave 1, then wave 2; the last entry is anybody's.
    assert found == pytest.approx([72.0, 60.0, 52.0, 48.0, 48.0])
    few = np.full((3, 3), 8.0)
    assert splits_bounds(cost, tokens, steps, few) == pytest.approx([72.0, 60.0, 48.0])


def test_many_waves_are_bounded_in_part(monkeypatch):
    _, cost, tokens, steps = some_layer(0, "max", experts=6, waves=5)
    tokens += 60.0 * np.eye(5, 6)
    alone = np.full((5, 6), 10.0)
    whole = splits_bounds(cost, tokens, steps, alone)
    monkeypatch.setattr(prescribed_splits, "_COMBINATIONS", 30)
    part = splits_bounds(cost, tokens, steps, alone)
    assert (part <= whole * (1 + 1e-12)).all()
    assert (steps @ alone <= part * (1 + 1e-12)).all()
    assert part[0] < whole[0]


@pytest.mark.slow
def test_the_whole_path(smoke):
    outcome = solve(smoke, problem="joint", time_limit_s=20)
    assert outcome.upper_bound == pytest.approx(204.0)
    assert outcome.lower_bound == pytest.approx(204.0, rel=1e-6)


@pytest.mark.parametrize("uniform", [False, True])
def test_plans_hold_what_is_prescribed(smoke, uniform):
    data = replace(prepare(smoke, "joint"), uniform_slots=uniform)
    data = replace(data, free_mib=data.free_mib + 60.0)
    plan = joint.plan(data, time_limit_s=5)
    assert plan is not None
    report = check_solution(data, plan)
    assert report.violations == []
    assert joint_bound(data)[0].value <= report.objective


# --- what an instance may say --------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke() -> Instance:
    return read_instance_file(
        Path(__file__).parent.parent / "instances" / "smoke" / f"{SMOKE}.json"
    )


def test_waves_are_read(smoke):
    data = prepare(smoke, "joint")
    assert data.waves == 2
    assert data.wave_requests.tolist() == [[3, 0], [1, 2]]
    assert Instance.from_document(smoke.model_dump(by_alias=True)).sha256 == smoke.sha256


@pytest.mark.parametrize(
    ("joint_options", "lines"),
    [
        (
            {"wave_requests": [{"maths": 3, "law": 1}, {"law": 1}]},
            ["joint.wave_requests: 2 requests of class 'law' in all, its count is 3"],
        ),
        (
            {"wave_requests": [{"maths": 3, "laws": 1}, {"law": 3}]},
            ["joint.wave_requests[0].laws: there is no such request class"],
        ),
        (
            {"waves": 3, "wave_requests": [{"maths": 3}, {"law": 3}]},
            ["joint.wave_requests: has 2 entries for 3 waves"],
        ),
        (
            {"wave_requests": [{"maths": 4}, {"maths": -1, "law": 3}]},
            ["joint.wave_requests[1].maths: must be at least 0, not -1"],
        ),
    ],
)
def test_wrong_waves_are_refused(smoke, joint_options, lines):
    document = copy.deepcopy(smoke.model_dump(by_alias=True)) | {"joint": joint_options}
    with pytest.raises(InputError) as refused:
        Instance.from_document(document)
    assert refused.value.problems == lines


def test_other_waves_violate_a_plan(smoke):
    data = prepare(smoke, "joint")
    z = np.zeros((2, 2, 2), dtype=np.int64)
    z[0, 1, 0], z[1, 0, 1], z[1, 1, 1] = 3, 1, 2
    hosts = np.ones((1, 3, 2), dtype=bool)
    free = replace(data, free_mib=data.free_mib + 200.0)
    report = check_solution(free, Solution.from_arrays(free, hosts, requests=z))
    assert [(v.kind, v.where, v.amount) for v in report.violations] == [
        ("wave_requests", "wave 0, class maths", 3),
        ("wave_requests", "wave 1, class maths", 3),
    ]
    assert report.violations[0].message == "wave 0, class maths: 0 requests, 3 are prescribed"


def test_waves_that_cannot_be(smoke):
    data = prepare(smoke, "joint")
    small = replace(data, free_mib=data.free_mib - 40.0)
    assert any(
        line.startswith("the requests prescribed for wave 0 need 60 MiB of KV cache")
        for line in explain_infeasible(small)
    )
    short = replace(data, wave_steps=(5, 5))
    assert (
        "class 'maths' is prescribed for wave 0 and decodes 6 tokens, the wave has 5 steps"
        in explain_infeasible(short)
    )
