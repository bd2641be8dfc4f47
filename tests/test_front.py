"""Throughput under latency limits: bounds against brute force over whole plans, for every n."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from make_data import layer_time
from test_joint_layers import all_hosts, brute_value, some_tokens, time_of_hosts

from moeopt.catalog import read_instance
from moeopt.checker import check_solution
from moeopt.errors import InputError
from moeopt.front.curve import front
from moeopt.front.envelope import Envelope
from moeopt.front.mix import rounded_counts, whole_weights
from moeopt.front.plans import Planner
from moeopt.front.sensitivity import sensitivity
from moeopt.front.steady import changed, steady_state, with_memory
from moeopt.front.throughput import largest_throughput
from moeopt.front.whole import whole_bound
from moeopt.instance import Instance, JointOptions
from moeopt.joint.cost import cost_of
from moeopt.joint.layer_bound import layer_bound
from moeopt.prepare import prepare

FORMS = ("sum", "max", "p2")
CHARGED = ("activated", "resident")


def tiny(seed: int, form: str, *, layers: int = 1, room_mib: float = 11.0, **options) -> Instance:
    """Three or four experts on two GPUs; about half a dozen requests fit."""
    rng = np.random.default_rng(seed)
    gpus, classes, top_k = 2, 2, 1 + seed % 2
    experts = 4 if options.get("uniform_slots") or seed % 4 == 3 else 3
    popularity = rng.dirichlet(np.full(experts, 1.5), (classes, layers))
    usage = np.array([[rng.multinomial(64 * top_k, p) for p in row] for row in popularity]) / 64
    a, b, c, beta, base, per_mib = rng.uniform([0, 1, 0, 0.5, 0, 0.0], [4, 8, 4, 6, 2, 0.5])
    memory = (-(-layers * experts // gpus) + seed % 3) * 10.5 + room_mib
    return Instance.from_document(
        {
            "schema": "moeopt-instance/1",
            "name": f"tiny{seed}",
            "moe": {
                "name": "tiny", "layers": layers, "experts": experts, "top_k": top_k,
                "expert_mib": 10.5, "dense_mib": 0.0, "kv_kib_per_token": 32.0,
            },
            "cluster": {"nodes": [{"gpus": gpus, "memory_mib": memory}]},
            "layer_time": {
                "form": form, "base_us": a, "expert_us": b, "token_us": beta,
                "token_base_us": c if form == "max" else 0.0,
                "attention_base_us": base, "attention_us_per_mib": per_mib,
            },
            "routing": [
                {"layer": l, "load": usage[:, l].sum(axis=0) + 1e-3} for l in range(layers)
            ],
            "requests": [
                {
                    "name": f"class{i}", "count": int(rng.integers(1, 6)),
                    "prompt_tokens": int(rng.integers(60, 140)), "output_tokens": 8,
                    "usage": usage[i],
                }
                for i in range(classes)
            ],
            "joint": {"waves": 1, **options},
        }
    )  # fmt: skip


def brute_steps(steady, monkeypatch) -> dict[int, float]:
    """Least step time of every n that has a plan."""
    steps = {}
    for n in range(1, steady.most + 1):
        data = prepare(steady.instance_of(n), "joint")
        with monkeypatch.context() as patch:
            makespan = brute_value(data, patch)
        if makespan < math.inf:
            steps[n] = makespan / 8
    return steps


# --- the mix -------------------------------------------------------------------------------------


def test_counts_are_largest_remainders():
    weights = whole_weights([0.1, 0.25, 0.65])
    assert Fraction(weights[0], sum(weights)) == Fraction(0.1) / (
        Fraction(0.1) + Fraction(0.25) + Fraction(0.65)
    )
    assert whole_weights([6.0, 4.0, 2.0]) == [3, 2, 1]
    for weights in ([3, 2, 1], [6, 6, 2], whole_weights([0.1, 0.25, 0.65])):
        counts = rounded_counts(weights, 40)
        total = sum(weights)
        for n, row in enumerate(counts.tolist()):
            assert sum(row) == n
            exact = [Fraction(n * w, total) for w in weights]
            assert all(math.floor(x) <= r <= math.ceil(x) for r, x in zip(row, exact, strict=True))
            up = [x % 1 for r, x in zip(row, exact, strict=True) if r > x]
            down = [x % 1 for r, x in zip(row, exact, strict=True) if r < x]
            assert not up or not down or min(up) >= max(down)
    alabama = rounded_counts([6, 6, 2], 11)
    assert alabama[10].tolist() == [4, 4, 2]
    assert alabama[11].tolist() == [5, 5, 1]


def test_shares_are_the_mix_and_counts_are_not():
    instance = tiny(1, "sum")
    shared = changed(instance, joint=JointOptions(share={"class0": 1.0, "class1": 0.0}))
    steady = steady_state(shared)
    assert [r.name for r in steady.instance.requests] == ["class0"]
    made = steady.instance_of(2)
    assert [(r.name, r.count) for r in made.requests] == [("class0", 2)]
    assert made.joint == JointOptions(waves=1)


def test_what_fits():
    instance = tiny(4, "max")
    steady = steady_state(instance)
    data = prepare(steady.instance_of(steady.most), "joint")
    free = data.free_mib.sum() - data.layers * data.experts * data.expert_mib
    assert data.requests.count @ data.requests.kv_mib <= free
    weights = whole_weights([float(r.count) for r in instance.requests])
    beyond = rounded_counts(weights, steady.most + 5)[steady.most + 1 :]
    assert (beyond @ data.requests.kv_mib > free).all()
    more = steady_state(instance, more_gib=2.0 / 1024)
    assert more.most > steady.most
    assert (more.counts[: steady.most + 1] == steady.counts).all()
    with pytest.raises(InputError, match="expert"):
        steady_state(with_memory(instance, -30.0 / 1024))
    with pytest.raises(InputError, match="unit"):
        steady_state(changed(instance, layer_time={"form": "unit"}))


# --- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("charged", CHARGED)
@pytest.mark.parametrize("form", FORMS)
def test_whole_activations_bound_a_layer(form, charged):
    rng = np.random.default_rng(5)
    stronger = 0
    sizes = [(4, 2), (2, 2), (3, 3), (6, 2)] if form == "sum" else [(4, 2), (2, 2), (3, 3)]
    for i in range(9):
        time = layer_time(form, rng)
        experts, gpus = sizes[i % len(sizes)]
        w = some_tokens(rng, experts, zeros=False) / 8
        w[0] *= 1 + 7 * (i % 3)  # a heavy one
        surely = np.ones(experts, dtype=np.int64)
        bound = whole_bound(cost_of(time), w, surely, gpus)
        best = min(
            time_of_hosts(charged)(time, hosts, tuple(w), False)
            for hosts in all_hosts(experts, gpus)
            if len({g for h in hosts for g in h}) == gpus
        )
        assert 0 < bound <= best * (1 + 1e-12)
        weak, _ = layer_bound(cost_of(time), w, gpus, charged=surely, tree=True, quick=True)
        stronger += bound > weak[-1] * (1 + 1e-9)
    assert stronger > 0 or form == "max"
    assert whole_bound(cost_of(time), np.ones(3), np.ones(3, dtype=np.int64), 2) == 0.0


@pytest.mark.parametrize("options", [{}, {"uniform_slots": True}])
@pytest.mark.parametrize("charged", CHARGED)
@pytest.mark.parametrize("form", FORMS)
def test_no_plan_is_above_the_envelope(form, charged, options, monkeypatch):
    """Every range of n and every limit: the bound is at least the best of brute force."""
    gaps, compared = [], 0
    for seed in range(4):
        steady = steady_state(tiny(seed, form, charged=charged, **options))
        best = brute_steps(steady, monkeypatch)
        envelope = Envelope(steady)
        planner = Planner(steady)
        for first, last in itertools.combinations_with_replacement(range(1, steady.most + 1), 2):
            bounds = envelope.range(first, last)
            assert type(bounds.step_us) is type(bounds.throughput) is float  # not numpy's
            for n in range(first, last + 1):
                if n in best:
                    compared += 1
                    assert bounds.step_us <= best[n] * (1 + 1e-12)
                    assert bounds.throughput >= n / best[n] * 1e6 * (1 - 1e-12)
        for limit in [*best.values(), math.inf, min(best.values(), default=1.0) * 0.999]:
            reached = [n / step * 1e6 for n, step in best.items() if step <= limit]
            found = largest_throughput(envelope, planner, limit)
            assert found.bound >= max(reached, default=0.0) * (1 - 1e-12)
            if found.plan is not None:
                assert found.plan.step_us <= limit
                assert found.plan.throughput <= max(reached, default=0.0) * (1 + 1e-9)
                gaps.append(found.gap)
    assert compared > 50
    assert len(gaps) > 8
    assert np.median(gaps) < 0.02


def test_two_layers(monkeypatch):
    steady = steady_state(tiny(2, "max", layers=2, room_mib=8.0))
    best = brute_steps(steady, monkeypatch)
    assert len(best) >= 2
    envelope = Envelope(steady)
    whole = envelope.range(1, steady.most)
    assert whole.step_us <= min(best.values()) * (1 + 1e-12)
    assert whole.throughput >= max(n / s for n, s in best.items()) * 1e6 * (1 - 1e-12)
    for n, step in best.items():
        assert envelope.range(n, n).step_us <= step * (1 + 1e-12)
        for replicas in (2, 4):  # with fewer replicas nothing is faster
            few, many = (envelope.with_replicas(n, r).step_us for r in (replicas - 2, replicas))
            assert many <= few


def test_long_ranges_are_bounded_by_every_n_in_them():
    """Ranges longer than those whose every n is looked at; many classes, much rounding."""
    steady = steady_state(read_instance("mixtral-8x7b_4gpu_steady_sum"))
    envelope = Envelope(steady)
    for first, last in ((1, 200), (300, 330), (700, 900), (1, steady.most)):
        bounds = envelope.range(first, last)
        for n in {first, last, (first + last) // 2, first + 1, last - 1}:
            alone = envelope.range(n, n)
            assert bounds.step_us <= alone.step_us
            assert bounds.throughput >= alone.throughput
    first = next(envelope.singles())
    assert first.first == first.last
    every = [envelope.range(n, n).throughput for n in range(1000, steady.most + 1)]
    assert first.throughput >= max(every)


# --- points --------------------------------------------------------------------------------------


def test_front_of_a_real_instance():
    steady = steady_state(read_instance("mixtral-8x7b_4gpu_steady_sum"))
    envelope, planner = Envelope(steady), Planner(steady)
    seen = []
    points = front(envelope, planner, points=6, limits_us=[30_000.0], on_point=seen.append)
    limits = [point.limit_us for point in points]
    assert len(points) == len(seen) == 6
    assert limits == sorted(limits)
    assert 30_000.0 in limits
    for before, after in itertools.pairwise(points):
        assert before.bound <= after.bound
        assert before.plan.throughput <= after.plan.throughput
    for point in points:
        assert point.gap <= 5e-3
        assert point.plan.step_us <= point.limit_us
        plan = point.plan
        report = check_solution(prepare(plan.instance, "joint"), plan.solution)
        assert report.violations == []
        assert report.details["waves"][0]["step_us"] == plan.step_us
        assert plan.throughput == pytest.approx(plan.requests / plan.step_us * 1e6)
    tight = largest_throughput(envelope, planner, 1000.0)
    assert (tight.bound, tight.plan, tight.gap) == (0.0, None, None)


def test_a_plan_above_the_bound_is_an_error(monkeypatch):
    steady = steady_state(tiny(0, "sum"))
    envelope, planner = Envelope(steady), Planner(steady)
    assert largest_throughput(envelope, planner).plan is not None
    monkeypatch.setattr(Envelope, "_step", lambda self, *arguments: 1e9)
    with pytest.raises(AssertionError, match="above its bound"):
        largest_throughput(Envelope(steady), planner)


def test_what_memory_buys(monkeypatch):
    """Intervals of changes hold the differences of brute force."""
    compared = 0
    gib = 3.0 / 1024
    for seed in (0, 3, 5):
        instance = tiny(seed, FORMS[seed % 3])
        requests = steady_state(instance).most // 2
        answer = sensitivity(instance, requests=requests, gib=gib)
        now = answer.cases[0]
        optimum = {}
        for more in {case.more_gib for case in answer.cases}:
            steady = steady_state(instance, more_gib=more)
            steps = brute_steps(steady, monkeypatch)
            optimum[more] = {n: n / step * 1e6 for n, step in steps.items()}
        base = optimum[0.0][requests]
        for case in answer.cases[1:]:
            values = optimum[case.more_gib]
            best = max(values.values()) if "best" in case.name else values.get(case.requests)
            change = case.change_from(now)
            if best is None or change is None:
                continue
            compared += 1
            assert change[0] <= best - base + 1e-6
            assert change[1] >= best - base - 1e-6
        pays = answer.pays
        assert pays is not None
        values = [bound for _, bound in sorted(pays.curve)]
        assert values == sorted(values)
        assert pays.plan.throughput <= pays.bound
        if pays.proved >= 0:
            assert dict(pays.curve)[0] < pays.plan.throughput
            assert optimum[0.0][requests] <= pays.bound
    assert compared >= 8


def test_sensitivity_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="not between 1 and"):
        sensitivity(tiny(0, "sum"), requests=10_000)
    with pytest.raises(InputError, match="no plan was found"):
        sensitivity(tiny(0, "sum"), limit_us=1e-3)
