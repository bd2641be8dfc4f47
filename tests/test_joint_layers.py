"""``joint`` by layers: every bound and every plan against brute force over whole plans."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import brute
import numpy as np
import pytest
from make_data import FORMS, layer_time, random_data

from moeopt.checker import check_solution
from moeopt.heuristics import joint
from moeopt.joint.cost import cost_of, room_of, shared_time, time_of
from moeopt.joint.knapsack import share_out
from moeopt.joint.layer_bound import layer_bound
from moeopt.joint.layer_plan import plan_layer
from moeopt.joint.lengths import lengths_bound
from moeopt.joint.memory import memory_of
from moeopt.joint.repair import label_gpus, place_requests
from moeopt.joint.wave_dispatch import dispatch_wave
from moeopt.joint.waves import evened, wave_plans, wave_steps, waves_of_lengths
from moeopt.problem import LayerTime

CHARGED = ("activated", "resident")


def resident_time(time: LayerTime, hosts, tokens, whole: bool = False) -> float:
    """Layer time with all hosts charged, from the min-cut condition over sets of experts."""
    gpus = 1 + max(g for h in hosts for g in h)
    count = [sum(g in h for h in hosts) for g in range(gpus)]
    least = max(float(time.of(a, 0)) for a in count)
    for members in brute.subsets(range(len(hosts))):
        open_gpus = sorted({g for e in members for g in hosts[e]})
        load = sum(tokens[e] for e in members)
        least = brute.least_time(time, [count[g] for g in open_gpus], load, least)
    return least


def time_of_hosts(charged: str):
    return resident_time if charged == "resident" else brute.brute_time


def all_hosts(experts: int, gpus: int):
    return product(brute.subsets(range(gpus)), repeat=experts)


def some_tokens(rng: np.random.Generator, experts: int, zeros: bool = True) -> np.ndarray:
    w = rng.integers(1, 40, experts) / 4.0
    return w * rng.integers(0, 3, experts) if zeros else w


# --- costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_costs_are_those_of_the_layer_time(form):
    rng = np.random.default_rng(0)
    for _ in range(20):
        time = layer_time(form, rng)
        cost = cost_of(time)
        a, n = int(rng.integers(0, 9)), float(rng.uniform(0, 50))
        assert time_of(cost, a, n) == pytest.approx(float(time.of(a, n)), rel=1e-12)
        if time.counts_tokens:
            t = float(time.of(a, n)) * 1.3
            assert float(time.of(a, room_of(cost, t, a))) == pytest.approx(t, rel=1e-9)
        gpus, p = int(rng.integers(1, 5)), int(rng.integers(0, 9))
        count = [p // gpus + (i < p % gpus) for i in range(gpus)]
        start = max(float(time.of(c, 0)) for c in count)
        wanted = brute.least_time(time, count, n, start)
        assert shared_time(cost, p, gpus, n) == pytest.approx(wanted, rel=1e-9)


# --- one layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("charged", CHARGED)
@pytest.mark.parametrize("form", FORMS)
def test_layer_bound_and_plan_meet_brute_force(form, charged):
    """With all partitions the bound is the optimum; the threshold bound lies below it."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        time = layer_time(form, rng)
        experts, gpus = int(rng.integers(2, 5)), int(rng.integers(2, 4))
        w = some_tokens(rng, experts)
        w[0] += 1.0
        surely = np.ones(experts, int) if charged == "resident" else (w > 0).astype(int)
        exact, groups = layer_bound(cost_of(time), w, gpus, charged=surely, tree=True)
        quick, none = layer_bound(cost_of(time), w, gpus, charged=surely, tree=True, quick=True)
        best = np.full(experts * gpus, np.inf)
        for hosts in all_hosts(experts, gpus):
            extra = sum(map(len, hosts)) - experts
            best[extra] = min(best[extra], time_of_hosts(charged)(time, hosts, tuple(w), False))
        best = np.minimum.accumulate(best)[:gpus]
        assert none is None
        assert (quick <= exact * (1 + 1e-12)).all()
        assert (exact <= best * (1 + 1e-12)).all()
        assert exact == pytest.approx(best, rel=1e-9)
        for extra in range(gpus):
            plan = plan_layer(
                cost_of(time), w, gpus, extra, charged=surely, bound=exact[extra], groups=groups,
                slots=experts, kicks=50, seed=0,
            )  # fmt: skip
            assert plan is not None
            assert plan.extra <= extra
            assert plan.share.sum(axis=1) == pytest.approx(w)
            assert (plan.hosts | (plan.share == 0)).all()
            count = plan.hosts.sum(axis=0)
            value = float(time.of(count, plan.share.sum(axis=0)).max())
            assert plan.time == pytest.approx(value, rel=1e-9)
            assert value <= exact[extra] * 1.06 + 1e-9


@pytest.mark.parametrize("charged", CHARGED)
@pytest.mark.parametrize("form", FORMS)
def test_mean_over_waves_is_bounded(form, charged):
    """Several waves, one placement: Jensen's bound lies below every placement's mean."""
    rng = np.random.default_rng(2)
    for _ in range(6):
        time = layer_time(form, rng)
        experts, gpus = 3, int(rng.integers(2, 4))
        waves = np.stack([some_tokens(rng, experts, zeros=False) for _ in range(2)])
        waves[rng.integers(2)] *= 0.1
        weight = rng.dirichlet([1.0, 1.0])
        surely = np.ones(experts, int)
        bounds = [
            layer_bound(
                cost_of(time), weight @ waves, gpus, charged=surely, tree=charged == "resident",
                quick=quick,
            )[0]
            for quick in (False, True)
        ]  # fmt: skip
        for hosts in all_hosts(experts, gpus):
            extra = min(sum(map(len, hosts)) - experts, gpus - 1)
            mean = sum(
                p * time_of_hosts(charged)(time, hosts, tuple(w), False)
                for p, w in zip(weight, waves, strict=True)
            )
            for bound in bounds:
                assert bound[extra] <= mean * (1 + 1e-12)


def test_a_large_layer_is_planned_close_to_its_bound():
    rng = np.random.default_rng(3)
    for form in ("sum", "max", "p2"):
        time = LayerTime(form, 0.0, 14.78, 0.0, 0.0945)
        w = rng.lognormal(0.0, 1.0, 64)
        w *= 3000 / w.sum()
        surely = np.ones(64, int)
        bound, groups = layer_bound(cost_of(time), w, 8, charged=surely, tree=True)
        assert groups is None
        assert (np.diff(bound) <= 0).all()
        plan = plan_layer(
            cost_of(time), w, 8, 7, charged=surely, bound=bound[7], groups=None, slots=64, kicks=50,
            seed=0,
        )  # fmt: skip
        assert bound[7] <= plan.time <= bound[7] * 1.005


def test_slots_limit_the_search():
    time = cost_of(layer_time("sum"))
    w = np.array([5.0, 4.0, 3.0, 2.0])
    plan = plan_layer(
        time, w, 2, 1, charged=np.ones(4, int), bound=0.0, groups=None, slots=2, kicks=5, seed=0
    )
    assert plan.hosts.sum(axis=0).tolist() == [2, 2]
    assert (
        plan_layer(
            time, w, 2, 1, charged=np.ones(4, int), bound=0.0, groups=None, slots=1, kicks=5, seed=0
        )
        is None
    )


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("form", ["sum", "max", "p2"])
def test_dispatch_of_a_wave(form, resident):
    rng = np.random.default_rng(4)
    for _ in range(20):
        time = layer_time(form, rng)
        hosts = rng.random((3, 3)) < 0.6
        hosts[np.arange(3), rng.integers(0, 3, 3)] = True
        w = some_tokens(rng, 3)
        w[0] += 1
        value, share = dispatch_wave(cost_of(time), w, hosts, rng.random((3, 3)) * hosts, resident)
        assert share.sum(axis=1) == pytest.approx(w)
        assert not (share[~hosts] > 0).any()
        lists = tuple(tuple(np.flatnonzero(row).tolist()) for row in hosts)
        charged = hosts if resident else share > 0
        assert value == pytest.approx(
            float(time.of(charged.sum(axis=0), share.sum(axis=0)).max()), rel=1e-9
        )
        least = time_of_hosts("resident" if resident else "activated")(time, lists, tuple(w), False)
        assert least * (1 - 1e-9) <= value <= least * 1.6


# --- layers together -----------------------------------------------------------------------------


def test_knapsack_is_exact():
    rng = np.random.default_rng(5)
    for _ in range(30):
        times = rng.random((3, 4)).round(2)
        times[rng.random((3, 4)) < 0.1] = np.inf
        limit = int(rng.integers(0, 11))
        options = [
            (sum(times[l, r] for l, r in enumerate(chosen)), chosen)
            for chosen in product(range(4), repeat=3)
            if sum(chosen) <= limit
        ]
        total, chosen = share_out(times, limit)
        assert total == pytest.approx(min(options)[0])
        if np.isfinite(total):
            assert chosen.sum() <= limit
            assert times[np.arange(3), chosen].sum() == pytest.approx(total)


def test_labels_level_memory():
    rng = np.random.default_rng(6)
    layers = []
    for _ in range(6):
        hosts = np.zeros((9, 4), dtype=bool)
        hosts[np.arange(9), np.repeat(np.arange(4), [4, 2, 2, 1])] = True
        layers.append(hosts[rng.permutation(9)])
    for free, spread in ((np.full(4, 100.0), 3), (np.array([100.0, 100.0, 90.0, 110.0]), 6)):
        left = free.copy()
        for hosts, label in zip(layers, label_gpus(layers, free, 1.0), strict=True):
            assert sorted(label.tolist()) == [0, 1, 2, 3]
            left[label] -= hosts.sum(axis=0)
        assert np.ptp(left) <= spread


def test_requests_go_where_there_is_room():
    data = random_data("joint", np.random.default_rng(0), form="sum", classes=2)
    memory = memory_of(data)
    counts = np.array([3, 4])
    total = int(counts @ memory.kv)
    z = place_requests(counts, np.array([total, total]), memory)
    assert z.sum(axis=1).tolist() == [3, 4]
    caches = memory.kv @ z
    assert np.ptp(caches) <= memory.kv.max()
    assert place_requests(counts, np.array([total // 3, total // 3]), memory) is None
    assert place_requests(counts, np.array([-1, total]), memory) is None


# --- waves ---------------------------------------------------------------------------------------


def test_waves_hold_every_request():
    for seed in range(6):
        data = random_data(
            "joint", np.random.default_rng(seed), form="max", classes=3, max_count=9, waves=3,
            prescribed=seed % 2 == 1,
        )  # fmt: skip
        longest = int(data.requests.output_tokens.max())
        lengths = data.wave_steps or (longest, longest, int(data.requests.output_tokens.min()))
        found = [*wave_plans(data), *waves_of_lengths(data, lengths)]
        assert found
        for counts in found:
            assert (counts.sum(axis=1) == data.requests.count).all()
            steps = wave_steps(data, counts)
            assert ((counts == 0) | (data.requests.output_tokens[:, None] <= steps)).all()


def test_equal_waves_share_evenly():
    data = random_data("joint", np.random.default_rng(1), form="sum", classes=2, waves=2)
    data = replace(data, requests=replace(data.requests, output_tokens=np.array([8, 8])))
    level = evened(data, np.array([[5, 0], [1, 4]]))
    assert level.sum(axis=1).tolist() == [5, 5]
    assert np.ptp(level, axis=1).max() <= 1


# --- whole problems ------------------------------------------------------------------------------


def brute_value(data, monkeypatch) -> float:
    """Optimum of brute force under the data's charge, with equal slots where they are asked for."""
    if data.charged == "resident":
        monkeypatch.setattr(brute, "brute_time", resident_time)
    if not data.uniform_slots:
        return brute.brute_optimum(data)[0]
    plans = brute.layer_plans
    values = []
    for slots in range(1, data.experts + 1):

        def equal(data, slots=slots):
            return (h for h in plans(data) if set(brute._used(h, data.gpus)) == {slots})

        monkeypatch.setattr(brute, "layer_plans", equal)
        values.append(brute.brute_optimum(data)[0])
    monkeypatch.setattr(brute, "layer_plans", plans)
    return min(values)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("charged", CHARGED)
@pytest.mark.parametrize("form", ["unit", "sum", "max", "p2"])
def test_bound_optimum_plan(form, charged, uniform, monkeypatch):
    """Bound <= optimum of brute force <= checked plan, on every kind of instance."""
    gaps = []
    for seed in range(6):
        experts = 4 if uniform else 3
        data = random_data(
            "joint", np.random.default_rng(100 + seed), form=form, layers=1, experts=experts,
            top_k=1 + seed % 2, max_count=2, waves=1 + seed % 2 + (seed == 5),
            prescribed=seed == 3, kinds=1 + (seed == 4), spare=seed % 3,
        )  # fmt: skip
        data = replace(data, charged=charged, uniform_slots=uniform)
        if form == "unit":
            data = replace(data, attention_base_us=0.0, attention_us_per_mib=0.0)
        with monkeypatch.context() as patch:
            optimum = brute_value(data, patch)
        bound = lengths_bound(data)
        assert bound.value <= optimum * (1 + 1e-12)
        cut_off = lengths_bound(data, time_limit_s=0.0)
        assert cut_off.value <= bound.value
        if optimum == np.inf:
            continue
        assert bound.lengths is not None
        plan = joint.plan(data, lengths=bound.lengths, time_limit_s=5)
        if plan is None:
            continue
        report = check_solution(data, plan)
        assert report.violations == []
        assert report.objective >= optimum * (1 - 1e-9)
        gaps.append(report.objective / optimum - 1)
    assert len(gaps) >= 3
    assert np.median(gaps) < 0.05


def test_bound_of_two_layers(monkeypatch):
    for seed in range(4):
        data = random_data(
            "joint", np.random.default_rng(seed), form="max", layers=2, experts=3, max_count=2
        )
        data = replace(data, charged=CHARGED[seed % 2])
        with monkeypatch.context() as patch:
            assert lengths_bound(data).value <= brute_value(data, patch) * (1 + 1e-12)


def test_bound_ends_where_it_is_enough():
    data = random_data("joint", np.random.default_rng(2), form="max", waves=3, classes=3)
    whole = lengths_bound(data)
    seen: list[float] = []
    some = lengths_bound(data, enough=0.1 * whole.value, on_bound=seen.append)
    assert 0.1 * whole.value <= some.value <= whole.value
    assert seen == sorted(seen)
    assert lengths_bound(data, stop=lambda: True).value <= whole.value


# --- the checker's rules -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sum", "max", "p2", "unit"])
def test_checker_charges_resident_replicas(form):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        data = replace(random_data("joint", rng, form=form, experts=3, spare=3), charged="resident")
        plan = joint.plan(data, time_limit_s=5)
        more = plan.model_copy(update={"hosts": [[[0, 1]] * 3]})  # may exceed memory: only priced
        report = check_solution(data, more)
        assert report.exact
        wanted = 0.0
        z = more.requests_array(data.requests.names, data.gpus).sum(axis=2)
        for w, wave in enumerate(report.details["waves"]):
            tokens = np.einsum("c,ce->e", z[:, w].astype(float), data.requests.usage[:, 0])
            least = resident_time(data.layer_time, ((0, 1),) * 3, tuple(tokens))
            assert wave["layer_us"][0] == pytest.approx(least, rel=1e-9)
            wanted += wave["steps"] * (wave["attention_us"] + least)
        assert report.objective == pytest.approx(wanted, rel=1e-9)


def test_checker_wants_equal_slots():
    data = random_data("joint", np.random.default_rng(0), form="sum", experts=4, spare=2)
    plan = joint.plan(replace(data, uniform_slots=True), time_limit_s=5)
    assert check_solution(replace(data, uniform_slots=True), plan).violations == []
    lopsided = plan.model_copy(update={"hosts": [[[0], [0], [0], [1]]], "dispatch": None})
    kinds = [v.kind for v in check_solution(replace(data, uniform_slots=True), lopsided).violations]
    assert "slots_not_uniform" in kinds
    assert "slots_not_uniform" not in [v.kind for v in check_solution(data, lopsided).violations]
