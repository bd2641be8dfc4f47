"""Misses of a policy under every cache size, in one pass over the requests.

A policy that evicts by keys which do not depend on the cache keeps in a larger cache all that it
keeps in a smaller one (Mattson, Gecsei, Slutz, Traiger, *Evaluation techniques for storage
hierarchies*, 1970): the contents of all caches are the beginnings of one list, the stack. A use at
place d of it is a hit from size d on. Requests of several pages: docs/paging.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from moeopt.paging.policies import FloatArray, Keys, keys_of
from moeopt.paging.requests import IntArray, Requests


@dataclass(frozen=True)
class Curve:
    """Misses against cache size.

    Attributes
    ----------
    policy : str
    least : int
        Smallest cache that can serve the requests.
    by_layer : int array, shape (L, L·E + 1)
        ``by_layer[l, c]``: misses of layer l in a cache of c pages, c ≥ least.
    """

    policy: str
    least: int
    by_layer: IntArray

    @property
    def misses(self) -> IntArray:
        """Misses of all layers, shape (L·E + 1,)."""
        return self.by_layer.sum(axis=0)


def curve_of(requests: Requests, policy: str) -> Curve:
    """Misses of a policy with keys (or of the offline optimum, ``opt``) under every cache size.

    Raises
    ------
    InputError
        There is no such policy.
    """
    if policy == "lru":
        uses = _recent_uses(requests.ptr, requests.page, requests.pages, requests.layers)
    else:
        keys = keys_of(requests, policy)
        uses = stack_uses(requests, keys)
    return Curve(policy, requests.widest, _misses(uses))


def stack_uses(requests: Requests, keys: Keys) -> IntArray:
    """Uses by layer and place in the stack, shape (L, L·E + 1); place 0: first uses."""
    found: IntArray = _stack_uses(
        requests.ptr,
        requests.page,
        keys.value,
        keys.layered,
        requests.layers,
        requests.experts,
    )
    return found


def _misses(uses: IntArray) -> IntArray:
    """Misses by layer and cache size from uses by layer and place."""
    total = uses.sum(axis=1, keepdims=True)
    hits = np.cumsum(np.concatenate((np.zeros_like(total), uses[:, 1:]), axis=1), axis=1)
    return total - hits


@njit(cache=True)
def _stack_uses(
    ptr: IntArray, page: IntArray, value: FloatArray, layered: bool, layers: int, experts: int
) -> IntArray:
    pages = layers * experts
    uses = np.zeros((layers, pages + 1), dtype=np.int64)
    stack = np.empty(pages, dtype=np.int64)
    place = np.full(pages, -1, dtype=np.int64)
    key = np.zeros(pages)
    asked = np.full(pages, -1, dtype=np.int64)
    lowered = np.zeros(layers)
    pool = np.empty(pages, dtype=np.int64)
    depth = 0
    for t in range(len(ptr) - 1):
        layer = t % layers
        size = ptr[t + 1] - ptr[t]
        if layered:
            lowered[layer] = layers * (t // layers) + t + layers
        known = 0
        for i in range(ptr[t], ptr[t + 1]):
            p = page[i]
            uses[layer, place[p] + 1] += 1
            known += place[p] >= 0
            asked[p] = t
            key[p] = value[i]
        # A cache of c pages keeps the asked ones and, of what else was in it, what has the largest
        # keys. Going from c to c + 1 one page more enters the pool of those left out, or was asked
        # for; the best of the pool is what the larger cache keeps and the smaller one does not.
        waiting, found, i = 0, 0, 0
        while i < depth and (i < size or found < known or known < size):
            p = stack[i]
            if asked[p] == t:
                found += 1
            else:
                pool[waiting] = p
                waiting += 1
            if i >= size:
                waiting = _take(pool, waiting, key, lowered, experts, stack, place, i)
            i += 1
        i = max(i, size)
        while waiting > 0:
            waiting = _take(pool, waiting, key, lowered, experts, stack, place, i)
            i += 1
        for j in range(size):
            stack[j] = page[ptr[t] + j]
            place[stack[j]] = j
        depth += size - known
    return uses


@njit(cache=True)
def _take(
    pool: IntArray,
    waiting: int,
    key: FloatArray,
    lowered: FloatArray,
    experts: int,
    stack: IntArray,
    place: IntArray,
    at: int,
) -> int:
    """Move the page with the largest key (equal keys: the smaller page) from pool to stack."""
    best = 0
    largest = key[pool[0]] - lowered[pool[0] // experts]
    for j in range(1, waiting):
        p = pool[j]
        mine = key[p] - lowered[p // experts]
        if mine > largest or (mine == largest and p < pool[best]):
            best, largest = j, mine
    stack[at] = pool[best]
    place[pool[best]] = at
    pool[best] = pool[waiting - 1]
    return waiting - 1


@njit(cache=True)
def _recent_uses(ptr: IntArray, page: IntArray, pages: int, layers: int) -> IntArray:
    """LRU: the place is one more than the pages used since, counted by a binary indexed tree."""
    uses = np.zeros((layers, pages + 1), dtype=np.int64)
    n = len(page)
    tree = np.zeros(n + 1, dtype=np.int64)
    last = np.full(pages, -1, dtype=np.int64)
    distinct = 0
    for t in range(len(ptr) - 1):
        for i in range(ptr[t], ptr[t + 1]):
            p = page[i]
            place = 0
            if last[p] >= 0:
                # Last uses up to this page's: what is left of all pages were used later.
                place = distinct + 1
                j = last[p] + 1
                while j > 0:
                    place -= tree[j]
                    j -= j & -j
            uses[t % layers, place] += 1
        for i in range(ptr[t], ptr[t + 1]):
            p = page[i]
            if last[p] >= 0:
                j = last[p] + 1
                while j <= n:
                    tree[j] -= 1
                    j += j & -j
            else:
                distinct += 1
            last[p] = i
            j = i + 1
            while j <= n:
                tree[j] += 1
                j += j & -j
    return uses
