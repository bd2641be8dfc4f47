"""Requests for experts, layer by layer: what a cache that is too small for all of them sees.

A page is one expert of one layer: number ``layer · E + expert``. Request ``t`` asks for experts of
layer ``t mod L``, all of them at once: one for a top-1 token, k for a top-k token, the union for a
batch of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.errors import InputError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Requests:
    """Requests in compressed rows: request ``t`` asks for ``page[ptr[t]:ptr[t + 1]]``, ascending.

    Attributes
    ----------
    layers, experts : int
        L layers of E experts: L·E pages.
    ptr : int array, shape (T + 1,)
    page : int array, shape (N,)
        Each place in it is one *use* of a page.
    """

    layers: int
    experts: int
    ptr: IntArray
    page: IntArray

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def pages(self) -> int:
        """Pages there are, L·E."""
        return self.layers * self.experts

    @property
    def sizes(self) -> IntArray:
        """Pages of each request, shape (T,)."""
        return np.diff(self.ptr)

    @cached_property
    def widest(self) -> int:
        """Most pages of a request: no smaller cache can serve it."""
        return int(self.sizes.max(initial=0))

    @cached_property
    def request(self) -> IntArray:
        """Request of each use, shape (N,)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.sizes)

    @cached_property
    def following(self) -> IntArray:
        """Next use of the same page, shape (N,); N where there is none."""
        found: IntArray = _following(self.page, self.pages)
        return found

    @cached_property
    def next_request(self) -> IntArray:
        """Request of the next use of the same page, shape (N,); T where there is none."""
        return np.append(self.request, len(self))[self.following]

    def uses_by_layer(self) -> IntArray:
        """Uses of the pages of each layer, shape (L,)."""
        return np.bincount(self.page // self.experts, minlength=self.layers)

    def distinct_by_layer(self) -> IntArray:
        """Distinct pages of each layer: loads that no cache avoids, shape (L,)."""
        return np.bincount(np.unique(self.page) // self.experts, minlength=self.layers)

    def layer(self, l: int) -> Requests:
        """Return the requests of one layer alone, as those of an MoE of one layer."""
        sizes = self.sizes[l :: self.layers]
        mine = self.page // self.experts == l
        ptr = np.concatenate(([0], np.cumsum(sizes)))
        return Requests(1, self.experts, ptr, self.page[mine] - l * self.experts)


def requests_of_rows(layers: int, experts: int, ptr: IntArray, expert: IntArray) -> Requests:
    """Make requests of compressed rows of experts.

    Parameters
    ----------
    ptr : int array, shape (T + 1,)
    expert : int array, shape (ptr[-1],)
        Experts of request t, in any order: ``expert[ptr[t]:ptr[t + 1]]``.

    Raises
    ------
    InputError
        A request asks for nothing, for an expert that does not exist, or for one twice.
    """
    ptr = np.asarray(ptr, dtype=np.int64)
    expert = np.asarray(expert, dtype=np.int64)
    if len(ptr) < 2:
        raise InputError("requests: there are none")
    request = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    order = np.lexsort((expert, request))
    expert = expert[order]
    empty = np.flatnonzero(np.diff(ptr) == 0)
    outside = request[(expert < 0) | (expert >= experts)]
    twice = request[1:][(np.diff(expert) == 0) & (np.diff(request) == 0)]
    kinds = (
        (empty, "asks for no expert"),
        (outside, f"an expert is not in 0..{experts - 1}"),
        (twice, "an expert appears twice"),
    )
    problems = [
        f"requests[{found[0]}]: {words}" + (f" ({len(found)} times in all)" * (len(found) > 1))
        for found, words in kinds
        if len(found)
    ]
    if problems:
        raise InputError(problems)
    return Requests(layers, experts, ptr, (request % layers) * experts + expert)


def requests_of_lists(layers: int, experts: int, rows: Sequence[Sequence[int]]) -> Requests:
    """Make requests of lists of experts; see :func:`requests_of_rows`."""
    ptr = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    flat = np.array([e for row in rows for e in row], dtype=np.int64)
    return requests_of_rows(layers, experts, ptr, flat)


@njit(cache=True)
def _following(page: IntArray, pages: int) -> IntArray:
    last = np.full(pages, len(page), dtype=np.int64)
    following = np.empty(len(page), dtype=np.int64)
    for i in range(len(page) - 1, -1, -1):
        following[i] = last[page[i]]
        last[page[i]] = i
    return following
