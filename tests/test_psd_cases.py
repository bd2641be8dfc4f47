"""The star relaxation split into cases over pairs: exact evaluation, brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from brute import brute_optimum
from make_data import scenarios_of
from psd_layers import SHAPES, expected_time, layer, partitions

from moeopt.proofs import psd_pairs, psd_stars
from moeopt.proofs.psd import psd_bound
from moeopt.proofs.psd_master import cheapest_mixture
from moeopt.proofs.psd_pairs import CasesAscent, CasesCertificate, evaluate
from moeopt.proofs.psd_stars import Assumption, ExactStars


@pytest.mark.parametrize("seed", range(6))
def test_star_bound_is_the_least_that_its_assumption_allows(seed):
    """Against all sets and all placements, with and without a pair together."""
    rng = np.random.default_rng(200 + seed)
    gpus, size = SHAPES[seed]
    experts = gpus * size
    scenarios = layer(rng, experts, 2, min(5, experts), gpus, size).scenarios[0]
    apart = np.triu(rng.random((experts, experts)) < 0.2, 1)
    together = tuple(rng.choice(experts, 2, replace=False).tolist()) if seed % 3 else ()
    if together:
        apart[together] = apart[together[::-1]] = False
    given = Assumption(together, apart | apart.T)
    exact = ExactStars(scenarios, gpus, rng.random(len(scenarios.expert)), given)
    price = np.ldexp(np.rint(np.ldexp(rng.normal(size=experts) * 0.3, 20)), -20)
    units = np.ldexp(price, 44).astype(np.int64)
    least = {False: 0, True: 0}
    for group in combinations(range(experts), size):
        inside = len(set(together) & set(group))
        if inside != 1:
            cost = int(exact.pair[np.ix_(group, group)].sum()) // 2 - int(units[list(group)].sum())
            least[inside == 2] = min(least[inside == 2], cost)
    total = exact.constant + int(units.sum()) + least[True] + (gpus - bool(together)) * least[False]
    bound, sets = exact.bound(price, 5)
    assert bound == total * 2.0**-44
    assert all(len(set(together) & set(group)) != 1 for group in sets.tolist())
    for groups in partitions(experts, size):
        agrees = all(
            not given.apart[np.ix_(group, group)].any() and len(set(together) & set(group)) != 1
            for group in groups
        )
        if agrees:
            assert bound <= expected_time(scenarios, groups) + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_cases_cover_all_placements(seed):
    """Any list of pairs and any multipliers: never above the optimum."""
    rng = np.random.default_rng(300 + seed)
    data = layer(rng, 6, 3, 6, 3, 2) if seed % 2 else layer(rng, 6, 3, 6, 2, 3)
    optimum, _ = brute_optimum(data)
    scenarios = data.scenarios[0]
    every = np.array(list(combinations(range(6), 2)))
    for cases in (0, 1, 4, len(every)):
        pairs = rng.permutation(every)[:cases]
        share = rng.random((cases + 1, len(scenarios.expert)))
        price = rng.normal(size=(cases + 1, 6)) * 0.05
        apart = rng.integers(0, cases + 2, cases + 1)  # too many count as those before
        certificate = CasesCertificate(pairs, apart, share, price)
        assert evaluate(certificate, scenarios, data.gpus) <= optimum
    with pytest.raises(ValueError, match="need as many"):
        evaluate(CasesCertificate(every, apart, share[:-1], price), scenarios, data.gpus)


@pytest.mark.parametrize("seed", range(4))
def test_cases_raise_the_bound(seed, monkeypatch):
    """Split at once: the certificate proves the value, which beats the one without cases."""
    monkeypatch.setattr(psd_pairs, "_STALL_GAIN", 10.0)
    rng = np.random.default_rng(400 + seed)
    data = layer(rng, 8, 5, 6, 4, 2)
    optimum, _ = brute_optimum(data)
    scenarios = data.scenarios[0]
    ascent = CasesAscent(4, 2, scenarios, lambda: False)
    seen = []
    for _ in range(6):
        ascent.run(200)
        ascent.certify()
        seen.append(ascent.value)
    assert ascent.cases
    assert seen == sorted(seen)
    assert seen[-1] <= optimum
    assert seen[-1] > seen[0] + 1e-3 or seen[-1] > optimum - 1e-2
    assert ascent.certificate is not None
    assert evaluate(ascent.certificate, scenarios, 4) == ascent.value


def test_large_prices_are_cut(monkeypatch):
    """Duals of a mixture with few sets may be huge: batches of many tokens had such ones."""
    rng = np.random.default_rng(5)
    data = layer(rng, 6, 4, 6, 2, 3)
    optimum, _ = brute_optimum(data)
    scenarios = data.scenarios[0]
    share = rng.random(len(scenarios.expert))
    exact = ExactStars(scenarios, 2, share, Assumption((), np.zeros((6, 6), dtype=bool)))
    for price in (np.full(6, 1e4), 1e5 * rng.normal(size=6)):
        assert exact.bound(price, 5)[0] <= optimum

    def far(sets, costs, experts):
        found, price = cheapest_mixture(sets, costs, experts)
        return found, price + 1e5 * rng.normal(size=experts)

    monkeypatch.setattr(psd_stars, "cheapest_mixture", far)
    ascent = CasesAscent(2, 3, scenarios, lambda: False)
    assert ascent.value <= optimum


def test_batches_of_many_experts_are_counted(monkeypatch):
    """20 of 24 experts on 3 GPUs: 7 on some GPU, whatever the placement and without a search."""
    monkeypatch.setattr(psd_stars, "_MOST_NODES", 0)
    rng = np.random.default_rng(6)
    scenarios = scenarios_of([rng.permutation(24)[:20].tolist() for _ in range(4)])
    assert psd_bound(scenarios, 24, 3, 8, steps=0).value == pytest.approx(7.0, rel=1e-6)
