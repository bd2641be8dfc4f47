"""Policies as keys of pages: the page with the smallest key leaves first.

A key is set when a page is used. It depends on the requests alone, not on what is in the cache, so
one pass serves all cache sizes (:mod:`moeopt.paging.stack`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.errors import InputError
from moeopt.paging.requests import IntArray, Requests

FloatArray = npt.NDArray[np.float64]

#: The offline optimum and the online policies that one pass serves for all cache sizes.
OPTIMUM = "opt"
STACK_POLICIES = ("lru", "llru", "lfu", "lfu-aging")

#: Rounds after which a use counts half under ``lfu-aging``.
HALF_LIFE_ROUNDS = 64


@dataclass(frozen=True)
class Keys:
    """Key of each use, until its page's next one, shape (N,); the smallest leaves.

    ``layered``: a page's key is lowered, as time goes by, by ``L · round + time`` of the next visit
    of its layer (see :func:`keys_of`).
    """

    value: FloatArray
    layered: bool = False


def keys_of(requests: Requests, policy: str) -> Keys:
    """Keys of a policy.

    Parameters
    ----------
    policy : str
        ``opt``: next use, far first (needs the future). ``lru``: last use. ``lfu``: uses so far,
        also of pages that left; equal counts by last use. ``lfu-aging``: each use counts half after
        :data:`HALF_LIFE_ROUNDS` rounds. ``llru``: layer-aware LRU, below.

    Raises
    ------
    InputError
        There is no such policy.

    Notes
    -----
    Layer-aware LRU (arXiv 2509.02408; its key was not available to us, this is the natural one): a
    page that was not asked for in the last ``r`` visits of its layer, which comes again in ``d``
    requests (1 ≤ d ≤ L), is expected in ``r L + d`` requests; the largest leaves. LRU orders pages
    by ``r L + L − d``: of those with equal ``r`` it evicts the layer that comes next.
    """
    round_ = requests.request // requests.layers
    if policy == OPTIMUM:
        return Keys(-requests.next_request.astype(np.float64))
    if policy == "lru":
        return Keys(np.arange(len(requests.page), dtype=np.float64))
    if policy == "llru":
        return Keys((requests.layers * round_).astype(np.float64), layered=True)
    if policy == "lfu":
        # Below 2**53 for 10^8 requests and as many uses of one page: exact in double precision.
        counts = _counts(requests.page, requests.pages)
        return Keys((counts * (len(requests) + 1) + requests.request).astype(np.float64))
    if policy == "lfu-aging":
        return Keys(_aged(requests.page, requests.pages, round_ / HALF_LIFE_ROUNDS))
    names = ", ".join((OPTIMUM, *STACK_POLICIES))
    raise InputError(f"there is no policy {policy!r} with keys; there are {names}")


@njit(cache=True)
def _counts(page: IntArray, pages: int) -> IntArray:
    so_far = np.zeros(pages, dtype=np.int64)
    counts = np.empty(len(page), dtype=np.int64)
    for i in range(len(page)):
        so_far[page[i]] += 1
        counts[i] = so_far[page[i]]
    return counts


@njit(cache=True)
def _aged(page: IntArray, pages: int, age: FloatArray) -> FloatArray:
    """Logarithm of ``Σ 2^age`` over the uses so far: pages keep their order as time goes by."""
    so_far = np.full(pages, -np.inf)
    keys = np.empty(len(page))
    for i in range(len(page)):
        p = page[i]
        so_far[p] = age[i] + math.log2(1.0 + 2.0 ** (so_far[p] - age[i]))
        keys[i] = so_far[p]
    return keys
