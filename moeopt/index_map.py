"""IndexMap: where the members of an index set lie, for whole arrays of them at once. numpy only.

A product of index sets is kept as its factors: the product of a sparse set of 600,000 scenario
experts and 32 GPUs needs one table for the sparse factor and none for the product.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

#: A sparse factor is looked up in a table of at most this many entries, else by bisection.
TABLE_ROOM = 2**24


class Factor(Protocol):
    """One factor of an index set: ordered tuples of ``dimen`` integers."""

    @property
    def size(self) -> int:
        """Number of members."""
        ...

    @property
    def dimen(self) -> int:
        """Length of a member."""
        ...

    def coordinates(self) -> list[IntArray]:
        """Return one array of ``size`` entries for each dimension."""
        ...

    def position(self, where: Sequence[npt.ArrayLike]) -> IntArray:
        """Return the position of each member (broadcasting); KeyError where there is none."""
        ...


@dataclass(frozen=True)
class Range:
    """The integers ``start .. start + size - 1``."""

    start: int
    size: int
    dimen: int = 1

    def coordinates(self) -> list[IntArray]:
        """Return the integers themselves."""
        return [np.arange(self.start, self.start + self.size, dtype=np.int64)]

    def position(self, where: Sequence[npt.ArrayLike]) -> IntArray:
        """Return the distance from ``start``."""
        found = np.asarray(where[0], dtype=np.int64) - self.start
        if found.size and (found.min() < 0 or found.max() >= self.size):
            raise KeyError(f"index outside {self.start}..{self.start + self.size - 1}")
        return found


@dataclass(frozen=True, eq=False)
class Members:
    """Any list of distinct integer tuples; ``members`` has shape (size, dimen)."""

    members: IntArray

    @property
    def size(self) -> int:
        """Number of members."""
        return int(self.members.shape[0])

    @property
    def dimen(self) -> int:
        """Length of a member."""
        return int(self.members.shape[1])

    def coordinates(self) -> list[IntArray]:
        """Return the columns of ``members``."""
        return [np.ascontiguousarray(column) for column in self.members.T]

    def position(self, where: Sequence[npt.ArrayLike]) -> IntArray:
        """Return the place in the list."""
        arrays = [np.asarray(w, dtype=np.int64) for w in where]
        if not self.size:
            if all(a.size for a in arrays):
                raise KeyError("index in an empty set")
            return np.zeros(np.broadcast_shapes(*(a.shape for a in arrays)), dtype=np.int64)
        low, high, strides = self._box
        code: IntArray = np.int64(0)  # type: ignore[assignment]
        for a, lo, hi, stride in zip(arrays, low, high, strides, strict=True):
            if a.size and (a.min() < lo or a.max() > hi):
                raise KeyError(f"index outside {lo}..{hi}")
            code = code + (a - lo) * stride
        order, keys = self._table
        if keys is None:
            found = order[code]
            lost = found < 0
        else:
            place = np.minimum(np.searchsorted(keys, code), len(keys) - 1)
            found, lost = order[place], keys[place] != code
        if lost.any():
            raise KeyError("index that is no member of a sparse set")
        return found

    @cached_property
    def _box(self) -> tuple[list[int], list[int], list[int]]:
        low = self.members.min(axis=0).tolist()
        high = self.members.max(axis=0).tolist()
        spans = [hi - lo + 1 for lo, hi in zip(low, high, strict=True)]
        strides = [int(np.prod(spans[d + 1 :], dtype=object)) for d in range(len(spans))]
        if strides[0] * spans[0] >= 2**62:
            raise OverflowError("the members of an index set are too far apart")
        return low, high, strides

    @cached_property
    def _table(self) -> tuple[IntArray, IntArray | None]:
        """Positions by code; or positions in the order of the sorted codes, and these codes."""
        low, high, strides = self._box
        code = (self.members - np.array(low)) @ np.array(strides, dtype=np.int64)
        room = strides[0] * (high[0] - low[0] + 1)
        if room <= max(TABLE_ROOM, 8 * self.size):
            table = np.full(room, -1, dtype=np.int64)
            table[code] = np.arange(self.size)
            return table, None
        order = np.argsort(code, kind="stable")
        return order, code[order]


@dataclass(frozen=True)
class IndexMap:
    """An ordered index set of integer tuples: the product of its factors, last one fastest.

    A scalar component has no factor and one member, the empty tuple.
    """

    factors: tuple[Factor, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of members of each factor."""
        return tuple(f.size for f in self.factors)

    @property
    def size(self) -> int:
        """Number of members."""
        return int(np.prod(self.sizes, dtype=np.int64))

    @property
    def dimen(self) -> int:
        """Length of a member."""
        return sum(f.dimen for f in self.factors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the factors where all are 0-based ranges, else ``(size,)``."""
        if all(isinstance(f, Range) and f.start == 0 for f in self.factors):
            return self.sizes
        return (self.size,)

    @property
    def is_box(self) -> bool:
        """Whether ``shape`` alone says what the members are."""
        return all(isinstance(f, Range) and f.start == 0 for f in self.factors)

    def position(self, where: Sequence[npt.ArrayLike], dtype: type = np.int64) -> npt.NDArray:
        """Return the positions of members given by one array for each dimension (broadcasting).

        Raises
        ------
        KeyError
            Where there is no such member.
        """
        if len(where) != self.dimen:
            raise KeyError(f"{len(where)} indices where {self.dimen} are needed")
        total: npt.NDArray = np.zeros((), dtype=dtype)
        stride, first = self.size, 0
        for factor in self.factors:
            stride = stride // factor.size if factor.size else 0
            part = factor.position(where[first : first + factor.dimen])
            # Small arrays are multiplied and cast before they are broadcast against each other.
            total = total + (part * stride).astype(dtype)
            first += factor.dimen
        return total

    def coordinates(self) -> IntArray:
        """Return all members, shape (size, dimen)."""
        if not self.factors:
            return np.zeros((1, 0), dtype=np.int64)
        grids = np.indices(self.sizes, dtype=np.int64).reshape(len(self.sizes), -1)
        columns = [
            c[grid]
            for factor, grid in zip(self.factors, grids, strict=True)
            for c in factor.coordinates()
        ]
        return np.stack(columns, axis=1)

    def tuples(self) -> Iterator[tuple[Hashable, ...]]:
        """Iterate over the members in order."""
        factors = [
            list(zip(*(c.tolist() for c in f.coordinates()), strict=True)) for f in self.factors
        ]
        for member in itertools.product(*factors):
            yield tuple(itertools.chain.from_iterable(member))


@dataclass(frozen=True, eq=False)
class LabelMap:
    """An ordered index set whose members are no integers (names, mixed lengths): no arithmetic."""

    labels: tuple[tuple[Hashable, ...], ...]

    is_box = False

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Always ``(size,)``."""
        return (self.size,)

    def tuples(self) -> Iterator[tuple[Hashable, ...]]:
        """Iterate over the members in order."""
        return iter(self.labels)
