"""One policy and one cache size, request by request: what is in the cache, and what is missed.

Slower than a pass over all sizes, but it serves policies whose choices depend on the cache
(``fifo``, ``random``, ``marking``), and it is the reference of the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.errors import InputError
from moeopt.paging.belady import require_room
from moeopt.paging.policies import OPTIMUM, STACK_POLICIES, FloatArray, keys_of
from moeopt.paging.requests import IntArray, Requests

#: Policies that are replayed for one size at a time.
SIZE_POLICIES = ("fifo", "random", "marking")

_KEYS, _FIFO, _RANDOM, _MARKING = range(4)


def replay_policy(
    requests: Requests, policy: str, cache: int, *, seed: int = 0
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Replay a policy, beginning with an empty cache.

    Parameters
    ----------
    policy : str
        One with keys, or ``fifo`` (what was loaded first leaves), ``random`` (any page that is not
        asked for), ``marking`` (any page that was not asked for in this phase; a phase ends when
        more pages than the cache holds were asked for in it).
    cache : int
        Pages that it holds.
    seed : int
        Of ``random`` and ``marking``.

    Returns
    -------
    misses : int array, shape (L,)
        Loads by layer.
    inside : bool array, shape (L·E,)
        What is in the cache at the end.

    Raises
    ------
    InputError
        No such policy, or a request asks for more pages than the cache holds.
    """
    require_room(requests, cache)
    kinds = dict(zip(SIZE_POLICIES, (_FIFO, _RANDOM, _MARKING), strict=True))
    if policy in (OPTIMUM, *STACK_POLICIES):
        keys, kind = keys_of(requests, policy), _KEYS
        value, layered = keys.value, keys.layered
    elif policy in kinds:
        value, layered, kind = np.zeros(len(requests.page)), False, kinds[policy]
    else:
        names = ", ".join((OPTIMUM, *STACK_POLICIES, *SIZE_POLICIES))
        raise InputError(f"there is no policy {policy!r}; there are {names}")
    misses, inside = _replay_policy(
        requests.ptr,
        requests.page,
        value,
        layered,
        requests.layers,
        requests.experts,
        cache,
        kind,
        seed,
    )
    return misses, inside


@njit(cache=True)
def _replay_policy(
    ptr: IntArray,
    page: IntArray,
    value: FloatArray,
    layered: bool,
    layers: int,
    experts: int,
    cache: int,
    kind: int,
    seed: int,
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    np.random.seed(seed)  # noqa: NPY002 - the generator of compiled code
    pages = layers * experts
    misses = np.zeros(layers, dtype=np.int64)
    inside = np.zeros(pages, dtype=np.bool_)
    marked = np.zeros(pages, dtype=np.bool_)
    content = np.empty(pages, dtype=np.int64)  # pages in the cache, in no order
    key = np.zeros(pages)
    asked = np.full(pages, -1, dtype=np.int64)
    lowered = np.zeros(layers)
    held, marks = 0, 0
    for t in range(len(ptr) - 1):
        layer = t % layers
        if layered:
            lowered[layer] = layers * (t // layers) + t + layers
        missing, new_marks = 0, 0
        for i in range(ptr[t], ptr[t + 1]):
            asked[page[i]] = t
            missing += not inside[page[i]]
            new_marks += not marked[page[i]]
        if marks + new_marks > cache:
            marked[:] = False
            marks, new_marks = 0, ptr[t + 1] - ptr[t]
        marks += new_marks
        for i in range(ptr[t], ptr[t + 1]):
            marked[page[i]] = True
        while held + missing > cache:
            victim = -1
            if kind in (_RANDOM, _MARKING):
                # The n-th of those that may leave, n drawn at random.
                free = 0
                for j in range(held):
                    p = content[j]
                    free += asked[p] != t and not (kind == _MARKING and marked[p])
                drawn = np.random.randint(free)  # noqa: NPY002
                for j in range(held):
                    p = content[j]
                    if asked[p] != t and not (kind == _MARKING and marked[p]):
                        if drawn == 0:
                            victim = j
                            break
                        drawn -= 1
            else:
                least = np.inf
                for j in range(held):
                    p = content[j]
                    if asked[p] == t:
                        continue
                    mine = key[p] - lowered[p // experts]
                    if mine < least or (mine == least and p > content[victim]):
                        victim, least = j, mine
            inside[content[victim]] = False
            held -= 1
            content[victim] = content[held]
        for i in range(ptr[t], ptr[t + 1]):
            p = page[i]
            if not inside[p]:
                inside[p] = True
                content[held] = p
                held += 1
                misses[layer] += 1
                if kind == _FIFO:
                    key[p] = i
            if kind == _KEYS:
                key[p] = value[i]
    return misses, inside
