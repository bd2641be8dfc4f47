"""Waves one by one: cuts, the programme of the waves, its branching, hosts for single waves."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import brute
import numpy as np
import pytest
from make_data import FORMS, layer_time, random_data

from moeopt.checker import check_solution
from moeopt.heuristics import joint
from moeopt.joint import assemble
from moeopt.joint.assemble import Assembler
from moeopt.joint.cost import cost_of, shared_time, tangent_of
from moeopt.joint.layer_plan import plan_layer
from moeopt.joint.lengths import lengths_bound
from moeopt.joint.minorants import Domain, Minorants
from moeopt.joint.wave_dispatch import dispatch_wave
from moeopt.joint.wave_hosts import add_hosts
from moeopt.joint.wave_ranges import agreeing, best_requests, parts, whole
from moeopt.joint.waves_program import WavesProgram
from moeopt.problem import LayerTime


def members(domain: Domain) -> list[tuple[int, ...]]:
    """All whole numbers of requests of a domain."""
    ranges = [range(a, b + 1) for a, b in zip(domain.least, domain.most, strict=True)]
    return [n for n in product(*ranges) if domain.low <= sum(n) <= domain.high]


def best_time(time: LayerTime, experts: int, gpus: int, tokens: np.ndarray) -> float:
    """Least layer time of any hosts."""
    hosts = product(brute.subsets(range(gpus)), repeat=experts)
    return min(brute.brute_time(time, h, tuple(tokens), False) for h in hosts)


def random_domain(rng: np.random.Generator, classes: int) -> Domain:
    least = rng.integers(0, 3, classes)
    most = least + rng.integers(0, 5, classes)
    low = int(rng.integers(1, most.sum() + 1)) if most.any() else 0
    domain = Domain(tuple(least.tolist()), tuple(most.tolist()), low, int(most.sum()))
    return domain.tightened()


@pytest.mark.parametrize("form", FORMS)
def test_tangents_lie_below(form):
    rng = np.random.default_rng(0)
    for _ in range(30):
        cost = cost_of(layer_time(form, rng))
        p, k = int(rng.integers(0, 9)), int(rng.integers(1, 5))
        at, elsewhere = rng.uniform(0, 60, 2)
        constant, slope = tangent_of(cost, p, k, at)
        assert slope >= 0
        near = 1e-9 if form != "p2" or p % k == 0 else 2e-3
        assert constant + slope * at == pytest.approx(shared_time(cost, p, k, at), rel=near)
        assert constant + slope * elsewhere <= shared_time(cost, p, k, elsewhere) * (1 + 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_cuts_hold_for_every_wave_of_a_domain(form):
    """Compared with brute force over all hosts, and with the claim that they raise."""
    rng = np.random.default_rng(1)
    raised = 0
    for _ in range(6):
        time = layer_time(form, rng)
        experts, gpus, classes = 3, int(rng.integers(2, 4)), 2
        usage = rng.integers(1, 9, (classes, 1, experts)) / 4.0
        domain = random_domain(rng, classes)
        if domain.high == 0:
            continue
        minorants = Minorants(cost_of(time), usage, np.ones((1, experts), int), gpus)
        waves = members(domain)
        times = {n: best_time(time, experts, gpus, np.array(n) @ usage[:, 0]) for n in waves}
        for n in waves[:: max(1, len(waves) // 3)]:
            claimed = np.array([0.5 * times[n]])
            before = len(minorants.cuts(domain).floor)
            added, missing = minorants.cut_off(domain, np.array(n, float), claimed, 1e-6)
            assert missing <= 0.5 * times[n] * (1 + 1e-9)
            near = 1e-2 if form == "p2" else 1e-9
            assert missing == pytest.approx(0.5 * times[n], rel=near)
            raised += added
            assert len(minorants.cuts(domain).floor) == before + 1
        cuts = minorants.cuts(domain)
        for n in waves:
            values = [s @ np.array(n) + f for s, f in zip(cuts.slope, cuts.floor, strict=True)]
            assert max(values) <= times[n] * (1 + 1e-9)
        n = waves[0]  # known exactly, a wave is bounded exactly
        alone = Domain(n, n, sum(n), sum(n))
        minorants.cut_off(alone, np.array(n, float), np.zeros(1), 0.0)
        cuts = minorants.cuts(alone)
        values = [s @ np.array(n) + f for s, f in zip(cuts.slope, cuts.floor, strict=True)]
        assert max(values) == pytest.approx(times[n], rel=1e-6)
    assert raised > 0


def test_parts_leave_no_wave_out():
    """Every composition of the requests stays in exactly one part."""
    for seed in range(8):
        data = random_data(
            "joint", np.random.default_rng(seed), form="sum", classes=2, max_count=4, waves=2
        )
        count = data.requests.count
        longest = int(data.requests.output_tokens.max())
        program = WavesProgram(data)
        waves = whole(program, (longest, longest))
        ways = [
            (first, tuple((count - np.array(first)).tolist()))
            for first in product(*(range(m + 1) for m in count))
        ]

        def holding(waves, ways=ways):
            sets = [set(members(domain)) for domain in waves.domains]
            return {way for way in ways if way[0] in sets[0] and way[1] in sets[1]}

        queue, final = [waves], []
        assert holding(waves) == {w for w in ways if sum(w[0]) and sum(w[1])}
        while queue:
            waves = queue.pop()
            assert waves.bound.requests is not None
            if all(domain.least == domain.most for domain in waves.domains):
                final.append(waves)
                continue
            divided = parts(program, waves)
            kept = [holding(part) for part in divided]
            assert set().union(*kept) == holding(waves)
            assert sum(map(len, kept)) == len(holding(waves))
            queue += divided
        assert len(final) == sum(bool(sum(w[0]) and sum(w[1])) for w in ways)


def test_a_wave_too_short_for_every_request_is_not_used():
    data = random_data("joint", np.random.default_rng(0), form="sum", classes=2, waves=2)
    longest = int(data.requests.output_tokens.max())
    assert whole(WavesProgram(data), (longest, 1)) is None
    prescribed = replace(data, wave_steps=(longest, 1))
    with_one = replace(data, waves=1, wave_steps=(longest,))
    bound = lengths_bound(prescribed)
    assert bound.value == pytest.approx(lengths_bound(with_one).value, rel=0.1)
    assert bound.lengths == (longest, 0)


def test_no_waves_agree_where_too_many_are_wanted():
    domain = Domain((2, 0), (3, 2), 2, 5)
    assert agreeing(np.array([3, 2]), (domain, domain)) is None
    first, second = agreeing(np.array([4, 2]), (domain, domain))
    assert first.least == (*first.most[:1], 0)
    assert second.most == (2, 2)


@pytest.mark.parametrize("charged", ["activated", "resident"])
@pytest.mark.parametrize("form", ["sum", "max", "p2"])
def test_bound_of_waves_below_brute_force(form, charged, monkeypatch):
    """Two and three waves of many lengths: bound <= optimum <= plan, and rarely far from it."""
    from test_joint_layers import brute_value

    gaps = []
    for seed in range(6):
        data = random_data(
            "joint", np.random.default_rng(200 + seed), form=form, experts=3, top_k=1 + seed % 2,
            classes=2 + seed % 2, max_count=3, waves=2 + (seed == 4), spare=seed % 3,
        )  # fmt: skip
        data = replace(data, charged=charged)
        with monkeypatch.context() as patch:
            optimum = brute_value(data, patch)
        bound = lengths_bound(data)
        assert bound.value <= optimum * (1 + 1e-12)
        plan = joint.plan(data, lengths=bound.lengths, time_limit_s=5)
        if plan is not None:
            report = check_solution(data, plan)
            assert report.violations == []
            assert report.objective >= optimum * (1 - 1e-9)
        gaps.append(optimum / bound.value - 1)
    assert np.median(gaps) < 0.1


def test_programme_knows_more_than_the_mean_step():
    """Long requests that cannot share with short ones: the mean of their steps is too cheap."""
    data = random_data("joint", np.random.default_rng(3), form="max", classes=2, waves=2)
    requests = replace(
        data.requests, count=np.array([2, 40]), output_tokens=np.array([100, 10]),
        kv_mib=np.zeros(2),
    )  # fmt: skip
    data = replace(data, requests=requests)
    program = WavesProgram(data)
    cost = cost_of(data.layer_time)
    waves = whole(program, (100, 10))
    assert waves.bound.requests is not None
    apart = sum(
        d * best_time(data.layer_time, data.experts, data.gpus, n @ requests.usage[:, 0])
        for d, n in ((100, np.array([2.0, 0.0])), (10, np.array([0.0, 40.0])))
    )
    mixed = np.array([200.0, 400.0]) / 110.0 @ requests.usage[:, 0]
    mean = 110 * shared_time(cost, data.experts, data.gpus, float(mixed.sum()))
    attention = 110 * data.attention_base_us
    assert mean < waves.bound.value - attention <= apart * (1 + 1e-9)


def test_requests_of_the_programme_suit_the_waves():
    for seed in range(6):
        data = random_data(
            "joint", np.random.default_rng(seed), form="sum", classes=3, max_count=6, waves=3
        )
        outputs = data.requests.output_tokens
        lengths = (int(outputs.max()), 0, int(outputs.min()))
        counts = best_requests(data, lengths, memory_share=1.0, deadline=time.monotonic() + 5)
        if counts is None:
            continue
        assert (counts.sum(axis=1) == data.requests.count).all()
        assert not counts[:, 1].any()
        assert ((counts == 0) | (outputs[:, None] <= np.array(lengths))).all()


@pytest.mark.parametrize("form", ["sum", "max", "p2"])
def test_added_hosts_help_single_waves(form):
    rng = np.random.default_rng(5)
    gained, experts, gpus = 0, 5, 3
    for _ in range(8):
        cost = cost_of(layer_time(form, rng))
        tokens = rng.integers(1, 40, (2, 1, experts)) / 4.0
        base = np.zeros((experts, gpus), dtype=bool)
        base[np.arange(experts), rng.integers(0, gpus, experts)] = True
        shares = np.stack([tokens[w, 0][:, None] * base for w in range(2)])[:, None]

        def own(w, l, tokens=tokens, cost=cost):
            return plan_layer(
                cost, tokens[w, l], gpus, 2, charged=np.ones(experts, int), bound=0.0, groups=None,
                slots=experts, kicks=20, seed=0,
            )  # fmt: skip

        for replicas in (0, 3, 20):
            hosts, split = add_hosts(
                cost, tokens, np.array([5, 2]), [base], shares, own, replicas=replicas, slots=5
            )
            assert (hosts[0] | ~base).all()
            assert hosts[0].sum() - base.sum() <= replicas
            assert not (split[:, 0][:, ~hosts[0]] > 0).any()
            for w in range(2):
                before = dispatch_wave(cost, tokens[w, 0], base, shares[w, 0], False)[0]
                after = dispatch_wave(cost, tokens[w, 0], hosts[0], split[w, 0], False)[0]
                assert after <= before * (1 + 1e-9)
                gained += after < before * (1 - 1e-6)
                if replicas == 20:
                    assert after <= own(w, 0).time * (1 + 1e-9)
    assert gained > 4


def test_plans_use_memory_for_single_waves():
    """Two waves with hot experts of their own, and memory to serve both."""
    data = random_data("joint", np.random.default_rng(6), form="sum", classes=2, waves=2, experts=4)
    usage = np.array([[[8.0, 8.0, 1.0, 1.0]], [[1.0, 8.0, 1.0, 8.0]]])
    requests = replace(
        data.requests, count=np.array([4, 4]), output_tokens=np.array([50, 40]), usage=usage,
        kv_mib=np.full(2, 1.0),
    )  # fmt: skip
    data = replace(
        data, requests=requests, free_mib=np.full(data.gpus, 4 * data.expert_mib + 100.0),
        slots=None,
    )  # fmt: skip
    counts = np.array([[4, 0], [0, 4]])
    found = Assembler(data).plan(counts)
    assert found is not None
    report = check_solution(data, found[1])
    assert report.violations == []
    best = sum(
        d * (best_time(data.layer_time, 4, data.gpus, 4 * usage[c, 0]))
        for c, d in ((0, 50), (1, 40))
    )
    caches = found[1].requests_array(requests.names, data.gpus).sum(axis=0).max(axis=1)
    attention = np.array([50, 40]) @ (data.attention_base_us + data.attention_us_per_mib * caches)
    assert report.objective == pytest.approx(best + attention, rel=1e-6)


def test_a_plan_can_be_stopped_at_every_layer(monkeypatch):
    data = random_data("joint", np.random.default_rng(6), form="sum", classes=2, waves=1, layers=3)
    data = replace(data, free_mib=np.full(data.gpus, 1e4), slots=None)
    counts = data.requests.count[:, None]
    planned = []

    def counting(*arguments, **more):
        planned.append(arguments)
        return plan_layer(*arguments, **more)

    monkeypatch.setattr(assemble, "plan_layer", counting)
    assert Assembler(data).plan(counts, stop=lambda: len(planned) == 2) is None
    assert len(planned) == 2
    assert Assembler(data).plan(counts) is not None
