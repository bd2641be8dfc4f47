"""Policies side by side: misses of each under each cache size, beside the offline optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moeopt.errors import InputError
from moeopt.paging.partition import best_partition, equal_partition
from moeopt.paging.policies import OPTIMUM, STACK_POLICIES
from moeopt.paging.requests import IntArray, Requests
from moeopt.paging.simulate import SIZE_POLICIES, replay_policy
from moeopt.paging.stack import Curve, curve_of

_SHARES: dict[str, Callable[[Requests], Curve]] = {
    "lru-shares": equal_partition,
    "opt-shares": best_partition,
}

#: Policies that one pass serves for all cache sizes; the first is the offline optimum.
CURVES = (OPTIMUM, *STACK_POLICIES, *_SHARES)

#: All policies, and what they do.
POLICIES = {
    OPTIMUM: "offline optimum: what is next asked for last leaves",
    "lru": "least recently used",
    "llru": "layer-aware LRU: of experts idle for as many rounds, the layer that comes again last",
    "lfu": "fewest uses so far",
    "lfu-aging": "fewest uses, each counting half after 64 rounds",
    "lru-shares": "LRU inside equal shares of the layers",
    "opt-shares": "offline: best fixed shares of the layers, best evictions inside them",
    "fifo": "first loaded",
    "random": "any",
    "marking": "any that was not asked for in this phase",
}

assert set(POLICIES) == {*CURVES, *SIZE_POLICIES}


def misses_of(requests: Requests, policy: str, sizes: Sequence[int], *, seed: int = 0) -> IntArray:
    """Misses of a policy for each cache size; −1 where the policy cannot serve the requests.

    Parameters
    ----------
    sizes : sequence of int
        From 1 on; larger ones than L·E pages are as good as that.
    seed : int
        Of the policies that draw.

    Raises
    ------
    InputError
        There is no such policy, or a size is not positive.
    """
    if policy not in POLICIES:
        raise InputError(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    if min(sizes) < 1:
        raise InputError(f"a cache holds at least one expert, not {min(sizes)}")
    wanted = np.minimum(np.asarray(sizes, dtype=np.int64), requests.pages)
    if policy in SIZE_POLICIES:
        return np.array(
            [
                replay_policy(requests, policy, c, seed=seed)[0].sum()
                if c >= requests.widest
                else -1
                for c in wanted.tolist()
            ],
            dtype=np.int64,
        )
    curve = _SHARES[policy](requests) if policy in _SHARES else curve_of(requests, policy)
    return np.where(wanted >= curve.least, curve.misses[wanted], -1)
