"""Layer times: two exact methods each, brute force, and properties that must hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from brute import brute_time, least_time, subsets
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import FORMS, layer_time, random_data, random_scenarios
from scipy.optimize import linprog

from moeopt import dispatch, dispatch_exact
from moeopt.dispatch import exact_time, given_time, rule_time, time_lower_bound
from moeopt.dispatch_flow import DispatchResult, capacity, scalar_form, split_time
from moeopt.dispatch_sets import _unit_times_by_experts, least_loads
from moeopt.problem import LayerTime

#: A scenario: form, whole tokens?, (mask of GPUs, tokens) of each expert, seed of constants.
scenario = st.tuples(
    st.sampled_from(FORMS),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 5)), min_size=1, max_size=4),
    st.integers(0, 10**6),
)


def unpack(drawn):
    form, whole, experts, seed = drawn
    rng = np.random.default_rng(seed)
    time = layer_time(form, rng)
    hosts = tuple(tuple(g for g in range(3) if mask >> g & 1) for mask, _ in experts)
    scale = 1 if whole else float(rng.random())
    return time, hosts, tuple(scale * n for _, n in experts), whole


def random_hosts(rng, experts, gpus, extra) -> list[tuple[int, ...]]:
    x = np.zeros((experts, gpus), dtype=bool)
    x[np.arange(experts), rng.permutation(np.arange(experts) % gpus)] = True
    x.flat[rng.choice(experts * gpus, extra, replace=False)] = True
    return [tuple(np.flatnonzero(row).tolist()) for row in x]


# --- exact times against brute force ------------------------------------------------------------


@given(scenario)
@settings(max_examples=400, deadline=None)
def test_exact_equals_brute_force(drawn):
    time, hosts, tokens, whole = unpack(drawn)
    result = exact_time(time, hosts, tokens, whole)
    assert result.exact
    assert result.time == pytest.approx(
        brute_time(time, hosts, tokens, whole), rel=1e-10, abs=1e-12
    )


def test_the_search_needs_no_good_start(monkeypatch):
    # From a hopeless dispatch: a wrong bound in the nodes would cut off the optimum.
    def hopeless(time, hosts, tokens, whole):
        return DispatchResult(1e6, [], "hopeless", False)

    monkeypatch.setattr(dispatch_exact, "rule_time", hopeless)
    rng = np.random.default_rng(12)
    for trial in range(240):
        time = layer_time(("sum", "max", "p2")[trial % 3], rng)
        whole = trial % 2 == 0
        hosts = tuple(random_hosts(rng, 4, 3, int(rng.integers(1, 10))))
        # Few distinct counts: equal experts are common.
        tokens = (rng.integers(1, 4, 4) * (1 if whole else 1.7)).tolist()
        result = exact_time(time, hosts, tokens, whole)
        assert result.time == pytest.approx(
            brute_time(time, hosts, tuple(tokens), whole), rel=1e-10
        )
    # One expert of many tokens wants all three of its replicas.
    result = exact_time(LayerTime("sum", 0, 1, 0, 1), [(0, 1, 2), (0,)], [90, 3], True)
    assert result.time == 33


@given(scenario)
@settings(max_examples=200, deadline=None)
def test_assignments_are_valid_and_attain_their_time(drawn):
    time, hosts, tokens, whole = unpack(drawn)
    for result in (exact_time(time, hosts, tokens, whole), rule_time(time, hosts, tokens, whole)):
        sent = [0.0] * len(hosts)
        for e, g, n in result.assignment:
            assert g in hosts[e]
            assert n > 0
            assert not whole or n == int(n)
            sent[e] += n
        assert sent == pytest.approx(tokens, rel=1e-12 if not whole else 0, abs=0)
        assert len({(e, g) for e, g, _ in result.assignment}) == len(result.assignment)
        assert given_time(time, result.assignment, 3) == result.time


@given(scenario)
@settings(max_examples=200, deadline=None)
def test_bounds_enclose_the_exact_time(drawn):
    time, hosts, tokens, whole = unpack(drawn)
    exact = brute_time(time, hosts, tokens, whole)
    assert rule_time(time, hosts, tokens, whole).time >= exact * (1 - 1e-12)
    # The bound holds for every placement on three GPUs, so for this one.
    assert time_lower_bound(time, tokens, 3, whole) <= exact * (1 + 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [True, False])
def test_lower_bound_is_near_the_best_placement(form, whole):
    # The best placement of all is full replication: it allows every dispatch.
    rng = np.random.default_rng(3)
    for _ in range(20):
        time = layer_time(form, rng)
        tokens = (rng.integers(1, 7, 3) * (1 if whole else rng.random())).tolist()
        best = brute_time(time, ((0, 1),) * 3, tuple(tokens), whole)
        bound = time_lower_bound(time, tokens, 2, whole)
        assert 0.75 * best <= bound <= best * (1 + 1e-12)
        if form in ("unit", "activations", "tokens"):
            assert bound == pytest.approx(best, rel=1e-11)


def test_lower_bound_counts_the_replicas_that_a_hot_expert_needs():
    # 90 of 96 tokens are one expert's: it needs three replicas, so five activations on three GPUs.
    time = LayerTime("sum", 0, 12, 0, 1)
    bound = time_lower_bound(time, [90, 3, 3], 3)
    assert bound == pytest.approx((5 * 12 + 96) / 3, rel=1e-11)
    best = brute_time(time, ((0, 1, 2),) * 3, (90.0, 3.0, 3.0), False)
    assert bound <= best * (1 + 1e-12)


@given(scenario, st.data())
@settings(max_examples=150, deadline=None)
def test_more_replicas_never_hurt(drawn, data):
    time, hosts, tokens, whole = unpack(drawn)
    e = data.draw(st.integers(0, len(hosts) - 1))
    g = data.draw(st.integers(0, 2))
    more = [tuple(sorted({*h, g})) if i == e else h for i, h in enumerate(hosts)]
    before = exact_time(time, hosts, tokens, whole).time
    assert exact_time(time, more, tokens, whole).time <= before * (1 + 1e-11)


@given(scenario, st.permutations(range(3)), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_names_of_gpus_and_experts_do_not_matter(drawn, gpus, random):
    time, hosts, tokens, whole = unpack(drawn)
    order = list(range(len(hosts)))
    random.shuffle(order)
    renamed = [tuple(gpus[g] for g in hosts[e]) for e in order]
    expected = exact_time(time, hosts, tokens, whole).time
    result = exact_time(time, renamed, [tokens[e] for e in order], whole)
    assert result.time == pytest.approx(expected, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("form", ["sum", "max", "p2"])
def test_large_searches_agree_with_the_compact_model(form):
    # Eight experts, 14 replicas, against a mixed-integer program (tangents for p2).
    from scipy.optimize import Bounds, LinearConstraint, milp

    rng = np.random.default_rng(17)
    for _ in range(3):
        time = LayerTime(form, 2.0, 10.0, 1.0 if form == "max" else 0.0, 1.0)
        hosts = random_hosts(rng, 8, 4, 6)
        tokens = rng.uniform(1, 30, 8)
        edges = [(e, g) for e, h in enumerate(hosts) for g in h]
        m = len(edges)  # columns: y by edge, u by edge, T
        rows, low, high = [], [], []
        for e in range(8):
            rows.append([float(edge[0] == e) for edge in edges] + [0.0] * (m + 1))
            low.append(tokens[e])
            high.append(tokens[e])
        for i, (e, _) in enumerate(edges):
            row = np.zeros(2 * m + 1)
            row[i], row[m + i] = 1, -tokens[e]
            rows.append(row)
            low.append(-np.inf)
            high.append(0)
        for constant, activation, token in time.pieces():
            for g in range(4):
                on = np.array([edge[1] == g for edge in edges], dtype=float)
                rows.append([*(token * on), *(activation * on), -1.0])
                low.append(-np.inf)
                high.append(-constant)
        cost = np.zeros(2 * m + 1)
        cost[-1] = 1
        solved = milp(
            cost,
            constraints=LinearConstraint(np.array(rows), low, high),
            integrality=np.r_[np.zeros(m), np.ones(m), 0],
            bounds=Bounds(0, np.r_[np.full(m, np.inf), np.ones(m), np.inf]),
            options={"mip_rel_gap": 1e-9},
        )
        assert solved.status == 0
        result = exact_time(time, hosts, tokens, False)
        assert result.exact
        assert result.method == "exact: enumeration"
        slack = 1e-6 if form != "p2" else 1 / math.cos(math.pi / 64) - 1
        assert solved.fun * (1 - 1e-6) <= result.time <= solved.fun * (1 + slack + 1e-6)


def test_brute_force_split_is_the_linear_program():
    # The judge judged: its min-cut condition against linprog, for one activation pattern.
    rng = np.random.default_rng(2)
    for form in ("sum", "max"):
        for _ in range(10):
            time = layer_time(form, rng)
            used = [subsets(range(3))[i] for i in rng.integers(0, 7, 3)]
            tokens = rng.uniform(0.1, 9, 3)
            activated = [sum(g in u for u in used) for g in range(3)]
            value = max(float(time.of(a, 0)) for a in activated)
            for q in subsets(range(3)):
                gpus = sorted({g for i in q for g in used[i]})
                value = least_time(time, [activated[g] for g in gpus], tokens[list(q)].sum(), value)
            edges = [(e, g) for e, u in enumerate(used) for g in u]
            rows, right = [], []
            for constant, activation, token in time.pieces():
                for g in range(3):
                    rows.append([*(token * (edge[1] == g) for edge in edges), -1.0])
                    right.append(-constant - activation * activated[g])
            equal = [[*(float(edge[0] == e) for edge in edges), 0.0] for e in range(3)]
            solved = linprog([0.0] * len(edges) + [1.0], rows, right, equal, tokens)
            assert solved.status == 0
            assert value == pytest.approx(solved.fun, rel=1e-9)


# --- second methods -----------------------------------------------------------------------------


def test_hall_equals_matching_equals_sets_of_gpus():
    rng = np.random.default_rng(7)
    for _ in range(200):
        size, gpus = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        masks = rng.integers(1, 1 << gpus, (1, size))
        hosts = [tuple(g for g in range(gpus) if m >> g & 1) for m in masks[0].tolist()]
        by_matching = dispatch.matching_time(hosts)
        assert _unit_times_by_experts(masks).tolist() == [by_matching]
        zeros = np.zeros(size, dtype=np.int64)
        loads = least_loads(zeros, masks[0], np.ones(size), 1, gpus)
        assert math.ceil(loads[0]) == by_matching
        assert dispatch.unit_times(masks).tolist() == [by_matching]
        assert exact_time(LayerTime(), hosts, [1] * size, True).time == by_matching


def test_unit_times_of_padded_and_wide_rows():
    masks = np.array([[1, 1, 1, -1], [1, 2, 3, 3], [-1, -1, -1, -1], [1, 1, 2, 1]])
    assert dispatch.unit_times(masks).tolist() == [3, 2, 0, 3]
    rng = np.random.default_rng(0)
    wide = rng.integers(1, 2**20, (2, 40)) & rng.integers(0, 2**20, (2, 40)) | 1 << 19
    bits = np.arange(20)
    expected = [
        dispatch.matching_time([tuple(np.flatnonzero(m >> bits & 1).tolist()) for m in row])
        for row in wide
    ]
    assert dispatch.unit_times(wide).tolist() == expected
    with pytest.raises(ValueError, match="nowhere"):
        dispatch.unit_times(np.array([[0, 1]]))


def test_unit_times_in_chunks(monkeypatch):
    import moeopt.dispatch_sets as sets

    rng = np.random.default_rng(1)
    masks = rng.integers(1, 64, (50, 5))
    rows, column = np.nonzero(masks > 0)
    plain = _unit_times_by_experts(masks)
    loads = least_loads(rows, masks[rows, column], column + 1.0, 50, 6)
    monkeypatch.setattr(sets, "_CHUNK", 64)
    assert _unit_times_by_experts(masks).tolist() == plain.tolist()
    again = least_loads(rows, masks[rows, column], column + 1.0, 50, 6)
    assert again.tolist() == loads.tolist()


def test_loads_by_sets_of_gpus_equal_the_flow():
    rng = np.random.default_rng(9)
    for whole in (True, False):
        for _ in range(100):
            experts, gpus = int(rng.integers(1, 20)), int(rng.integers(1, 7))
            hosts = random_hosts(rng, experts, gpus, int(rng.integers(0, experts * gpus // 2 + 1)))
            tokens = rng.integers(1, 50, experts) * (1 if whole else rng.random())
            masks = np.array([sum(1 << g for g in h) for h in hosts])
            zeros = np.zeros(experts, dtype=np.int64)
            load = float(least_loads(zeros, masks, tokens.astype(float), 1, gpus)[0])
            by_tokens = LayerTime("sum", token_us=1.0)
            time, flow = split_time(by_tokens, hosts, tokens.tolist(), [0] * gpus, whole)
            assert flow is not None
            assert time == pytest.approx(math.ceil(load) if whole else load, rel=1e-12)


@pytest.mark.parametrize("form", ["sum", "max", "p2"])
def test_capacity_inverts_the_form(form):
    rng = np.random.default_rng(4)
    for _ in range(200):
        time = layer_time(form, rng)
        activated, tokens = int(rng.integers(0, 6)), int(rng.integers(0, 1000))
        f = scalar_form(time)
        assert f(activated, tokens) == pytest.approx(float(time.of(activated, tokens)), rel=1e-15)
        at = f(activated, tokens)
        n = capacity(time, at, activated, True)
        assert n >= tokens
        assert f(activated, n) == at
        assert f(activated, n + 1) > at
        real = capacity(time, at, activated, False)
        assert n - 1e-6 <= real <= n + 1
        assert capacity(time, f(activated, 0) * (1 - 1e-9), activated, True) == -math.inf


# --- scenarios ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("replicas", [0, 5])
def test_scenario_times_equal_brute_force(form, replicas):
    rng = np.random.default_rng([len(form), replicas])
    data = random_data(
        "replication", rng, form=form, layers=2, experts=6, gpus=3, top_k=2, max_members=4,
        scenarios=12, max_tokens=4,
    )  # fmt: skip
    x = np.zeros((2, 6, 3), dtype=bool)
    x[:, np.arange(6), np.arange(6) % 3] = True
    x.flat[rng.choice(36, replicas, replace=False)] = True
    times, method = dispatch.scenario_times(data, x)
    assert all(part.startswith("exact") for part in method.split("; "))
    for layer, rows in enumerate(data.scenarios):
        expected = [
            brute_time(
                data.layer_time,
                tuple(tuple(np.flatnonzero(x[layer, e]).tolist()) for e in rows.members(s)),
                tuple(rows.counts(s).tolist()),
                True,
            )
            for s in range(len(rows))
        ]
        assert times[layer].tolist() == pytest.approx(expected, rel=1e-12)


def test_large_unit_scenarios_by_each_method():
    rng = np.random.default_rng(6)
    rows = random_scenarios(rng, 40, 20, 5)
    x = np.zeros((40, 70), dtype=bool)
    x[np.arange(40), np.arange(40) % 4] = True
    x[np.arange(10), 5] = True
    times = [dispatch.layer_times(LayerTime(), rows, x[:, :g])[0].tolist() for g in (6, 30, 70)]
    assert times[0] == times[1] == times[2]


def test_a_scenario_with_an_unhosted_expert_has_no_time():
    rows = random_scenarios(np.random.default_rng(0), 3, 2, 3)
    with pytest.raises(ValueError, match="nowhere"):
        dispatch.layer_times(LayerTime(), rows, np.zeros((3, 2), dtype=bool))
    with pytest.raises(ValueError, match="nowhere"):
        exact_time(LayerTime(), [(0,), ()], [1, 1], True)
    # Without tokens it is not needed.
    assert exact_time(LayerTime(), [(0,), ()], [1, 0], True).time == 1


# --- corner cases -------------------------------------------------------------------------------


def test_no_tokens_cost_the_idle_time():
    for form, expected in (("unit", 0.0), ("sum", 2.0), ("max", 2.0), ("p2", 2.0)):
        time = layer_time(form)
        for result in (
            exact_time(time, [(0, 1)], [0], True),
            exact_time(time, [(0, 1)], [0.0], False),
            rule_time(time, [(0, 1)], [0.0], False),
        ):
            assert result.time == expected
            assert result.assignment == []
        assert time_lower_bound(time, [0, 0], 2) == expected
        assert given_time(time, [], 2) == expected


def test_sharing_pays_only_when_tokens_outweigh_the_weights():
    time = LayerTime("sum", 0, 10, 0, 1)
    whole = exact_time(time, [(0, 1), (0,)], [5, 5], True)
    assert whole.time == 15
    split = exact_time(time, [(0, 1)], [100], True)
    assert split.time == 60
    assert sorted(split.assignment) == [(0, 0, 50), (0, 1, 50)]


def test_search_cut_off_is_said():
    rng = np.random.default_rng(0)
    hosts = random_hosts(rng, 24, 6, 60)
    tokens = rng.uniform(20, 120, 24)
    time = LayerTime("sum", 0, 60, 0, 1)
    result = exact_time(time, hosts, tokens, False, nodes_limit=30)
    assert not result.exact
    assert not result.method.startswith("exact")
    assert result.time <= rule_time(time, hosts, tokens, False).time
    assert result.time >= time_lower_bound(time, tokens.tolist(), 6)
    assert given_time(time, result.assignment, 6) == result.time


def test_the_rule_is_near_the_optimum():
    rng = np.random.default_rng(8)
    ratios = []
    for form in ("sum", "max", "p2"):
        for _ in range(20):
            time = LayerTime(form, 2.0, 10.0, 0.0, 1.0)
            hosts = random_hosts(rng, 8, 4, 8)
            tokens = rng.uniform(1, 40, 8)
            exact = exact_time(time, hosts, tokens, False)
            assert exact.exact
            ratios.append(rule_time(time, hosts, tokens, False).time / exact.time)
    assert max(ratios) < 1.15
    assert np.mean(ratios) < 1.01
