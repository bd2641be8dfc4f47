"""Pair terms whose sum never exceeds the layer time of a scenario of at most four experts.

With masks N_i of GPUs and x(N) = T(N) - base >= 0, found by small LPs over orbits of masks and then
rounded down to multiples of 1/GRID, so that everything after it is whole numbers:

- ``open4[M, M']``: six of them (no expert of the scenario is placed) sum to at most x;
- ``gain3[x, M, M']``: added to the three pairs of open experts once the first expert, with mask x,
  is placed; together with all ``open4`` still at most x;
- ``gain2[x, y, M, M']``: what is missing to x when two experts are placed: exact from then on.

Mask 0 stands for an expert that is absent (a scenario of fewer than four experts).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]

#: Terms are multiples of 1/GRID.
GRID = 12
MEMBERS = 4


@dataclass(frozen=True)
class PairTerms:
    """Terms in units of 1/GRID; masks index every axis (length 2**G).

    ``excess``: x(N) itself, for four masks.
    """

    excess: Array
    open4: Array
    gain3: Array
    gain2: Array


def excess_table(gpus: int, base: int) -> Array:
    """T - base of four masks (at least 0; mask 0: absent), by Hall's formula over subsets."""
    masks = 1 << gpus
    index = np.indices((masks,) * MEMBERS).reshape(MEMBERS, -1)
    time = np.full(index.shape[1], base, dtype=np.int64)
    for members in range(1, 1 << MEMBERS):
        rows = [i for i in range(MEMBERS) if members >> i & 1]
        there = (index[rows] > 0).sum(axis=0)
        union = np.bitwise_or.reduce(index[rows], axis=0)
        width = np.maximum(np.bitwise_count(union).astype(np.int64), 1)
        time = np.maximum(time, -(-there // width))
    return (time - base).reshape((masks,) * MEMBERS)


def pair_terms(gpus: int, base: int, often: npt.NDArray[np.float64]) -> PairTerms:
    """Solve the LPs.

    Parameters
    ----------
    gpus : int
    base : int
        A time that every scenario takes anyway.
    often : float array, shape (2**G, 2**G)
        How often two experts have these masks in good plans: the terms are made large on average
        over such pairs. Any numbers give valid terms.

    Raises
    ------
    ArithmeticError
        A term is too large (a check over all masks, in whole numbers).
    """
    masks = 1 << gpus
    excess = excess_table(gpus, base)
    symmetries = [
        np.array([sum(1 << p[g] for g in range(gpus) if m >> g & 1) for m in range(masks)])
        for p in itertools.permutations(range(gpus))
    ]
    four = _multisets(masks, 4)
    open4 = _largest(
        often, _orbits(masks, symmetries), four, excess[tuple(four.T)] * GRID, lower=-GRID
    )
    gain3 = np.zeros((masks,) * 3, dtype=np.int64)
    three = _multisets(masks, 3)
    for s in range(gpus + 1):
        first = (1 << s) - 1
        fixing = [p for p in symmetries if p[first] == first]
        room = excess[first][tuple(three.T)] * GRID - open4[first][three].sum(axis=1)
        room -= _over_pairs(open4, three)
        gain = _largest(often, _orbits(masks, fixing), three, room, lower=-2 * GRID)
        for p in symmetries:
            gain3[p[first]][np.ix_(p, p)] = gain
    terms = PairTerms(excess * GRID, open4, gain3, _rest(excess * GRID, open4, gain3))
    _check(terms, four)
    return terms


def _multisets(masks: int, size: int) -> Array:
    return np.array(list(itertools.combinations_with_replacement(range(1, masks), size)))


def _orbits(masks: int, symmetries: list[Array]) -> Array:
    """Number of the orbit of each unordered pair of masks under the symmetries; -1 with mask 0."""
    orbit = np.full((masks, masks), -1, dtype=np.int64)
    count = 0
    for a, b in itertools.product(range(1, masks), repeat=2):
        if orbit[a, b] < 0:
            for p in symmetries:
                orbit[p[a], p[b]] = orbit[p[b], p[a]] = count
            count += 1
    return orbit


def _over_pairs(term: Array, rows: Array) -> Array:
    pairs = itertools.combinations(range(rows.shape[1]), 2)
    return np.sum([term[rows[:, i], rows[:, j]] for i, j in pairs], axis=0)


def _largest(
    often: npt.NDArray[np.float64], orbit: Array, rows: Array, room: Array, lower: int
) -> Array:
    """Pair terms, one number an orbit, largest on average with sums over each row within its room.

    Whole numbers: the LP's solution rounded down where the terms' sum is bounded from above.
    """
    from scipy.optimize import linprog

    orbits = int(orbit.max()) + 1
    pairs = list(itertools.combinations(range(rows.shape[1]), 2))
    counts = np.zeros((len(rows), orbits), dtype=np.int64)
    for i, j in pairs:
        np.add.at(counts, (np.arange(len(rows)), orbit[rows[:, i], rows[:, j]]), 1)
    unique, which = np.unique(counts, axis=0, return_inverse=True)
    least = np.full(len(unique), np.iinfo(np.int64).max)
    np.minimum.at(least, which.ravel(), room)
    weight = np.bincount(orbit[1:, 1:].ravel(), often[1:, 1:].ravel(), orbits)
    result = linprog(-weight, A_ub=unique, b_ub=least, bounds=[(lower, 3 * GRID)] * orbits)
    if result.x is None:
        raise ArithmeticError(f"LP of the pair terms: {result.message}")
    value = np.floor(result.x + 1e-7).astype(np.int64)
    if (unique @ value > least).any():  # the 1e-7 rounded up something that it should not have
        value = np.floor(result.x - 1e-4).astype(np.int64)
    term = np.zeros_like(orbit)
    term[1:, 1:] = value[orbit[1:, 1:]]
    return term


def _rest(excess: Array, open4: Array, gain3: Array) -> Array:
    """What is missing to the excess when two experts x, y are placed, x first."""
    rest = np.zeros_like(excess)
    masks = len(open4)
    for x, y in itertools.product(range(masks), range(masks)):
        three = open4 + gain3[x]
        known = open4[x][:, None] + open4[x][None, :] + open4[x, y]
        known = known + three[y][:, None] + three[y][None, :] + three
        rest[x, y, 1:, 1:] = (excess[x, y] - known)[1:, 1:]
    # Two absent experts: the pair is all there is.
    rest[0, 0, 1:, 1:] = (excess[0, 0] - open4 - gain3[0])[1:, 1:]
    return rest


def _check(terms: PairTerms, four: Array) -> None:
    if (_over_pairs(terms.open4, four) > terms.excess[tuple(four.T)]).any():
        raise ArithmeticError("pair terms of four open experts exceed the excess")
    # gain2 >= 0 says the same of three open experts, for every first mask x. (The second expert is
    # never absent where the first is not: absent experts are placed first. Two absent ones leave
    # one pair, which gets all three terms at once.)
    if (terms.gain2[:, 1:, 1:, 1:] < 0).any():
        raise ArithmeticError("pair terms of three open experts exceed the excess")
