"""Request sequences on which online policies are far from the offline optimum.

They are the constructions behind the lower bounds of arXiv 2509.02408 as we prove them in
docs/paging.md; the paper's own proofs were not available to us.
"""

from __future__ import annotations

import math

import numpy as np

from moeopt.errors import InputError
from moeopt.paging.requests import IntArray, Requests, requests_of_rows
from moeopt.paging.simulate import replay_policy


def fixed_shares_sequence(layers: int, experts: int, share: int, rounds: int) -> Requests:
    """Layer 0 goes around ``share + 1`` experts, the others ask for one each.

    A cache that reserves ``share`` pages for layer 0 and evicts what is least recently used misses
    in every round; a shared cache of at least ``share + L`` pages loads each page once.

    Raises
    ------
    InputError
        A layer has not that many experts.
    """
    if share + 1 > experts:
        raise InputError(f"a share of {share} needs layers of {share + 1} experts")
    return _rounds(layers, experts, np.arange(rounds) % (share + 1), share + 1, 1)


def cycle_sequence(
    layers: int, experts: int, cache: int, rounds: int, *, top_k: int = 1
) -> Requests:
    """Layer 0 goes around ``C − k L + 2`` experts beside k − 1 fixed ones, others ask for k fixed.

    LRU misses in every round, the optimum in one of ``C − k L + 1``.

    Raises
    ------
    InputError
        A layer has not that many experts, or the cache not a page for every one asked for.
    """
    around = _around(layers, experts, cache, top_k)
    return _rounds(layers, experts, np.arange(rounds) % around, around, top_k)


def adaptive_sequence(
    policy: str, layers: int, experts: int, cache: int, rounds: int, *, top_k: int = 1
) -> Requests:
    """Ask, in every round, for a page that a deterministic policy does not hold.

    Over ``C + 1`` pages, ``C − k L + 2`` of layer 0 that are asked for one at a time and the others
    always, one is always missing. If it is one of the first it is asked for; the others are anyway.

    Raises
    ------
    InputError
        As :func:`cycle_sequence`, or no such policy.
    """
    around = _around(layers, experts, cache, top_k)
    # Until all C + 1 pages were asked for, the next one is new to every policy.
    asked = np.arange(rounds) % around
    for r in range(around, rounds):
        so_far = _rounds(layers, experts, asked[:r], around, top_k)
        inside = replay_policy(so_far, policy, cache)[1][:around]
        asked[r] = int(inside.argmin())
    return _rounds(layers, experts, asked, around, top_k)


def random_sequence(layers: int, experts: int, rounds: int, seed: int) -> Requests:
    """Every layer asks for any of its experts, with equal probability, in every round.

    With a cache of ``L·E − 1`` pages any online policy misses with probability 1/E a round at
    least.
    """
    rng = np.random.default_rng(seed)
    asked = rng.integers(experts, size=rounds * layers)
    return requests_of_rows(layers, experts, np.arange(len(asked) + 1), asked)


def harmonic(n: int) -> float:
    """``1 + 1/2 + … + 1/n``."""
    return math.fsum(1.0 / i for i in range(1, n + 1))


def collecting_rounds(layers: int, experts: int) -> float:
    """Expected rounds until every expert of every layer was drawn, each layer drawing one a round.

    ``Σ_{r ≥ 0} (1 − P(one layer is done by round r)^L)``, with the probability by inclusion and
    exclusion as a recursion over the number of experts seen.
    """
    seen = np.zeros(experts + 1)
    seen[0] = 1.0
    rest = (experts - np.arange(experts)) / experts  # probability of a new one
    total = 0.0
    while (left := 1.0 - seen[-1] ** layers) > 1e-12:
        total += left
        new = seen[:-1] * rest
        seen[:-1] -= new
        seen[1:] += new
    return total


def _rounds(layers: int, experts: int, asked: IntArray, around: int, top_k: int) -> Requests:
    """Layer 0 asks for ``asked``, one a round, shape (R,), and for the k − 1 after all of them."""
    rows = np.broadcast_to(np.arange(top_k), (len(asked), layers, top_k)).copy()
    rows[:, 0, 0] = asked
    rows[:, 0, 1:] = around + np.arange(top_k - 1)
    return requests_of_rows(layers, experts, np.arange(0, rows.size + 1, top_k), rows.ravel())


def _around(layers: int, experts: int, cache: int, top_k: int) -> int:
    """Experts of layer 0 that are asked for one at a time."""
    around = cache - top_k * layers + 2
    if around < 2:
        raise InputError(f"a cache of {cache} pages has not {top_k} for each of {layers} layers")
    if around + top_k - 1 > experts:
        raise InputError(
            f"a cache of {cache} pages and {layers} layers need layers of {around + top_k - 1} "
            "experts"
        )
    return around
