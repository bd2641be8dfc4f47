"""The offline optimum of one cache size: what is next asked for last leaves first.

For requests of several pages at once, too, and for a room that changes: proof in docs/paging.md.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.errors import InputError
from moeopt.paging.requests import IntArray, Requests


def least_misses(
    requests: Requests, cache: int, counted: npt.NDArray[np.bool_] | None = None
) -> int:
    """Fewest misses of any sequence of evictions.

    Parameters
    ----------
    cache : int
        Pages that it holds.
    counted : bool array, shape (L·E,), optional
        Pages whose misses count; others take room only while they are asked for, which bounds
        every plan from below. Default: all.

    Raises
    ------
    InputError
        A request asks for more pages than the cache holds.
    """
    require_room(requests, cache)
    ptr, page, room = requests.ptr, requests.page, np.full(len(requests), cache, dtype=np.int64)
    following = requests.next_request
    if counted is not None:
        kept = counted[page]
        ptr = np.concatenate(([0], np.cumsum(kept)))[ptr]
        room -= requests.sizes - np.diff(ptr)
        page, following = page[kept], following[kept]
    return int(_evict(ptr, page, following, room, requests.pages, False)[0])


def best_evictions(requests: Requests, cache: int) -> IntArray:
    """Evictions with the fewest misses, rows (request, page), shape (n, 2).

    Each is made at a request, before its pages are loaded, and only where room is needed.

    Raises
    ------
    InputError
        A request asks for more pages than the cache holds.
    """
    return evictions_by_rank(requests, cache, np.zeros(requests.layers, dtype=np.int64))


def evictions_by_rank(requests: Requests, cache: int, rank: IntArray) -> IntArray:
    """Evictions of the layers with the lowest rank first, then of what is next asked for last.

    Parameters
    ----------
    rank : int array, shape (L,)
        Equal ranks of all layers: the optimum of equal loads. Else a heuristic.

    Raises
    ------
    InputError
        A request asks for more pages than the cache holds.
    """
    require_room(requests, cache)
    lowest = rank.max() - rank[requests.page // requests.experts]
    room = np.full(len(requests), cache, dtype=np.int64)
    key = requests.next_request + lowest * (len(requests) + 1)
    found: IntArray = _evict(requests.ptr, requests.page, key, room, requests.pages, True)[1]
    return found


def require_room(requests: Requests, cache: int) -> None:
    """Raise InputError where a request asks for more pages than the cache holds."""
    if requests.widest > cache:
        t = int(requests.sizes.argmax())
        raise InputError(
            f"requests[{t}]: asks for {requests.widest} experts at once, the cache holds {cache}"
        )


@njit(cache=True)
def _evict(
    ptr: IntArray, page: IntArray, key: IntArray, room: IntArray, pages: int, listed: bool
) -> tuple[int, IntArray]:
    """Evict the largest key where room is needed; misses, and the evictions if ``listed``.

    ``key`` of a page counts from one use to the next. Entries of the heap are never removed: one
    counts if its page is there and has this key still.
    """
    asked = np.full(pages, -1, dtype=np.int64)
    now = np.full(pages, -1, dtype=np.int64)  # key of a page in the cache, else -1
    evictions = np.empty((len(page) if listed else 0, 2), dtype=np.int64)
    heap = [np.int64(1)]
    heap.pop()
    misses, evicted, held = 0, 0, 0
    for t in range(len(ptr) - 1):
        for i in range(ptr[t], ptr[t + 1]):
            asked[page[i]] = t
            if now[page[i]] < 0:
                misses += 1
                held += 1
        while held > room[t]:
            entry = -heapq.heappop(heap)
            p = entry % pages
            if now[p] != entry // pages or asked[p] == t:
                continue
            now[p] = -1
            held -= 1
            if listed:
                evictions[evicted, 0] = t
                evictions[evicted, 1] = p
            evicted += 1
        for i in range(ptr[t], ptr[t + 1]):
            now[page[i]] = key[i]
            heapq.heappush(heap, -(key[i] * pages + page[i]))
    return misses, evictions[:evicted]
