"""Policies: one pass over all sizes, shares of layers, adversaries; none is below the bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from paging_requests import CASES

from moeopt.errors import InputError
from moeopt.paging import STACK_POLICIES, Requests, curve_of, least_misses, replay_policy
from moeopt.paging.adversary import (
    adaptive_sequence,
    collecting_rounds,
    cycle_sequence,
    fixed_shares_sequence,
    harmonic,
    random_sequence,
)
from moeopt.paging.comparing import POLICIES, misses_of
from moeopt.paging.partition import (
    best_partition,
    equal_partition,
    equal_shares,
    layer_curves,
)
from moeopt.paging.policies import keys_of
from moeopt.paging.requests import requests_of_lists
from moeopt.paging.stack import _misses, stack_uses


def sets(requests: Requests) -> list[set[int]]:
    ends = zip(requests.ptr[:-1], requests.ptr[1:], strict=True)
    return [set(requests.page[a:b].tolist()) for a, b in ends]


def plain_misses(requests: Requests, cache: int, policy: str) -> int:
    """LRU and layer-aware LRU as their definitions say, with no arrays."""
    layers, content, last, misses = requests.layers, set(), {}, 0
    for t, asked in enumerate(sets(requests)):
        missing = asked - content
        misses += len(missing)
        while len(content | asked) > cache:

            def expected(p: int, t: int = t) -> tuple[int, int]:
                if policy == "lru":
                    return -last[p][0], -last[p][1]
                idle_rounds = (t - last[p][0]) // layers
                comes_again = (p // requests.experts - t - 1) % layers + 1
                return idle_rounds * layers + comes_again, p

            content.discard(max(content - asked, key=expected))
        content |= asked
        for i, p in enumerate(sorted(asked)):
            last[p] = (t, i)
    return misses


# --- one pass ------------------------------------------------------------------------------------


def test_one_pass_gives_the_misses_of_every_size() -> None:
    for requests, _ in CASES:
        for policy in ("opt", *STACK_POLICIES):
            curve = curve_of(requests, policy)
            assert (np.diff(curve.misses[curve.least :]) <= 0).all()
            for cache in range(requests.widest, requests.pages + 1):
                alone = replay_policy(requests, policy, cache)[0]
                assert (alone == curve.by_layer[:, cache]).all(), policy


def test_the_optimum_of_every_size_is_that_of_one() -> None:
    for requests, cache in CASES:
        assert curve_of(requests, "opt").misses[cache] == least_misses(requests, cache)


@pytest.mark.parametrize("policy", ["lru", "llru"])
def test_policies_are_what_they_say(policy: str) -> None:
    differ = 0
    for requests, cache in CASES:
        expected = plain_misses(requests, cache, policy)
        assert curve_of(requests, policy).misses[cache] == expected
        differ += expected != curve_of(requests, "lru").misses[cache]
    assert (differ > 0) == (policy == "llru")


def test_lru_by_a_tree_is_lru_by_keys() -> None:
    for requests, _ in CASES:
        by_keys = _misses(stack_uses(requests, keys_of(requests, "lru")))
        tree = curve_of(requests, "lru").by_layer
        assert (by_keys[:, requests.widest :] == tree[:, requests.widest :]).all()


def test_no_policy_is_below_the_optimum() -> None:
    for requests, _ in CASES:
        sizes = list(range(1, requests.pages + 1))
        optimum = misses_of(requests, "opt", sizes)
        assert (optimum[: requests.widest - 1] == -1).all()
        for policy in POLICIES:
            found = misses_of(requests, policy, sizes, seed=3)
            possible = found >= 0
            assert (found[possible] >= optimum[possible]).all(), policy
            assert found[-1] == optimum[-1] == requests.distinct_by_layer().sum()


def test_marking_and_lru_miss_at_most_c_times_the_optimum() -> None:
    for requests, cache in CASES:
        optimum = least_misses(requests, cache)
        for policy in ("lru", "marking", "fifo"):
            assert replay_policy(requests, policy, cache)[0].sum() <= cache * optimum


def test_ages_let_old_uses_fade() -> None:
    rows = [[0]] * 3 + [[1]] * 300 + [[0]] + [[1]] * 2
    keys = keys_of(requests_of_lists(1, 2, rows), "lfu-aging").value
    assert keys[2] == pytest.approx(np.log2(1 + 2 ** (1 / 64) + 2 ** (2 / 64)))
    # 297 uses later one use of expert 0 is worth little more than one, and the second counts more.
    assert keys[303] == pytest.approx(303 / 64, abs=0.2)
    assert keys[305] > keys[303] + 5


def test_unknown_policies_are_refused() -> None:
    requests = CASES[0][0]
    with pytest.raises(InputError, match="no policy 'clock'; there are opt, lru"):
        misses_of(requests, "clock", [4])
    with pytest.raises(InputError, match="no policy 'clock'"):
        replay_policy(requests, "clock", 4)
    with pytest.raises(InputError, match="no policy 'fifo' with keys"):
        curve_of(requests, "fifo")
    with pytest.raises(InputError, match="at least one expert, not 0"):
        misses_of(requests, "lru", [0])


# --- shares --------------------------------------------------------------------------------------


def test_best_shares_are_the_best_of_all() -> None:
    for requests, _ in CASES[:24]:
        curves = layer_curves(requests, "opt")
        found = best_partition(requests)
        shares = list(product(range(requests.experts + 1), repeat=requests.layers))
        for cache in range(1, requests.pages + 1):
            best = min(
                sum(int(curves[l, s]) for l, s in enumerate(share))
                for share in shares
                if sum(share) <= cache
            )
            if cache >= found.least:
                assert found.misses[cache] == best
            else:
                assert best > len(requests.page)


def test_equal_shares_are_layers_apart() -> None:
    assert equal_shares(3, 8).tolist() == [3, 3, 2]
    requests = requests_of_lists(2, 3, [[0], [0], [1], [1], [0], [0], [2], [0]])
    curve = equal_partition(requests)
    assert curve.least == 2
    alone = [curve_of(requests.layer(l), "lru").misses for l in range(2)]
    assert curve.misses[3] == alone[0][2] + alone[1][1]


# --- adversaries ---------------------------------------------------------------------------------


def test_fixed_shares_are_unboundedly_worse() -> None:
    ratios = []
    for rounds in (20, 200):
        requests = fixed_shares_sequence(layers=4, experts=8, share=3, rounds=rounds)
        assert least_misses(requests, 12) == 4 + 3
        misses = equal_partition(requests).misses[12]
        assert misses == rounds + 3
        ratios.append(misses / 7)
    assert ratios[1] > 8 * ratios[0]


def test_lru_on_a_cycle() -> None:
    layers, rounds = 3, 501
    for top_k, cache in ((1, 6), (2, 9)):
        requests = cycle_sequence(layers, 8, cache, rounds, top_k=top_k)
        assert requests.widest == top_k
        fixed = top_k * layers - 1
        assert curve_of(requests, "lru").misses[cache] == rounds + fixed
        optimum = least_misses(requests, cache)
        assert (rounds + fixed) / optimum > 0.9 * (cache - top_k * layers + 1)


@pytest.mark.parametrize("policy", ["lru", "llru", "lfu", "lfu-aging", "fifo"])
def test_every_deterministic_policy_has_its_sequence(policy: str) -> None:
    layers, rounds = 3, 150
    for top_k, cache in ((1, 5), (2, 8)):
        requests = adaptive_sequence(policy, layers, 8, cache, rounds, top_k=top_k)
        misses = replay_policy(requests, policy, cache)[0].sum()
        assert misses >= rounds
        assert misses / least_misses(requests, cache) > 0.85 * (cache - top_k * layers + 1)


def test_random_requests_cost_the_harmonic_number() -> None:
    layers, experts = 2, 4
    assert collecting_rounds(1, 4) == pytest.approx(4 * harmonic(4), rel=1e-9)
    expected = (collecting_rounds(layers, experts) - 1) / experts
    assert expected > harmonic(experts)
    requests = random_sequence(layers, experts, 20_000, seed=0)
    cache = layers * experts - 1
    optimum = least_misses(requests, cache)
    for policy in ("lru", "llru", "marking", "random"):
        ratio = replay_policy(requests, policy, cache, seed=1)[0].sum() / optimum
        assert ratio > 0.97 * expected


def test_sequences_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="needs layers of 9 experts"):
        fixed_shares_sequence(2, 8, 8, 10)
    with pytest.raises(InputError, match="need layers of 9 experts"):
        cycle_sequence(2, 8, 9, 10)
    with pytest.raises(InputError, match="has not 1 for each of 4 layers"):
        adaptive_sequence("lru", 4, 8, 3, 10)
