"""What a scenario pays for the sets of its experts that share a GPU: the multipliers f.

A scenario S with k experts gives every subset A of S with at least two experts a price f_S(A) ≥ 0
such that no partition of S pays more than its time in excess of the least possible one:

    Σ_(A in π, |A| ≥ 2) f_S(A) ≤ max(b, largest part of π) − b      b = ceil(k/G), all partitions π

Subsets are bit masks of positions in S. Prices are kept on a grid of 2**-PRICE_BITS, so that sums
of them are exact in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit

from moeopt.problem import FloatArray, IntArray, Scenarios

#: Largest scenario: a set of 8 has 4,140 partitions.
MOST_MEMBERS = 8
PRICE_BITS = 32


@dataclass(frozen=True)
class Partitions:
    """Partitions of ``range(k)`` that have a part of two or more.

    Attributes
    ----------
    parts : int array, shape (P, k // 2)
        Masks of the parts of at least two members, padded with 0.
    largest : int array, shape (P,)
    ptr, of : int arrays
        Partition numbers ``of[ptr[A]:ptr[A + 1]]`` contain part A, for every mask A.
    order : int array
        Masks of at least two members, larger sets first.
    """

    parts: IntArray
    largest: IntArray
    ptr: IntArray
    of: IntArray
    order: IntArray


@cache
def partitions(k: int) -> Partitions:
    """All of them, by adding one member after the other."""
    found: list[list[int]] = [[]]
    for i in range(k):
        found = [
            [*blocks[:j], blocks[j] | 1 << i, *blocks[j + 1 :]]
            if j < len(blocks)
            else [*blocks, 1 << i]
            for blocks in found
            for j in range(len(blocks) + 1)
        ]
    rows = [[b for b in blocks if b.bit_count() > 1] for blocks in found]
    rows = [row for row in rows if row]
    parts = np.zeros((len(rows), max(k // 2, 1)), dtype=np.int64)
    for line, row in zip(parts, rows, strict=False):
        line[: len(row)] = row
    largest = np.array([max(b.bit_count() for b in row) for row in rows], dtype=np.int64)
    line, _ = np.nonzero(parts)
    mask = parts[parts > 0]
    order = np.argsort(mask, kind="stable")
    ptr = np.searchsorted(mask[order], np.arange((1 << k) + 1))
    masks = sorted((a for a in range(1 << k) if a.bit_count() > 1), key=lambda a: -a.bit_count())
    return Partitions(parts, largest, ptr, line[order], np.array(masks, dtype=np.int64))


@dataclass
class Group:
    """Scenarios of one layer with the same number k of experts.

    Attributes
    ----------
    members : int array, shape (n, k)
    weight : float array, shape (n,)
    least : int
        Least time on these GPUs, ceil(k/G).
    price : float array, shape (n, 2**k)
        f_S(A) for every mask A.
    """

    members: IntArray
    weight: FloatArray
    least: int
    price: FloatArray

    @property
    def k(self) -> int:
        """Number of experts of each scenario."""
        return self.members.shape[1]

    @property
    def excess(self) -> FloatArray:
        """Time in excess of the least one, for each partition."""
        return np.maximum(partitions(self.k).largest - self.least, 0).astype(np.float64)


def groups_of(scenarios: Scenarios, gpus: int) -> list[Group]:
    """Scenarios by size, with starting prices; those of one expert are left out.

    The starting price of A is the excess of A alone, divided by the number of sets of its size
    that fit into S together; :func:`improve` then makes it valid.
    """
    groups = []
    for k in np.unique(scenarios.sizes).tolist():
        if k < 2:
            continue
        rows = np.flatnonzero(scenarios.sizes == k)
        members = scenarios.expert[scenarios.ptr[rows][:, None] + np.arange(k)]
        least = -(-k // gpus)
        size = np.array([a.bit_count() for a in range(1 << k)])
        single = np.maximum(size - least, 0) / np.maximum(k // np.maximum(size, 1), 1)
        price = np.tile(np.where(size > 1, single, 0.0), (len(rows), 1))
        group = Group(members, scenarios.weight[rows], least, price)
        improve(group, np.zeros_like(price), 0.0)
        groups.append(group)
    return groups


def traces(group: Group, columns: list[list[int]], x: FloatArray, experts: int) -> FloatArray:
    """P_S(A) = Σ_B x_B [B ∩ S = A], shape (n, 2**k)."""
    inside = np.zeros((len(columns), experts), dtype=bool)
    for row, column in zip(inside, columns, strict=True):
        row[column] = True
    return _traces(group.members, inside, x)


def improve(group: Group, mass: FloatArray, step: float) -> None:
    """Move the prices along ``step * mass``, back to valid ones, and up to their limits."""
    table = partitions(group.k)
    _improve(group.price, mass, step, table.parts, group.excess, table.ptr, table.of, table.order)
    grid = 2.0**PRICE_BITS
    np.floor(group.price * grid, out=group.price)
    group.price /= grid


def shortfall(group: Group) -> IntArray:
    """min(0, min over partitions of excess − Σ prices), in units of 2**-PRICE_BITS: exact."""
    table = partitions(group.k)
    price = np.round(group.price * 2.0**PRICE_BITS).astype(np.int64)
    excess = np.round(group.excess * 2.0**PRICE_BITS).astype(np.int64)
    return _shortfall(price, table.parts, excess)


def crowding(group: Group, mass: FloatArray) -> FloatArray:
    """Time in excess of the least one if every set of positive mass were on a GPU: shape (n,)."""
    size = np.array([a.bit_count() for a in range(mass.shape[1])])
    largest = np.where(mass > 0.5, size, 0).max(axis=1)
    return np.asarray(np.maximum(largest - group.least, 0), dtype=np.float64)


@njit(cache=True)
def _traces(members, inside, x):
    n, k = members.shape
    mass = np.zeros((n, 1 << k))
    for s in range(n):
        for b in range(len(x)):
            mask = 0
            for i in range(k):
                if inside[b, members[s, i]]:
                    mask |= 1 << i
            if mask & (mask - 1):
                mass[s, mask] += x[b]
    return mass


@njit(cache=True)
def _improve(price, mass, step, parts, excess, ptr, of, order):
    width = parts.shape[1]
    for s in range(len(price)):
        f = price[s]
        if step > 0.0:
            for a in order:
                f[a] += step * mass[s, a]
            # Onto each broken half-space in turn.
            for _ in range(2):
                for q in range(len(parts)):
                    over, count = -excess[q], 0
                    for p in range(width):
                        if parts[q, p]:
                            over += f[parts[q, p]]
                            count += 1
                    if over > 0.0:
                        for p in range(width):
                            if parts[q, p]:
                                f[parts[q, p]] -= over / count
            for a in order:
                f[a] = max(f[a], 0.0)
        # Every price as high as the others allow; afterwards no partition is broken, unless a
        # price would have to be negative.
        for a in order:
            room = np.inf
            for i in range(ptr[a], ptr[a + 1]):
                q = of[i]
                left = excess[q]
                for p in range(width):
                    if parts[q, p] != a:
                        left -= f[parts[q, p]]
                room = min(room, left)
            f[a] = max(room, 0.0)


@njit(cache=True)
def _shortfall(price, parts, excess):
    short = np.zeros(len(price), np.int64)
    for s in range(len(price)):
        for q in range(len(parts)):
            left = excess[q]
            for p in range(parts.shape[1]):
                left -= price[s, parts[q, p]]
            short[s] = min(short[s], left)
    return short
