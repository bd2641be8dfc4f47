"""Plans, bounds and guarantees of ``dispatch`` against brute force and linear programs."""

from __future__ import annotations

import numpy as np
import pytest
from brute import brute_time
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import FORMS, layer_time
from scipy import sparse
from scipy.optimize import linprog

from moeopt.batch_dispatch import check_dispatch, dispatch_batch, layer_batch
from moeopt.batch_dispatch import solve as solving
from moeopt.batch_dispatch.data import LayerBatch
from moeopt.batch_dispatch.descent import descend
from moeopt.batch_dispatch.flow import level
from moeopt.batch_dispatch.prices import Prices, least_cost, on_grid, priced_bound, tokens_needed
from moeopt.batch_dispatch.repair import anneal, split
from moeopt.batch_dispatch.rounding import pour, rounding_guarantee, split_tokens, whole_experts
from moeopt.dispatch_flow import given_time
from moeopt.errors import InputError, MoeoptError
from moeopt.problem import LayerTime

MIXED = ("sum", "max", "p2")
#: Published fit to DeepSeek-V3's experts: us an expert, us a token.
V3 = (14.78, 0.0945)


def random_hosts(rng: np.random.Generator, experts: int, gpus: int, extra: int) -> np.ndarray:
    hosts = np.zeros((experts, gpus), dtype=bool)
    hosts[np.arange(experts), rng.permutation(np.arange(experts) % gpus)] = True
    hosts.flat[rng.choice(experts * gpus, extra, replace=False)] = True
    return hosts


def random_batch(
    rng: np.random.Generator, form: str, experts: int = 24, gpus: int = 4, most: int = 300
) -> LayerBatch:
    hosts = random_hosts(rng, experts, gpus, experts // 2)
    time = LayerTime(form, 3.0, V3[0], 2.0 if form == "max" else 0.0, V3[1])
    return layer_batch(hosts, rng.integers(0, most, experts), time)


def random_shares(rng: np.random.Generator, batch: LayerBatch) -> np.ndarray:
    share = rng.random(len(batch.gpu)) * (rng.random(len(batch.gpu)) < 0.7) + 1e-9
    return share / np.add.reduceat(share, batch.first[:-1])[batch.owner]


def program_value(batch: LayerBatch, most: int | None = None) -> float:
    """Value of the linear program by HiGHS; ``most``: activations of a GPU at most."""
    replicas, gpus = len(batch.gpu), batch.gpus
    on = sparse.csr_array((np.ones(replicas), (batch.gpu, np.arange(replicas))), (gpus, replicas))
    tokens = sparse.csr_array(on * batch.tokens[batch.owner])
    a, b, c, beta = batch.cost.tolist()
    time = -np.ones((gpus, 1))
    if batch.layer_time.form == "sum":
        rows, right = [sparse.hstack([b * on + beta * tokens, time])], [np.full(gpus, -a)]
    else:
        rows = [sparse.hstack([b * on, time]), sparse.hstack([beta * tokens, time])]
        right = [np.full(gpus, -a), np.full(gpus, -c)]
    if most is not None:
        rows[0], right[0] = sparse.hstack([on, 0 * time]), np.full(gpus, float(most))
    every = sparse.csr_array(
        (np.ones(replicas), (batch.owner, np.arange(replicas))), (len(batch.tokens), replicas)
    )
    done = linprog(
        np.r_[np.zeros(replicas), 1.0],
        sparse.vstack(rows),
        np.concatenate(right),
        sparse.hstack([every, np.zeros((len(batch.tokens), 1))]),
        np.ones(len(batch.tokens)),
    )
    return float(done.fun) if done.status == 0 else np.inf


# --- whole problem -------------------------------------------------------------------------------

scenario = st.tuples(
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 6)), min_size=1, max_size=4),
    st.integers(0, 10**6),
)


@given(scenario)
@settings(max_examples=150, deadline=None)
def test_against_brute_force(drawn) -> None:
    form, experts, seed = drawn
    time = layer_time(form, np.random.default_rng(seed))
    hosts = np.array([[bool(mask >> g & 1) for g in range(3)] for mask, _ in experts])
    counts = np.array([n for _, n in experts])
    batch = layer_batch(hosts, counts, time)
    found = dispatch_batch(batch)
    value, violations = check_dispatch(hosts, counts, time, found.assignment)
    assert violations == []
    assert value == found.time
    assert found.bound <= found.time <= found.guarantee * (1 + 1e-12)
    if not counts.any():
        return
    where = tuple(tuple(np.flatnonzero(row).tolist()) for row in hosts)
    tokens = tuple(counts.tolist())
    whole = brute_time(time, where, tokens, True)
    assert found.time >= whole * (1 - 1e-12)
    assert found.bound <= whole * (1 + 1e-12)
    if not batch.mixed:
        assert found.time == pytest.approx(whole, rel=1e-12)
    elif found.proof == "linear program" and form != "max":
        # Holds even where tokens can be divided.
        assert found.bound <= brute_time(time, where, tokens, False) * (1 + 1e-10)


def test_small_mixed_batches_are_solved_nearly_always() -> None:
    best, optimal = [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        time = layer_time(MIXED[seed % 3], rng)
        hosts = random_hosts(rng, 5, 3, 4)
        counts = rng.integers(1, 9, 5)
        found = dispatch_batch(layer_batch(hosts, counts, time))
        where = tuple(tuple(np.flatnonzero(row).tolist()) for row in hosts)
        best.append(brute_time(time, where, tuple(counts.tolist()), True))
        optimal += found.time <= best[-1] * (1 + 1e-9)
    assert optimal >= 54


@pytest.mark.parametrize("form", MIXED)
@pytest.mark.parametrize("gpus", [8, 32])
def test_near_the_bound_at_full_size(form: str, gpus: int) -> None:
    gaps = []
    rng = np.random.default_rng(gpus)
    hosts = random_hosts(rng, 256, gpus, 40)
    time = LayerTime(form, 0.0, V3[0], 0.0, V3[1])
    for tokens in (16, 512, 4096):
        counts = np.bincount(rng.choice(256, 8 * tokens, p=rng.dirichlet(np.ones(256))))
        counts = np.pad(counts, (0, 256 - len(counts)))
        found = dispatch_batch(layer_batch(hosts, counts, time))
        assert check_dispatch(hosts, counts, time, found.assignment)[1] == []
        assert found.time <= found.guarantee
        gaps.append(found.gap)
    assert np.mean(gaps) < 0.02


def test_same_seed_same_plan() -> None:
    batch = random_batch(np.random.default_rng(3), "sum")
    assert dispatch_batch(batch, seed=4) == dispatch_batch(batch, seed=4)


def test_empty_batch() -> None:
    found = dispatch_batch(
        layer_batch(np.ones((3, 2), dtype=bool), [0, 0, 0], LayerTime("p2", 2.0))
    )
    assert found.assignment == []
    assert found.time == found.bound == 2.0


def test_a_bound_above_the_plan_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(solving, "priced_bound", lambda batch, prices: 1e9)
    with pytest.raises(MoeoptError, match="exceeds a plan"):
        dispatch_batch(random_batch(np.random.default_rng(0), "p2"))


# --- flows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_level_is_the_optimum_and_its_cut_proves_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, "sum", experts=7, gpus=4, most=40)
    if not len(batch.tokens):
        return
    found, sent, cut = level(batch, batch.tokens)
    assert (np.add.reduceat(sent, batch.first[:-1]) == batch.tokens).all()
    assert np.bincount(batch.gpu, sent).max() == found
    inside = np.minimum.reduceat(cut[batch.gpu], batch.first[:-1]) == 1
    assert -(-int(batch.tokens[inside].sum()) // int(cut.sum())) == found


# --- prices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", MIXED)
def test_any_prices_are_a_bound(form: str) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        time = layer_time(form, rng)
        hosts = random_hosts(rng, 4, 3, 4)
        counts = rng.integers(1, 7, 4)
        batch = layer_batch(hosts, counts, time)
        where = tuple(tuple(np.flatnonzero(row).tolist()) for row in hosts)
        least = brute_time(time, where, tuple(counts.tolist()), False)
        for _ in range(20):
            prices = Prices(rng.integers(0, 9, 3), rng.integers(0, 9, 3))
            assert priced_bound(batch, prices) <= least * (1 + 1e-11)


@pytest.mark.parametrize("form", ["sum", "max"])
def test_prices_of_the_descent_reach_the_linear_program(form: str) -> None:
    for seed in range(6):
        batch = random_batch(np.random.default_rng(seed), form)
        value = program_value(batch)
        share, activation, token, time = descend(batch, 1.0 / batch.copies[batch.owner])
        bound = priced_bound(batch, on_grid(batch, activation, token))
        assert value * (1 - 2e-3) <= bound <= value * (1 + 1e-9)
        assert value * (1 - 1e-9) <= time <= value * (1 + 2e-3)
        assert np.add.reduceat(share, batch.first[:-1]) == pytest.approx(1.0)


def test_the_flow_of_weights_is_the_linear_program_of_sum() -> None:
    for seed in range(6):
        batch = random_batch(np.random.default_rng(seed), "sum")
        search = solving._Search(batch, 0, 1, 0)
        share = search._sum_shares()
        assert search.bound == pytest.approx(program_value(batch), rel=1e-9)
        tokens = np.bincount(batch.gpu, share * batch.tokens[batch.owner], batch.gpus)
        times = batch.layer_time.of(np.bincount(batch.gpu, share, batch.gpus), tokens)
        assert times.max() == pytest.approx(search.bound, rel=1e-9)


def test_tokens_needed_where_activations_are_limited() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        batch = random_batch(rng, "max", experts=10, gpus=3)
        most = level(batch, np.ones(len(batch.tokens), dtype=np.int64))[0]
        least = (program_value(batch, most) - 2.0) / V3[1]
        for _ in range(10):
            prices = Prices(rng.integers(0, 500, 3), rng.integers(0, 5, 3))
            assert tokens_needed(batch, prices, most) <= np.ceil(least - 1e-6)


def test_bounds_of_max_use_whole_activations() -> None:
    """Two values of K: min(f(K + 1), the least tokens with at most K activations)."""
    raised = 0
    for seed in range(30):
        batch = random_batch(np.random.default_rng(seed), "max", most=700)
        value = program_value(batch)
        a, b = batch.cost.tolist()[:2]
        exact = min(
            max(a + b * k, program_value(batch, k))
            for k in range(int((value - a) / b), len(batch.tokens) + 1)
        )
        found = dispatch_batch(batch)
        # Whole tokens may need up to one token more than the program.
        assert found.bound <= exact + V3[1] + 1e-9
        raised += found.bound > value * (1 + 1e-6)
    assert raised >= 5


def test_grid_prices_cannot_overflow() -> None:
    hosts = np.ones((3, 2), dtype=bool)
    batch = layer_batch(hosts, [2**38, 2**38, 1], LayerTime("sum", 0.0, 5.0, 0.0, 1.0))
    prices = on_grid(batch, np.array([3.0, 1e-3]), np.array([1.0, 7.0]))
    each = [
        [int(prices.activation[g]) + n * int(prices.token[g]) for g in range(2)]
        for n in batch.tokens.tolist()
    ]
    assert least_cost(batch, prices) == sum(min(line) for line in each)


# --- rounding and repair -------------------------------------------------------------------------


@pytest.mark.parametrize("form", MIXED)
def test_rounding_keeps_its_guarantee(form: str) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        batch = random_batch(rng, form, experts=12)
        share = random_shares(rng, batch)
        poured = pour(batch, share)
        sent = whole_experts(batch, poured)
        for i, n in enumerate(batch.tokens.tolist()):
            mine = sent[batch.first[i] : batch.first[i + 1]]
            assert sorted(mine.tolist())[-1] == n == mine.sum()
        time = given_time(batch.layer_time, batch.assignment(sent), batch.gpus)
        assert time <= rounding_guarantee(batch, poured) * (1 + 1e-9)
        # The a-priori form of the theorem.
        tokens = np.bincount(batch.gpu, share * batch.tokens[batch.owner], batch.gpus)
        activated = np.bincount(batch.gpu, share, batch.gpus)
        most = batch.tokens.max()
        apart = batch.layer_time.of(np.ceil(activated - 1e-4), tokens * (1 + 1e-5) + most)
        assert time <= apart.max()


def test_split_tokens_are_whole_and_near() -> None:
    rng = np.random.default_rng(0)
    batch = random_batch(rng, "sum")
    share = random_shares(rng, batch)
    sent = split_tokens(batch, share)
    assert (np.add.reduceat(sent, batch.first[:-1]) == batch.tokens).all()
    assert np.abs(sent - share * batch.tokens[batch.owner]).max() < 1.01


@pytest.mark.parametrize("form", MIXED)
def test_repair_never_hurts_and_keeps_tokens(form: str) -> None:
    rng = np.random.default_rng(1)
    batch = random_batch(rng, form)
    sent = split_tokens(batch, random_shares(rng, batch))
    before = given_time(batch.layer_time, batch.assignment(sent), batch.gpus)
    levelled = split(batch, sent, 0.0)
    annealed = anneal(batch, sent, 0.5 * levelled, 20_000, rng)
    assert annealed <= levelled <= before
    assert annealed < before
    assert (np.add.reduceat(sent, batch.first[:-1]) == batch.tokens).all()
    now = given_time(batch.layer_time, batch.assignment(sent), batch.gpus)
    assert now == pytest.approx(annealed, rel=1e-12)


# --- input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([1, 2], "3 experts are needed"),
        ([1, 2, 0.5], "whole numbers"),
        ([1, 2, -1], "numbers from 0"),
        ([1, 2, np.nan], "whole numbers"),
        ([1, 2, 2**41], "at most"),
        ([1, 2, 3], "no GPU hosts expert 2"),
    ],
)
def test_counts_that_do_not_fit(counts: list[float], words: str) -> None:
    hosts = np.array([[True, False], [True, True], [False, False]])
    with pytest.raises(InputError, match=words):
        layer_batch(hosts, counts, LayerTime())


def test_checker_refuses() -> None:
    hosts, counts = np.array([[True, True], [True, False]]), np.array([3, 2])
    time = LayerTime("sum", 0.0, 1.0, 0.0, 1.0)
    assert check_dispatch(hosts, counts, time, [(0, 1, 3), (1, 0, 2)]) == (4.0, [])
    wrong = [
        ([(0, 1, 3), (1, 1, 2)], "does not host"),
        ([(0, 1, 2), (1, 0, 2)], "2 of 3 tokens"),
        ([(0, 1, 1.5), (0, 0, 1.5), (1, 0, 2)], "1.5 tokens"),
        ([(0, 1, 1), (0, 1, 2), (1, 0, 2)], "twice"),
        ([(0, 2, 3), (1, 0, 2)], "does not exist"),
    ]
    for assignment, words in wrong:
        assert any(words in line for line in check_dispatch(hosts, counts, time, assignment)[1])


@pytest.mark.parametrize("form", ["unit", *MIXED])
def test_any_coefficients(form: str) -> None:
    """Orders of magnitude apart, some of them 0, experts without tokens, one GPU."""
    for seed in range(80):
        rng = np.random.default_rng(seed)
        experts, gpus = int(rng.integers(1, 40)), int(rng.integers(1, 12))
        hosts = random_hosts(rng, experts, gpus, int(rng.integers(0, experts * gpus + 1)))
        a, b, c, beta = (10.0 ** rng.uniform(-6, 6, 4) * (rng.random(4) < 0.8)).tolist()
        time = LayerTime(form, a, b, c if form == "max" else 0.0, beta)
        counts = (10 ** rng.uniform(0, 9, experts) * (rng.random(experts) < 0.8)).astype(np.int64)
        found = dispatch_batch(layer_batch(hosts, counts, time))
        value, violations = check_dispatch(hosts, counts, time, found.assignment)
        assert violations == []
        assert found.bound <= found.time == value <= found.guarantee * (1 + 1e-12)
