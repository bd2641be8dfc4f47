"""A lower bound for loads of unequal costs and pages of unequal sizes, from any prices of room.

A price for each request and unit of room; a gap is worth keeping if its load costs more than its
room. Any prices give a bound, in whole numbers: nothing of the linear program that proposes them is
trusted. With equal sizes the best prices prove the optimum; with unequal ones (where the problem is
NP-hard) they bound it from below.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from moeopt.errors import InputError
from moeopt.paging.intervals import Gaps, gaps_of
from moeopt.paging.requests import IntArray, Requests

#: Prices are whole multiples of 1 / GRID.
GRID = 2**20


def priced_bound(requests: Requests, room: int, size: IntArray, cost: IntArray) -> int:
    """Lower bound of the cost of all loads, from the best prices of a linear program.

    Parameters
    ----------
    room : int
        Size of the cache, in the unit of ``size``.
    size, cost : int arrays, shape (L·E,)
        Size of a page; cost of loading it.

    Returns
    -------
    int
        In the unit of ``cost``.

    Raises
    ------
    InputError
        A request asks for more than the cache holds.
    """
    gaps = gaps_of(requests)
    free = _free(requests, room, size)
    saved = cost[requests.page[gaps.use]].astype(np.float64)
    if not len(gaps):
        return _first_loads(requests, cost)
    result = linprog(  # type: ignore[call-overload]  # its stubs know no sparse rows
        -saved, A_ub=_rows(requests, gaps, size), b_ub=free, bounds=(0, 1), method="highs"
    )
    if result.status != 0:
        raise RuntimeError(f"no prices: {result.message}")
    price = np.rint(np.maximum(0.0, -result.ineqlin.marginals) * GRID).astype(np.int64)
    return bound_of_prices(requests, room, size, cost, price)


def bound_of_prices(
    requests: Requests, room: int, size: IntArray, cost: IntArray, price: IntArray
) -> int:
    """Lower bound of the cost of all loads from prices, exact in whole numbers.

    Every plan loads each page once and saves the load of a gap only if it keeps the page. What is
    saved is at most ``Σ_gaps max(0, cost − size · Σ price) + Σ_t price[t] · free[t]``: weak duality
    of the linear program whose rows say that what is kept fits beside what is asked for.

    Parameters
    ----------
    price : int array, shape (T,)
        Non-negative, in units of cost / (GRID · size).

    Raises
    ------
    InputError
        A request asks for more than the cache holds.
    """
    gaps = gaps_of(requests)
    free = _free(requests, room, size)
    summed = [0]
    for p in price.tolist():
        summed.append(summed[-1] + p)
    page = requests.page[gaps.use]
    worth = 0
    for a, b, s, c in zip(
        gaps.begin.tolist(),
        gaps.end.tolist(),
        size[page].tolist(),
        cost[page].tolist(),
        strict=True,
    ):
        worth += max(0, c * GRID - s * (summed[b] - summed[a]))
    worth += sum(p * f for p, f in zip(price.tolist(), free.tolist(), strict=True))
    # Pages asked for again at once are never loaded twice: they have no gap.
    loads = _first_loads(requests, cost) + int(cost[page].sum())
    bound = -((worth - loads * GRID) // GRID)  # rounded up: the cost is a whole number
    return max(bound, _first_loads(requests, cost))


def _first_loads(requests: Requests, cost: IntArray) -> int:
    return int(cost[np.unique(requests.page)].sum())


def _free(requests: Requests, room: int, size: IntArray) -> IntArray:
    """Return what is free beside what each request asks for."""
    asked = np.concatenate(([0], np.cumsum(size[requests.page])))
    free = room - np.diff(asked[requests.ptr])
    if (free < 0).any():
        t = int(free.argmin())
        raise InputError(f"requests[{t}]: asks for {room - free[t]}, the cache holds {room}")
    return np.asarray(free)


def _rows(requests: Requests, gaps: Gaps, size: IntArray) -> sparse.csr_matrix:
    """Rows of the requests over the gaps."""
    lengths = gaps.end - gaps.begin
    column = np.repeat(np.arange(len(gaps)), lengths)
    first = np.concatenate(([0], np.cumsum(lengths)))[:-1]
    row = np.arange(len(column)) - np.repeat(first - gaps.begin, lengths)
    value = size[requests.page[gaps.use]][column].astype(np.float64)
    shape = (len(requests), len(gaps))
    return sparse.csr_matrix((value, (row, column)), shape=shape)
