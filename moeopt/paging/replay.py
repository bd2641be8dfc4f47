"""Evictions replayed: what is missed, and which evictions or requests do not fit. The judge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.paging.requests import IntArray, Requests


@dataclass(frozen=True)
class Replay:
    """What became of a sequence of evictions, beginning with an empty cache.

    Attributes
    ----------
    missed : bool array, shape (N,)
        Uses that needed a load.
    absent : int array
        Places of evictions whose page was not in the cache.
    full : int array, shape (n, 2)
        Requests that left more pages in the cache than it holds, and how many.
    """

    missed: npt.NDArray[np.bool_]
    absent: IntArray
    full: IntArray

    def misses_by_layer(self, requests: Requests) -> IntArray:
        """Loads of each layer, shape (L,)."""
        layer = requests.page[self.missed] // requests.experts
        return np.bincount(layer, minlength=requests.layers)


def replay(requests: Requests, cache: int, evictions: IntArray) -> Replay:
    """Serve all requests: evict what is stated for each, then load what is missing.

    Parameters
    ----------
    evictions : int array, shape (n, 2)
        Rows (request, page) with requests in 0..T−1, in any order.
    """
    order = np.argsort(evictions[:, 0], kind="stable")
    rows = np.ascontiguousarray(evictions[order], dtype=np.int64)
    missed, absent, full = _replay(requests.ptr, requests.page, rows, requests.pages, cache)
    return Replay(missed, order[absent], full)


@njit(cache=True)
def _replay(
    ptr: IntArray, page: IntArray, evictions: IntArray, pages: int, cache: int
) -> tuple[npt.NDArray[np.bool_], IntArray, IntArray]:
    inside = np.zeros(pages, dtype=np.bool_)
    missed = np.zeros(len(page), dtype=np.bool_)
    absent = np.empty(len(evictions), dtype=np.int64)
    full = np.empty((len(ptr) - 1, 2), dtype=np.int64)
    held, next_eviction, absences, overfull = 0, 0, 0, 0
    for t in range(len(ptr) - 1):
        while next_eviction < len(evictions) and evictions[next_eviction, 0] == t:
            p = evictions[next_eviction, 1]
            if inside[p]:
                inside[p] = False
                held -= 1
            else:
                absent[absences] = next_eviction
                absences += 1
            next_eviction += 1
        for i in range(ptr[t], ptr[t + 1]):
            if not inside[page[i]]:
                inside[page[i]] = True
                missed[i] = True
                held += 1
        if held > cache:
            full[overfull, 0] = t
            full[overfull, 1] = held
            overfull += 1
    return missed, absent[:absences].copy(), full[:overfull].copy()
