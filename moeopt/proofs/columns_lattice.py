"""All sets of at most c of E experts, and sums over their subsets, as arrays.

Sets are numbered by size, then in colexicographic order: a set ``a_0 < a_1 < … < a_(d−1)`` has
rank ``Σ_p C(a_p, p + 1)`` among those of its size. The sets whose largest expert is m are then the
``C(m, d − 1)`` first sets of size d − 1 with m added, so every table is made of slices.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moeopt.problem import IntArray

IndexArray = npt.NDArray[np.int32]
MemberArray = npt.NDArray[np.int16]


def count_sets(experts: int, largest: int) -> int:
    """Number of sets of at most ``largest`` experts, the empty set included."""
    return sum(math.comb(experts, d) for d in range(min(largest, experts) + 1))


class Lattice:
    """Sets of at most ``largest`` of ``experts`` experts.

    Attributes
    ----------
    offset : list of int, length largest + 2
        Sets of size d have numbers ``offset[d] … offset[d + 1] − 1``.
    members : list of int16 arrays, shape (C(E, d), d)
        Experts of the sets of size d, ascending.
    """

    def __init__(self, experts: int, largest: int) -> None:
        self.experts, self.largest = experts, min(largest, experts)
        counts = [math.comb(experts, d) for d in range(self.largest + 1)]
        self.offset: list[int] = [0, *np.cumsum(counts).tolist()]
        self._binomial = np.array(
            [[math.comb(m, d) for d in range(self.largest + 1)] for m in range(experts)],
            dtype=np.int64,
        )
        self.members: list[MemberArray] = [np.zeros((1, 0), dtype=np.int16)]
        # Rank, among the sets one smaller, of a set without its p-th expert: shape (C(E, d), d).
        self._without: list[IndexArray] = [np.zeros((1, 0), dtype=np.int32)]
        for d in range(1, self.largest + 1):
            self._add_size(d)

    def __len__(self) -> int:
        return self.offset[-1]

    def _blocks(self, d: int) -> list[tuple[int, slice, slice]]:
        """For each largest expert m: its sets of size d, and those sets without m, as slices."""
        return [
            (m, slice(math.comb(m, d), math.comb(m + 1, d)), slice(0, math.comb(m, d - 1)))
            for m in range(d - 1, self.experts)
        ]

    def _add_size(self, d: int) -> None:
        total = math.comb(self.experts, d)
        members = np.empty((total, d), dtype=np.int16)
        without = np.empty((total, d), dtype=np.int32)
        for m, here, smaller in self._blocks(d):
            members[here, :-1] = self.members[d - 1][smaller]
            members[here, -1] = m
            without[here, :-1] = self._without[d - 1][smaller] + math.comb(m, d - 1)
            without[here, -1] = np.arange(smaller.stop)
        self.members.append(members)
        self._without.append(without)

    def numbers(self, sets: npt.ArrayLike) -> IntArray:
        """Numbers of sets of one size d, given by ascending experts: [..., d] -> [...]."""
        rows = np.asarray(sets, dtype=np.int64)
        d = rows.shape[-1]
        rank = np.zeros(rows.shape[:-1], dtype=np.int64)
        for p in range(d):
            rank += self._binomial[rows[..., p], p + 1]
        return rank + self.offset[d]

    def sets(self, numbers: npt.ArrayLike) -> list[list[int]]:
        """Experts of each of the sets with these numbers."""
        found = []
        for number in np.asarray(numbers, dtype=np.int64).tolist():
            d = int(np.searchsorted(self.offset, number, side="right")) - 1
            found.append(self.members[d][number - self.offset[d]].tolist())
        return found

    def add_subsets(self, values: IntArray) -> IntArray:
        """Replace the value of every set by the sum over all its subsets, in place.

        After stage p the value of B is the sum over its subsets that contain all its experts but
        possibly the p + 1 smallest. Large sets come first: they need the smaller ones of the stage
        before. Integer overflow wraps around, so a result that fits is right.
        """
        for p in range(self.largest):
            for d in range(self.largest, p, -1):
                rank = self._without[d][:, p]
                smaller = values[self.offset[d - 1] : self.offset[d]]
                values[self.offset[d] : self.offset[d + 1]] += smaller[rank]
        return values

    def sums(self, weight: IntArray) -> IntArray:
        """Sum of the experts' weights over each set: shape (len(self),)."""
        total = np.zeros(len(self), dtype=weight.dtype)
        for d in range(1, self.largest + 1):
            before = total[self.offset[d - 1] : self.offset[d]]
            after = total[self.offset[d] : self.offset[d + 1]]
            for m, here, smaller in self._blocks(d):
                after[here] = before[smaller] + weight[m]
        return total
