"""Numbering of the pairs, triples and quadruples of experts; the cheapest set of experts.

Sets are numbered by the combinatorial number system: ``{i < j}`` is ``C(j,2) + i``,
``{i < j < k}`` is ``C(k,3) + C(j,2) + i``, and so on. Kernels run on floats, and unchanged on
64-bit integers, where they are exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.problem import IntArray

#: Positions in a quadruple: the first two are one pair of the split, the last two the other.
SPLITS: IntArray = np.array([[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]], dtype=np.int64)


class Costs(NamedTuple):
    """A linear function of pairs, triples and quadruples on one GPU, and of splits.

    Attributes
    ----------
    pair, triple, quad : arrays of float or int, shapes (C(E,2),), (C(E,3),), (C(E,4),)
    split : array, shape (C(E,4), 3)
        Two pairs of a quadruple on two different GPUs, in the order of ``SPLITS``.
    """

    pair: npt.NDArray[Any]
    triple: npt.NDArray[Any]
    quad: npt.NDArray[Any]
    split: npt.NDArray[Any]


@njit(cache=True)
def pair_at(i, j):
    """Number of the pair i < j."""
    return j * (j - 1) // 2 + i


@njit(cache=True)
def triple_at(i, j, k):
    """Number of the triple i < j < k."""
    return k * (k - 1) * (k - 2) // 6 + j * (j - 1) // 2 + i


@njit(cache=True)
def joined(i, j, k):
    """Number of the triple {i, j, k} with i < j and k anywhere."""
    if k < i:
        return triple_at(k, i, j)
    if k < j:
        return triple_at(i, k, j)
    return triple_at(i, j, k)


@njit(cache=True)
def quad_at(i, j, k, l):
    """Number of the quadruple i < j < k < l."""
    return l * (l - 1) * (l - 2) * (l - 3) // 24 + triple_at(i, j, k)


def pairs_of(experts: int) -> IntArray:
    """All pairs i < j in the order of their numbers, shape (C(E,2), 2)."""
    pairs = [(i, j) for j in range(experts) for i in range(j)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def quads_of(experts: int) -> IntArray:
    """All quadruples in the order of their numbers, shape (C(E,4), 4)."""
    at = np.arange(experts)
    l, k, j, i = np.meshgrid(at, at, at, at, indexing="ij", sparse=True)
    found = np.nonzero((i < j) & (j < k) & (k < l))
    return np.stack(found[::-1], axis=1).astype(np.int64)


def tables(
    costs: Costs, experts: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Pair, triple and quadruple costs as arrays with an axis for every member, E per axis.

    Pairs are symmetric; triples and quadruples are filled for ascending members only.
    """
    kind = costs.pair.dtype
    by_pair = np.zeros((experts,) * 2, dtype=kind)
    by_triple = np.zeros((experts,) * 3, dtype=kind)
    by_quad = np.zeros((experts,) * 4, dtype=kind)
    first, second = pairs_of(experts).T
    by_pair[first, second] = by_pair[second, first] = costs.pair
    at = np.arange(experts)
    k, j, i = np.meshgrid(at, at, at, indexing="ij", sparse=True)
    by_triple[np.nonzero((i < j) & (j < k))[::-1]] = costs.triple
    by_quad[tuple(quads_of(experts).T)] = costs.quad
    return by_pair, by_triple, by_quad


@njit(cache=True)
def cheapest_sets(size, single, pair, triple, quad, keep, below):
    """Go through all sets of ``size`` experts.

    A set costs the sum of the costs of its members, pairs, triples and quadruples. The sums are
    carried from a set to its supersets, so that a set takes constant time on average.

    Parameters
    ----------
    single, pair, triple, quad : arrays with 1 to 4 axes of length E
        See :func:`tables`.
    keep : int
        So many of the cheapest sets are returned, of those that cost less than ``below``.

    Returns
    -------
    least : scalar
        The least cost of all sets (exact if the costs are integers).
    costs, sets : arrays, shapes (found,), (found, size)
    """
    experts = len(single)
    last = size - 2  # the last two members are found by a double loop
    m1 = np.zeros((last + 1, experts), single.dtype)
    m2 = np.zeros((last + 1, experts, experts), single.dtype)
    m3 = np.zeros((last + 1, experts, experts, experts), single.dtype)
    base = np.zeros(last + 1, single.dtype)
    m1[0], m2[0], m3[0] = single, pair, triple
    found, worst, bar = 0, 0, below
    kept = np.zeros(keep, single.dtype)
    sets = np.zeros((keep, size), np.int64)
    member = np.full(last + 1, -1, np.int64)
    following = np.zeros(last + 2, np.int64)
    least = single[0] * 0
    seen = False
    d = 0
    while d >= 0:
        if d == last:
            for e in range(member[d - 1] + 1 if d > 0 else 0, experts):
                so_far = base[d] + m1[d, e]
                for f in range(e + 1, experts):
                    cost = so_far + m1[d, f] + m2[d, e, f]
                    if not seen or cost < least:
                        least = cost
                        seen = True
                    if cost < bar:
                        place = found if found < keep else worst
                        kept[place] = cost
                        sets[place, :last] = member[:last]
                        sets[place, last] = e
                        sets[place, last + 1] = f
                        found = min(found + 1, keep)
                        if found == keep:
                            worst = int(np.argmax(kept))
                            bar = min(bar, kept[worst])
            d -= 1
            continue
        i = following[d]
        if i > experts - (size - d):
            d -= 1
            continue
        following[d] = i + 1
        member[d] = i
        base[d + 1] = base[d] + m1[d, i]
        for e in range(i + 1, experts):
            m1[d + 1, e] = m1[d, e] + m2[d, i, e]
            for f in range(e + 1, experts):
                m2[d + 1, e, f] = m2[d, e, f] + m3[d, i, e, f]
        if d + 1 < last:
            for e in range(i + 1, experts):
                for f in range(e + 1, experts):
                    for g in range(f + 1, experts):
                        m3[d + 1, e, f, g] = m3[d, e, f, g] + quad[i, e, f, g]
        d += 1
        following[d] = i + 1
    return least, kept[:found], sets[:found]


@njit(cache=True)
def cheapest_sets_of_pairs(size, single, pair, keep, below, most_nodes):
    """Like :func:`cheapest_sets` for costs of members and pairs, with ``pair >= 0``, by pruning.

    Costs of pairs only add up, so a set of d members completed by r more costs at least the r
    least costs of adding one of the later experts alone.

    Returns
    -------
    least : scalar
        ``min(below, least cost)`` if the search was completed.
    costs, sets : arrays
    nodes : int
        Above ``most_nodes`` the search was cut short and ``least`` proves nothing.
    """
    experts = len(single)
    marginal = np.zeros((size + 1, experts), single.dtype)
    base = np.zeros(size + 1, single.dtype)
    marginal[0] = single
    found, worst, bar, least = 0, 0, below, below
    kept = np.zeros(keep, single.dtype)
    sets = np.zeros((keep, size), np.int64)
    member = np.full(size + 1, -1, np.int64)
    following = np.zeros(size + 2, np.int64)
    small = np.zeros(size + 1, single.dtype)
    d, nodes = 0, 0
    while d >= 0 and nodes <= most_nodes:
        left = size - d
        i = following[d]
        if left == 1:
            for e in range(i, experts):
                cost = base[d] + marginal[d, e]
                if cost < bar:
                    least = min(least, cost)
                    place = found if found < keep else worst
                    kept[place] = cost
                    sets[place, :d] = member[:d]
                    sets[place, d] = e
                    found = min(found + 1, keep)
                    if found == keep:
                        worst = int(np.argmax(kept))
                        bar = min(bar, kept[worst])
            d -= 1
            continue
        if i > experts - left:
            d -= 1
            continue
        nodes += 1
        following[d] = i + 1
        member[d] = i
        base[d + 1] = base[d] + marginal[d, i]
        n = 0
        for e in range(i + 1, experts):
            cost = marginal[d, e] + pair[i, e]
            marginal[d + 1, e] = cost
            if n < left - 1 or cost < small[n - 1]:  # insert into the least so far
                if n < left - 1:
                    n += 1
                place = n - 1
                while place > 0 and small[place - 1] > cost:
                    small[place] = small[place - 1]
                    place -= 1
                small[place] = cost
        bound = base[d + 1]
        for r in range(left - 1):
            bound += small[r]
        if bound >= bar:
            continue
        d += 1
        following[d] = i + 1
    return least, kept[:found], sets[:found], nodes
