"""Between two uses a page is kept, and takes room at every request in between, or loaded again.

That is all there is to decide. What may be loaded again instead of kept is a *gap*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeopt.paging.replay import replay
from moeopt.paging.requests import IntArray, Requests


@dataclass(frozen=True)
class Gaps:
    """Gaps between two uses of a page with requests in between, by their first use.

    Attributes
    ----------
    use : int array, shape (n,)
        The first of the two uses; the other is ``requests.following[use]``.
    begin, end : int arrays, shape (n,)
        A kept page takes room at requests ``begin`` to ``end − 1``; ``end`` is its next use.
    """

    use: IntArray
    begin: IntArray
    end: IntArray

    def __len__(self) -> int:
        return len(self.use)


def gaps_of(requests: Requests) -> Gaps:
    """Find all gaps; a page that is asked for again at once is kept whatever is decided."""
    begin, end = requests.request + 1, requests.next_request
    use = np.flatnonzero((end > begin) & (end < len(requests)))
    return Gaps(use, begin[use], end[use])


def pages_between(requests: Requests, gaps: Gaps) -> IntArray:
    """Gaps over each request, shape (T,): pages that would be kept if none were loaded again."""
    steps = np.bincount(gaps.begin, minlength=len(requests) + 1)
    steps -= np.bincount(gaps.end, minlength=len(requests) + 1)
    return np.cumsum(steps)[:-1]


def excess(requests: Requests, gaps: Gaps, cache: int) -> IntArray:
    """Pages too many at each request if nothing were loaded again, shape (T,); negative: room."""
    return pages_between(requests, gaps) + requests.sizes - cache


def evictions_of(requests: Requests, gaps: Gaps, again: npt.NDArray[np.bool_]) -> IntArray:
    """Evictions, rows (request, page), that let a page go as soon as it need not be kept.

    Parameters
    ----------
    again : bool array, shape (n,)
        Gaps after which the page is loaded again.
    """
    leaves = requests.following == len(requests.page)
    leaves[gaps.use[again]] = True
    leaves &= requests.request + 1 < len(requests)
    return np.stack([requests.request[leaves] + 1, requests.page[leaves]], axis=1)


def loaded_again(
    requests: Requests, gaps: Gaps, cache: int, evictions: IntArray
) -> npt.NDArray[np.bool_]:
    """Gaps after which evictions make a load necessary, shape (n,)."""
    missed = replay(requests, cache, evictions).missed
    return missed[requests.following[gaps.use]]
