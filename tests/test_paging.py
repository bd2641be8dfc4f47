"""The offline optimum: farthest next use, intervals, flow and prices agree with exhaustion."""

from __future__ import annotations

import time

import numpy as np
import pytest
from paging_brute import brute_paging
from paging_requests import CASES, random_requests
from scipy.optimize import linprog

from moeopt.errors import InputError
from moeopt.paging import (
    PagingData,
    Requests,
    best_evictions,
    least_misses,
    replay,
    requests_of_choices,
    requests_of_lists,
)
from moeopt.paging.dual import _free, _rows, bound_of_prices, priced_bound
from moeopt.paging.flow import cheapest_loads
from moeopt.paging.intervals import evictions_of, excess, gaps_of, loaded_again
from moeopt.paging.solve import find_evictions, first_loads_bound, optimum_bound
from moeopt.paging.streams import steps

OPTIMA = [brute_paging(PagingData(requests, cache))[0] for requests, cache in CASES]


def costs(requests: Requests, seed: int) -> np.ndarray:
    """A cost for each layer."""
    return np.random.default_rng(seed).integers(1, 6, requests.layers)


# --- requests ------------------------------------------------------------------------------------


def test_requests_are_pages_layer_after_layer() -> None:
    requests = requests_of_lists(2, 3, [[2, 0], [1], [0], [1, 2]])
    assert requests.page.tolist() == [0, 2, 4, 0, 4, 5]
    assert requests.next_request.tolist() == [2, 4, 3, 4, 4, 4]
    assert requests.uses_by_layer().tolist() == [3, 3]
    assert requests.distinct_by_layer().tolist() == [2, 2]
    assert requests.widest == 2
    assert requests.layer(1).page.tolist() == [1, 1, 2]
    assert requests.layer(1).ptr.tolist() == [0, 1, 3]


def test_bad_requests_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        requests_of_lists(1, 3, [[0], [], [3], [1, 1], [4, 5]])
    assert caught.value.problems == [
        "requests[1]: asks for no expert",
        "requests[2]: an expert is not in 0..2 (3 times in all)",
        "requests[3]: an expert appears twice",
    ]
    with pytest.raises(InputError, match="there are none"):
        requests_of_lists(1, 3, [])


def test_batches_are_unions_of_their_tokens() -> None:
    # Three sequences of 2, 3 and 1 tokens; two at a time: the third follows the first.
    ids = np.array([[[0, 1]], [[1, 2]], [[0, 3]], [[1, 3]], [[2, 3]], [[0, 4]]])
    offsets = np.array([0, 2, 5, 6])
    assert steps(offsets, 2).tolist() == [0, 1, 0, 1, 2, 2]
    one = requests_of_choices(ids, offsets, 5)
    assert one.page.reshape(-1, 2).tolist() == ids[:, 0].tolist()
    two = requests_of_choices(ids, offsets, 5, batch=2)
    rows = [two.page[a:b].tolist() for a, b in zip(two.ptr[:-1], two.ptr[1:], strict=True)]
    assert rows == [[0, 1, 3], [1, 2, 3], [0, 2, 3, 4]]
    with pytest.raises(InputError, match="at least one sequence"):
        requests_of_choices(ids, offsets, 5, batch=0)


# --- equal loads ---------------------------------------------------------------------------------


def test_farthest_next_use_is_optimal_for_sets() -> None:
    assert max(requests.widest for requests, _ in CASES) == 3
    for (requests, cache), optimum in zip(CASES, OPTIMA, strict=True):
        assert least_misses(requests, cache) == optimum
        played = replay(requests, cache, best_evictions(requests, cache))
        assert played.missed.sum() == optimum
        assert len(played.absent) == len(played.full) == 0


def test_lp_over_intervals_is_integral() -> None:
    """The relaxation has the value of the optimum, whatever loads cost."""
    for seed, (requests, cache) in enumerate(CASES[:40]):
        gaps = gaps_of(requests)
        if not len(gaps):
            continue
        cost = np.repeat(costs(requests, seed), requests.experts)
        size = np.ones(requests.pages, dtype=np.int64)
        matrix, free = _rows(requests, gaps, size), _free(requests, cache, size)
        result = linprog(-cost[requests.page[gaps.use]], A_ub=matrix, b_ub=free, bounds=(0, 1))
        loads = cost[np.unique(requests.page)].sum() + cost[requests.page[gaps.use]].sum()
        optimum = cheapest_loads(requests, cache, cost)[0]
        assert loads + result.fun == pytest.approx(optimum, rel=1e-9)


def test_a_cache_that_is_too_small_is_refused() -> None:
    requests = requests_of_lists(1, 3, [[0], [1, 2]])
    for call in (least_misses, best_evictions):
        with pytest.raises(InputError, match=r"requests\[1\]: asks for 2 experts at once"):
            call(requests, 1)


def test_evictions_that_do_not_fit_are_found() -> None:
    requests = requests_of_lists(1, 3, [[0], [1], [2], [0]])
    played = replay(requests, 2, np.array([[3, 1], [2, 1], [2, 2]]))
    assert played.missed.tolist() == [True, True, True, False]
    assert sorted(played.absent.tolist()) == [0, 2]
    assert played.full.tolist() == []
    full = replay(requests, 2, np.zeros((0, 2), dtype=np.int64)).full
    assert full.tolist() == [[2, 3], [3, 3]]


# --- unequal loads and sizes ---------------------------------------------------------------------


def test_flow_and_prices_attain_the_optimum_of_unequal_loads() -> None:
    for seed, (requests, cache) in enumerate(CASES):
        by_layer = costs(requests, seed)
        data = PagingData(requests, cache, by_layer.astype(float))
        optimum = brute_paging(data)[0]
        cost = np.repeat(by_layer, requests.experts)
        value, again = cheapest_loads(requests, cache, cost)
        assert value == optimum
        gaps = gaps_of(requests)
        evictions = evictions_of(requests, gaps, again)
        played = replay(requests, cache, evictions)
        assert len(played.absent) == len(played.full) == 0
        assert data.cost(played.misses_by_layer(requests)) == optimum
        assert (loaded_again(requests, gaps, cache, evictions) == again).all()
        ones = np.ones(requests.pages, dtype=np.int64)
        assert priced_bound(requests, cache, ones, cost) == optimum
        assert first_loads_bound(data) <= optimum_bound(data) <= optimum
        found = replay(requests, cache, find_evictions(data)).misses_by_layer(requests)
        assert optimum <= data.cost(found)


def test_rules_are_not_optimal_where_loads_differ() -> None:
    rows = [[0], [0], [1], [1], [2], [0], [0], [2], [1], [1], [2], [0], [0], [2]]
    data = PagingData(requests_of_lists(2, 3, rows), 3, np.array([1.0, 2.5]))
    found = replay(data.requests, 3, find_evictions(data)).misses_by_layer(data.requests)
    assert (data.cost(found), brute_paging(data)[0]) == (17, 16)
    assert cheapest_loads(data.requests, 3, np.array([2, 2, 2, 5, 5, 5]))[0] == 2 * 16


def test_any_prices_bound_pages_of_unequal_sizes() -> None:
    closed = 0
    for seed in range(40):
        requests, cache = random_requests(seed)
        rng = np.random.default_rng(seed)
        size, cost = rng.integers(1, 4, requests.pages), rng.integers(1, 6, requests.pages)
        room = max(2 * cache, int(np.add.reduceat(size[requests.page], requests.ptr[:-1]).max()))
        optimum = brute_sizes(requests, room, size, cost)
        bound = priced_bound(requests, room, size, cost)
        assert bound <= optimum
        closed += bound == optimum
        price = rng.integers(0, 2**21, len(requests))
        assert bound_of_prices(requests, room, size, cost, price) <= optimum
    assert closed >= 20
    with pytest.raises(InputError, match="asks for 4, the cache holds 3"):
        priced_bound(requests_of_lists(1, 2, [[0, 1]]), 3, np.array([2, 2]), np.array([1, 1]))


def brute_sizes(requests: Requests, room: int, size: np.ndarray, cost: np.ndarray) -> int:
    """Least cost over every set that may stay after every request."""
    best = {frozenset(): 0}
    for t in range(len(requests)):
        asked = frozenset(requests.page[requests.ptr[t] : requests.ptr[t + 1]].tolist())
        found: dict[frozenset[int], int] = {}
        for content, paid in best.items():
            now = paid + sum(int(cost[p]) for p in asked - content)
            others = sorted(content - asked)
            for mask in range(2 ** len(others)):
                after = asked | {p for j, p in enumerate(others) if mask >> j & 1}
                if sum(int(size[p]) for p in after) <= room and now < found.get(after, 10**9):
                    found[after] = now
        best = found
    return min(best.values())


def test_costs_too_large_for_the_flow_are_refused() -> None:
    requests = requests_of_lists(1, 3, [[0], [1], [2], [0]])
    with pytest.raises(InputError, match="too large"):
        cheapest_loads(requests, 2, np.full(3, 2**60))


def test_room_needed_is_what_lies_over_a_request() -> None:
    requests = requests_of_lists(1, 3, [[0], [1], [2], [0], [1]])
    gaps = gaps_of(requests)
    assert gaps.begin.tolist() == [1, 2]
    assert gaps.end.tolist() == [3, 4]
    assert excess(requests, gaps, 2).tolist() == [-1, 0, 1, 0, -1]


@pytest.mark.slow
def test_a_million_requests_within_thirty_seconds() -> None:
    rng = np.random.default_rng(0)
    ids = rng.zipf(1.3, (62_500, 16, 1)) % 64
    requests = requests_of_choices(ids, np.array([0, len(ids)]), 64)
    assert len(requests) == 10**6
    begin = time.process_time()
    evictions = best_evictions(requests, 256)
    seconds = time.process_time() - begin
    assert replay(requests, 256, evictions).missed.sum() == least_misses(requests, 256)
    assert seconds <= 30
