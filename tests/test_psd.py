"""Bounds for many experts on a GPU: rows at every placement, exact evaluation, brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from brute import brute_optimum
from psd_layers import SHAPES, expected_time, layer, partitions

from moeopt.catalog import read_instance
from moeopt.errors import InputError
from moeopt.prepare import prepare
from moeopt.problem import ProblemData, Scenarios
from moeopt.proofs import psd
from moeopt.proofs.psd_certificate import Certificate, ExactLagrangian, whole_gram
from moeopt.proofs.psd_master import cheapest_mixture, project, random_sets
from moeopt.proofs.psd_pairs import CasesCertificate
from moeopt.proofs.psd_patterns import (
    Multipliers,
    Patterns,
    gram_matrices,
    lagrangian,
    moments,
    set_costs,
)
from moeopt.proofs.psd_sets import (
    SPLITS,
    Costs,
    cheapest_sets,
    cheapest_sets_of_pairs,
    pairs_of,
    quads_of,
    tables,
)

#: Best known plans of two shipped layers: GPU of each expert.
BEST_GPT_OSS_10 = "13322311120101210031320202330320"
BEST_DEEPSEEK_10 = "6461525142423627510166561740101773600254202353675435402073133774"


def point_of(patterns: Patterns, groups: list[tuple[int, ...]]) -> Costs:
    """Pairs, triples, quadruples and splits of a placement, straight from their definitions."""
    gpu = {e: g for g, group in enumerate(groups) for e in group}
    triples = sorted(combinations(range(patterns.experts), 3), key=lambda s: s[::-1])

    def same(experts) -> bool:
        return len({gpu[int(e)] for e in experts}) == 1

    pair = np.array([same(s) for s in patterns.pairs], dtype=float)
    triple = np.array([same(s) for s in triples], dtype=float)
    quad = np.array([same(s) for s in patterns.quads], dtype=float).reshape(-1)
    split = np.zeros((len(patterns.quads), 3))
    for n, s in enumerate(patterns.quads):
        for h, order in enumerate(SPLITS):
            a, b, e, f = s[order]
            split[n, h] = same((a, b)) and same((e, f)) and not same((a, e))
    return Costs(pair, triple, quad, split)


def dot(costs: Costs, point: Costs) -> float:
    return float(sum((c * p).sum() for c, p in zip(costs, point, strict=True)))


def random_multipliers(
    patterns: Patterns, rng: np.random.Generator
) -> tuple[Multipliers, np.ndarray]:
    experts, pairs, quads = patterns.experts, len(patterns.pairs), len(patterns.quads)
    factor = rng.normal(size=(pairs, experts - 2, experts - 2)) * 0.05
    gram = np.zeros((pairs, experts, experts))
    for p, others in enumerate(patterns.others):
        gram[p][np.ix_(others, others)] = factor[p] @ factor[p].T
    at = Multipliers(
        rng.normal(size=(pairs, experts)) * 0.1,
        rng.random((quads, 3, 2)) * 0.1,
        rng.random(quads) * 0.1,
        gram,
    )
    return at, factor


@pytest.mark.parametrize(("gpus", "size"), SHAPES)
def test_objective_is_exact_at_every_placement(gpus, size):
    rng = np.random.default_rng(gpus * 10 + size)
    patterns = Patterns.of(gpus, size)
    scenarios = layer(rng, gpus * size, 1, min(4, gpus * size), gpus, size).scenarios[0]
    objective = patterns.objective(scenarios, scenarios.weight)
    for groups in partitions(gpus * size, size):
        value = scenarios.weight.sum() + dot(objective, point_of(patterns, groups))
        assert value == pytest.approx(expected_time(scenarios, groups), abs=1e-12)


@pytest.mark.parametrize(("gpus", "size"), SHAPES)
def test_rows_hold_at_every_placement(gpus, size):
    """Rows (2) to (5), written out here once more, and their Lagrangian."""
    rng = np.random.default_rng(gpus * 10 + size)
    patterns = Patterns.of(gpus, size)
    at, _ = random_multipliers(patterns, rng)
    nothing = patterns.zeros(np.float64)
    costs = lagrangian(patterns, nothing, at)
    all_pairs = np.arange(len(patterns.pairs))
    for groups in partitions(gpus * size, size):
        point = point_of(patterns, groups)
        gpu = np.zeros(patterns.experts, dtype=int)
        for g, group in enumerate(groups):
            gpu[list(group)] = g
        same = gpu[:, None] == gpu[None, :]
        moved = 0.0  # Σ multiplier · row, which the Lagrangian adds or takes off
        matrices = gram_matrices(all_pairs, patterns.pairs, patterns.others, patterns.gpus, *point)
        for p, (i, j) in enumerate(patterns.pairs):
            others = patterns.others[p]
            out = same[i, j] & ~same[i, others]
            together = same[np.ix_(others, others)] & out[:, None] & out[None, :]
            for a, k in enumerate(others):
                row = together[a].sum() - together[a, a] - (size - 1) * out[a]
                assert row == 0
                moved += at.mates[p, k] * row
            expected = (gpus - 1) * together - np.outer(out, out).astype(float)
            np.testing.assert_allclose(matrices[p], expected, atol=1e-12)
            assert np.linalg.eigvalsh(expected).min() > -1e-9
            moved -= (at.gram[p][np.ix_(others, others)] * expected).sum()
        for n, s in enumerate(patterns.quads):
            for h, order in enumerate(SPLITS):
                a, b, e, f = s[order]
                for side, (x, y, u, v) in enumerate([(a, b, e, f), (e, f, a, b)]):
                    alone = same[x, y] and not same[x, u] and not same[x, v]
                    row = float(alone) - point.split[n, h]
                    assert row >= 0
                    moved -= at.apart[n, h, side] * row
            row = float(len(set(gpu[s].tolist())) == 4)
            moved -= at.distinct[n] * row
        # The constant of (4) is 1: it stays outside the costs.
        assert dot(costs, point) - at.distinct.sum() == pytest.approx(moved, abs=1e-9)


@pytest.mark.parametrize(("gpus", "size"), SHAPES)
def test_exact_lagrangian_is_below_every_placement(gpus, size):
    """Random multipliers prove a valid bound, and the evaluation is the least of all mixtures."""
    rng = np.random.default_rng(gpus * 10 + size)
    patterns = Patterns.of(gpus, size)
    experts = gpus * size
    scenarios = layer(rng, experts, 2, min(4, experts), gpus, size).scenarios[0]
    placements = partitions(experts, size)
    optimum = min(expected_time(scenarios, groups) for groups in placements)
    for scale in (0.0, 0.01, 0.3):
        at, factor = random_multipliers(patterns, rng)
        at.mates *= scale
        at.apart *= scale
        at.distinct *= scale
        exact = ExactLagrangian(patterns, scenarios, at, factor * scale)
        for groups in placements:
            units = exact.constant + sum(
                int((c * p.astype(np.int64)).sum())
                for c, p in zip(exact.costs, point_of(patterns, groups), strict=True)
            )
            assert units * 2.0**-44 <= expected_time(scenarios, groups) + 1e-15
        bound, _, _ = exact.bound(rng.normal(size=experts) * 0.2, 10)
        assert bound <= optimum


def test_whole_gram_is_positive_semidefinite():
    rng = np.random.default_rng(5)
    patterns = Patterns.of(2, 3)
    factor = rng.normal(size=(len(patterns.pairs), 4, 4)) * 1e-3
    factor[:, :, 2:] = 0.0  # rank 2: rounding alone would make eigenvalues negative
    gram = whole_gram(patterns, factor)
    assert (gram == gram.transpose(0, 2, 1)).all()
    assert np.linalg.eigvalsh(gram.astype(float)).min() > -1e-3
    np.testing.assert_allclose(gram[0, 2:, 2:] * 2.0**-44, factor[0] @ factor[0].T, atol=2.0**-40)


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_cheapest_sets_against_enumeration(kind):
    rng = np.random.default_rng(1)
    for experts, size in ((4, 2), (6, 3), (7, 4), (8, 5), (9, 6)):
        patterns = Patterns.of(1, experts)
        costs = patterns.zeros(kind)
        for part in costs:
            part[...] = rng.integers(-50, 50, part.shape)
        single = rng.integers(-50, 50, experts).astype(kind)
        every = np.array(list(combinations(range(experts), size)))
        value = set_costs(every, *costs[:3]) + single[every].sum(axis=1)
        below = kind(np.sort(value)[len(value) // 2])
        least, kept, sets = cheapest_sets(size, single, *tables(costs, experts), 10, below)
        assert least == value.min()
        wanted = np.sort(value[value < below])[:10]
        np.testing.assert_array_equal(np.sort(kept), wanted)
        at = {tuple(s): v for s, v in zip(every.tolist(), value, strict=True)}
        assert [at[tuple(s)] for s in sets.tolist()] == kept.tolist()


def test_cheapest_sets_of_pairs_against_enumeration():
    rng = np.random.default_rng(2)
    for experts, size in ((4, 2), (6, 3), (8, 4), (9, 6)):
        pair = np.triu(rng.integers(0, 40, (experts, experts)), 1)
        pair += pair.T
        single = rng.integers(-60, 10, experts)
        every = np.array(list(combinations(range(experts), size)))
        value = np.array([single[s].sum() + pair[np.ix_(s, s)].sum() // 2 for s in every])
        least, kept, _, nodes = cheapest_sets_of_pairs(size, single, pair, 5, np.int64(0), 10**9)
        assert least == min(0, value.min())
        np.testing.assert_array_equal(np.sort(kept), np.sort(value[value < 0])[:5])
        if nodes > 1:  # cut short: it says so
            assert cheapest_sets_of_pairs(size, single, pair, 5, np.int64(0), nodes - 1)[3] == nodes


def test_moments_and_set_costs_are_transposes():
    rng = np.random.default_rng(3)
    patterns = Patterns.of(3, 4)
    sets = random_sets(12, 4, rng, 6)
    share = rng.random(len(sets))
    point, costs = patterns.zeros(float), patterns.zeros(float)
    moments(sets, share, *point[:3])
    for part in costs:
        part[...] = rng.normal(size=part.shape)
    costs.split[...] = 0
    assert dot(costs, point) == pytest.approx(float(share @ set_costs(sets, *costs[:3])))


def test_projection_is_the_nearest_mixture():
    rng = np.random.default_rng(4)
    sets = random_sets(12, 3, rng, 30)
    point = rng.normal(size=len(sets)) * 0.3
    share = project(sets, point, 12, np.zeros(12), 1e-11, 100)
    assert share.min() >= 0
    np.testing.assert_allclose(np.bincount(sets.ravel(), np.repeat(share, 3)), 1.0, atol=1e-9)
    for _ in range(20):  # no vertex in the direction of the point: the variational inequality
        vertex, _ = cheapest_mixture(sets, rng.normal(size=len(sets)), 12)
        assert (point - share) @ (vertex - share) <= 1e-7


@pytest.mark.parametrize("seed", range(24))
def test_bound_is_below_brute_force(seed):
    """Shapes with and without free slots, scenarios of 1 to 6 experts."""
    rng = np.random.default_rng(seed)
    gpus = int(rng.integers(2, 4))
    experts = int(rng.integers(4, 8 if gpus == 2 else 7))
    slots = -(-experts // gpus) + int(rng.integers(0, 2))
    low = int(rng.integers(1, 4))
    high = int(rng.integers(low, min(7, experts + 1)))
    data = layer(rng, experts, low, high, gpus, slots)
    optimum, _ = brute_optimum(data)
    scenarios = data.scenarios[0]
    bound = bound_after(scenarios, experts, gpus, slots, steps=200)
    assert bound.value <= optimum
    assert bound.value >= min(1.0, optimum) - 1e-6
    if bound.certificate is not None:
        again = psd.verify(bound.certificate, scenarios, experts, gpus, slots)
        assert again == bound.value


def test_both_relaxations_are_close_on_small_layers():
    """Not only valid: with two on each GPU the pattern relaxation is all but exact."""
    lost = []
    for seed in range(5):
        rng = np.random.default_rng(100 + seed)
        data = layer(rng, 6, 3, 4, 3, 2)
        optimum, _ = brute_optimum(data)
        value = bound_after(data.scenarios[0], 6, 3, 2, steps=1000).value
        lost.append((optimum - value) / optimum)
    assert max(lost) < 0.01
    assert np.mean(lost) < 0.003


def real(name: str, index: int) -> tuple[ProblemData, Scenarios]:
    data = prepare(read_instance(name), "placement")
    return data, data.scenarios[index]


def bound_after(scenarios: Scenarios, experts: int, gpus: int, slots: int, steps: int):
    """The bound after some steps, however slow the machine."""
    return psd.psd_bound(scenarios, experts, gpus, slots, steps=steps, time_limit_s=1e9)


def plan_value(scenarios: Scenarios, gpu_of: str) -> float:
    at = np.array([int(c) for c in gpu_of])
    return expected_time(
        scenarios, [tuple(np.flatnonzero(at == g).tolist()) for g in range(at.max() + 1)]
    )


def test_shipped_layer_with_eight_on_each_of_four_gpus():
    data, scenarios = real("gpt-oss-20b_l10_4gpu", 0)
    best = plan_value(scenarios, BEST_GPT_OSS_10)
    bound = bound_after(scenarios, data.experts, data.gpus, data.slots, steps=50)
    assert 1.35 < bound.value <= best


@pytest.mark.slow
def test_shipped_layer_within_four_percent():
    data, scenarios = real("gpt-oss-20b_l10_4gpu", 0)
    best = plan_value(scenarios, BEST_GPT_OSS_10)
    bound = bound_after(scenarios, data.experts, data.gpus, data.slots, steps=2000)
    assert 0.96 * best < bound.value <= best


def test_shipped_layer_with_scenarios_of_six():
    data, scenarios = real("deepseek-v2-lite_8gpu", 10)
    best = plan_value(scenarios, BEST_DEEPSEEK_10)
    bound = bound_after(scenarios, data.experts, data.gpus, data.slots, steps=0)
    assert 1.2 < bound.value <= best


@pytest.mark.parametrize("top", [4, 6])
def test_perturbed_certificates_stay_valid(top):
    rng = np.random.default_rng(top)
    data = layer(rng, 7, top, top, 2, 4)
    scenarios = data.scenarios[0]
    optimum, _ = brute_optimum(data)
    bound = bound_after(scenarios, 7, 2, 4, steps=100)
    assert bound.certificate is not None
    values = []
    for noise in (0.0, 1e-6, 1e-3, 0.1):
        parts = {
            name: part + noise * rng.normal(size=part.shape) if part.dtype == float else part
            for name, part in vars(bound.certificate).items()
        }
        values.append(psd.verify(type(bound.certificate)(**parts), scenarios, 7, 2, 4))
    assert values[0] == bound.value
    assert max(values) <= optimum
    assert values[1] == pytest.approx(values[0], abs=1e-2)


def test_wrong_signs_count_as_nothing():
    rng = np.random.default_rng(7)
    data = layer(rng, 6, 4, 4, 2, 3)
    optimum, _ = brute_optimum(data)
    patterns = Patterns.of(2, 3)
    at, factor = random_multipliers(patterns, rng)
    certificate = Certificate(at.mates, -at.apart, -at.distinct, factor, np.ones(6))
    assert psd.verify(certificate, data.scenarios[0], 6, 2, 3) <= optimum
    share = np.full((1, len(data.scenarios[0].expert)), 7.0)
    none = np.zeros(1, dtype=np.int64)
    stars = CasesCertificate(none.repeat(0).reshape(0, 2), none, share, np.full((1, 6), 0.1))
    assert psd.verify(stars, data.scenarios[0], 6, 2, 3) <= optimum


def test_too_large_multipliers_are_refused():
    rng = np.random.default_rng(8)
    patterns = Patterns.of(2, 3)
    scenarios = layer(rng, 6, 4, 4, 2, 3).scenarios[0]
    at, factor = random_multipliers(patterns, rng)
    at.mates *= 1e9
    with pytest.raises(OverflowError, match="too large"):
        ExactLagrangian(patterns, scenarios, at, factor)
    with pytest.raises(OverflowError, match="too large"):
        whole_gram(patterns, factor * 1e4)


@pytest.mark.parametrize("top", [4, 5])
def test_stop_returns_the_best_bound_so_far(top):
    rng = np.random.default_rng(9)
    data = layer(rng, 8, top, top, 2, 4)
    optimum, _ = brute_optimum(data)
    seen: list[float] = []
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 500

    bound = psd.psd_bound(
        data.scenarios[0], 8, 2, 4, time_limit_s=1e9, stop=stop, on_bound=seen.append
    )
    assert seen == sorted(set(seen))
    assert bound.value == max([*seen, bound.value]) <= optimum
    assert bound.steps < 500
    at_once = psd.psd_bound(data.scenarios[0], 8, 2, 4, stop=lambda: True)
    assert 0 < at_once.value <= optimum


def test_reaching_the_upper_bound_ends_it():
    data = layer(np.random.default_rng(10), 6, 2, 2, 3, 2)
    optimum, _ = brute_optimum(data)
    low = psd.psd_bound(data.scenarios[0], 6, 3, 2, upper=0.9 * optimum, time_limit_s=1e9)
    assert 0.9 * optimum <= low.value <= optimum


def test_one_gpu_and_one_slot_need_no_search():
    data = layer(np.random.default_rng(11), 4, 2, 3, 1, 4)
    value = psd.psd_bound(data.scenarios[0], 4, 1, 4).value
    assert value == pytest.approx(float(data.scenarios[0].weight @ data.scenarios[0].sizes))
    assert psd.psd_bound(data.scenarios[0], 4, 4, 1).value == pytest.approx(1.0)


def test_too_few_slots_are_an_error():
    data = layer(np.random.default_rng(12), 6, 2, 3, 2, 3)
    with pytest.raises(InputError, match="do not fit"):
        psd.psd_bound(data.scenarios[0], 6, 2, 2)


def test_numbering():
    for experts in (2, 4, 6):
        pairs, quads = pairs_of(experts), quads_of(experts)
        assert sorted(map(tuple, pairs.tolist())) == list(combinations(range(experts), 2))
        assert sorted(map(tuple, quads.tolist())) == list(combinations(range(experts), 4))
