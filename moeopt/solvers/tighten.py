"""Finite bounds for columns that a model leaves open, rounded outwards.

Two valid arguments, applied until nothing changes:

propagation
    A row bounds a column by the extreme activity of its other columns. Every feasible point keeps
    such a bound.
domination
    Lowering a column of non-negative cost (minimising) as far as its rows allow keeps every other
    column and worsens nothing, so some optimal solution has the column at its lower end point,
    which is at most the largest value that its rows can force (an epigraph variable
    ``T >= load`` need not exceed the largest load). The same holds mirrored for columns of
    non-positive cost. One column after the other is treated, each in the program that the
    bounds before it leave, so the optimal value never changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from moeopt.linear import LinearModel

FloatArray = npt.NDArray[np.float64]
MAX_ROUNDS = 8


@dataclass
class _Activity:
    """Least (or greatest) activity of a row: finite part, and how many terms are infinite.

    The finite part is exact where the data are whole numbers, else a hair too small (too great).
    """

    finite: Fraction
    infinite: int


def finite_bounds(model: LinearModel) -> tuple[FloatArray, FloatArray]:
    """Return ``lower, upper`` with infinite bounds replaced by derived ones where possible.

    Given finite bounds are left alone. What stays infinite cannot be bounded by these arguments.

    Returns
    -------
    lower, upper : float arrays, shape (columns,)
        The optimal value of the model under these bounds is the model's own.
    """
    lower, upper = model.lower.copy(), model.upper.copy()
    open_columns = np.flatnonzero(np.isinf(lower) | np.isinf(upper))
    if not len(open_columns):
        return lower, upper
    rows = model.matrix
    by_column = rows.tocsc()
    for _ in range(MAX_ROUNDS):
        changed = False
        cache: dict[tuple[int, bool], _Activity] = {}
        for j in open_columns:
            if np.isfinite(lower[j]) and np.isfinite(upper[j]):
                continue
            part = slice(by_column.indptr[j], by_column.indptr[j + 1])
            entries = list(zip(by_column.indices[part], by_column.data[part], strict=True))
            column = _Column(model, lower, upper, cache, int(j), entries)
            low, high = column.bounds()
            if low is not None and math.isinf(lower[j]):
                lower[j], changed = _below(low, bool(model.integer[j])), True
                cache.clear()
            if high is not None and math.isinf(upper[j]):
                upper[j], changed = _above(high, bool(model.integer[j])), True
                cache.clear()
        if not changed:
            break
    return lower, upper


class _Column:
    """One open column, its rows, and what bounds it."""

    def __init__(
        self,
        model: LinearModel,
        lower: FloatArray,
        upper: FloatArray,
        cache: dict[tuple[int, bool], _Activity],
        j: int,
        entries: list[tuple[int, float]],
    ) -> None:
        self.model, self.lower, self.upper = model, lower, upper
        self.cache, self.j, self.entries = cache, j, entries

    def bounds(self) -> tuple[Fraction | None, Fraction | None]:
        """Return derived bounds (None where there is none)."""
        # Of x >= end points from below, and x <= end points from above: (weakest, strongest).
        low = self._propagated(from_below=True)
        high = self._propagated(from_below=False)
        cost = self.model.cost[self.j] * self.model.sense
        if high is None and cost >= 0:
            high = self._dominated(from_below=True)
        if low is None and cost <= 0 and (cost < 0 or math.isfinite(self.upper[self.j])):
            low = self._dominated(from_below=False)
        return low, high

    def _ends(self, from_below: bool, weakest: bool) -> list[Fraction | None]:
        """End points that the rows force on the column, with the others at an extreme.

        ``weakest`` takes the others where they force least (valid at every point), else where
        they force most. None stands for an infinite end point.
        """
        ends: list[Fraction | None] = []
        for i, a in self.entries:
            side = self.model.row_lower[i] if (a > 0) == from_below else self.model.row_upper[i]
            if math.isinf(side):
                continue
            # x = (side - others) / a: for a lower end point, weakest is the least of it.
            least_end = from_below == weakest
            others = self._others(int(i), least=(a > 0) != least_end, a=a)
            ends.append(None if others is None else (Fraction(float(side)) - others) / Fraction(a))
        return ends

    def _propagated(self, *, from_below: bool) -> Fraction | None:
        ends = [end for end in self._ends(from_below, weakest=True) if end is not None]
        if not ends:
            return None
        return max(ends) if from_below else min(ends)

    def _dominated(self, *, from_below: bool) -> Fraction | None:
        ends = self._ends(from_below, weakest=False)
        own = self.lower[self.j] if from_below else self.upper[self.j]
        if math.isfinite(own):
            ends.append(Fraction(float(own)))
        finite = [end for end in ends if end is not None]
        if not ends or len(finite) < len(ends):
            return None
        return max(finite) if from_below else min(finite)

    def _others(self, i: int, *, least: bool, a: float) -> Fraction | None:
        """Extreme activity of row ``i`` without the column, None if infinite."""
        activity = self._activity(i, least)
        bound = self._bound_in(self.j, a, least)
        infinite = activity.infinite - (bound is None)
        if infinite:
            return None
        return activity.finite - (Fraction(0) if bound is None else bound * Fraction(a))

    def _activity(self, i: int, least: bool) -> _Activity:
        key = (i, least)
        if key not in self.cache:
            matrix = self.model.matrix
            part = slice(matrix.indptr[i], matrix.indptr[i + 1])
            a, columns = matrix.data[part], matrix.indices[part]
            bound = np.where((a > 0) == least, self.lower[columns], self.upper[columns])
            finite = np.isfinite(bound)
            terms = a[finite] * bound[finite]
            error = _sum_error(a[finite], bound[finite], terms)
            total = Fraction(float(terms.sum())) + Fraction(-error if least else error)
            self.cache[key] = _Activity(total, int((~finite).sum()))
        return self.cache[key]

    def _bound_in(self, k: int, a: float, least: bool) -> Fraction | None:
        bound = self.lower[k] if (a > 0) == least else self.upper[k]
        return Fraction(float(bound)) if math.isfinite(bound) else None


def _sum_error(a: FloatArray, b: FloatArray, terms: FloatArray) -> float:
    """Bound the error of ``terms.sum()`` against the exact ``sum a b``, in any order of adding."""
    size = float(np.abs(terms).sum())
    whole = (a == np.rint(a)).all() and (b == np.rint(b)).all()
    if whole and size < 2.0**52:
        return 0.0
    # One rounding a product and at most n a sum; the factor 2 covers the error of this bound.
    return 2 * (len(terms) + 2) * 2.0**-53 * size + 2.0**-1000


def _above(value: Fraction, whole: bool) -> float:
    value = Fraction(math.ceil(value)) if whole else value
    result = float(value)
    return result if Fraction(result) >= value else math.nextafter(result, math.inf)


def _below(value: Fraction, whole: bool) -> float:
    return -_above(-value, whole)
