"""Directed rounding of a mixed-integer linear program to integers.

The integer program made here is a *relaxation*: every point that matters of the original program
maps to a point of it whose objective is not larger, so a bound that CP-SAT proves for the integer
program is a bound of the original one. (Minimising; a maximisation is negated first.)

Doubles are odd integers times powers of two, so all scaling by powers of two is exact.

1.  *Columns.* Column ``x`` becomes an integer ``t`` with a unit ``d`` (a power of two):
    ``x = d t + r``. Integer columns have ``d = 1, r = 0``. A continuous column has
    ``t = floor(x / d)`` and ``0 <= r < d``, unless it is *on a lattice*: if its cost is not
    negative and every end point from below (own bound and rows) is a multiple of ``d`` whatever
    values the other columns take, some optimal solution has it there, so ``r = 0`` (mirrored for
    costs not positive; column after column, each in the program that the ones before it leave).
    Bounds of ``t`` are the floors (on a lattice: the multiples inside the bounds).

2.  *Rows.* With ``v = S a d`` (``S`` a power of two chosen per row) and any integer ``c`` near
    ``v``: ``c t - S a x = (c - v) t - S a r``, at most ``max over t of (c - v) t``, plus ``|v|``
    where ``a < 0`` and ``r`` is not 0. Let ``C`` be the sum of these over the row, rounded up to
    multiples of 1/1024. Then ``a x <= b`` implies ``sum c t <= floor(S b + C)``. The other side is
    mirrored. One-sided rows round ``v`` in the harmless direction, two-sided ones to nearest.
    A row whose ``v`` are all integers and whose columns are all integer has ``C = 0``: it is exact.

3.  *Objective.* Treated as a row: ``sum c t <= S (cost x) + C``, hence
    ``cost x >= (sum c t - C) / S``.

4.  *Overflow.* ``sum |c| max|t|`` is below ``2**61`` in every row and ``2**50`` in the objective,
    computed in doubles (relative error below 1e-9): more than a factor two to 2**62 is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from moeopt.linear import LinearModel
from moeopt.solvers.dyadic import ZERO_EXPONENT, by_row, ceil_log2, split
from moeopt.solvers.lattice import Grid, column_name, integer_grid

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Corrections are kept in units of 2**-FINE of a row's unit.
FINE = 10
#: Rounding of a row's coefficients stays below 2**-ROW_BITS of its largest term.
ROW_BITS = 26
#: Rows with at most so many bits are kept exact, others are rounded to at most WISHED_BITS.
EXACT_BITS = 48
WISHED_BITS = 56
LIMIT_BITS = 61
OBJECTIVE_BITS = 50
#: An odd part with more bits is a decimal that no power of two makes integral.
AWKWARD_BITS = 20

NO_LOWER = int(np.iinfo(np.int64).min)
NO_UPPER = int(np.iinfo(np.int64).max)


class NotRepresentable(Exception):
    """The model has no honest integer form; the text says why, in words."""


@dataclass(frozen=True)
class RoundedModel:
    """``min objective @ t`` over integers: a relaxation of a :class:`LinearModel`.

    Attributes
    ----------
    grid : Grid
        Bounds and units of the columns.
    indptr, indices, coefficients : int arrays
        Rows, compressed.
    row_lower, row_upper : lists of int
        ``NO_LOWER`` and ``NO_UPPER`` where open.
    objective : int array, shape (columns,)
    scale : Fraction
        The objective's S.
    constant : Fraction
        ``sense * true objective >= objective @ t / scale + constant``.
    objective_error, row_error : float
        Largest possible loss of the bound through the objective's rounding (in its unit), and
        largest relaxation of a row relative to its largest activity. Zero when nothing is lost.
    infeasible : bool
        A column or a row has no value left: the original model is infeasible.
    """

    model: LinearModel
    grid: Grid
    indptr: IntArray
    indices: IntArray
    coefficients: IntArray
    row_lower: list[int]
    row_upper: list[int]
    objective: IntArray
    scale: Fraction
    constant: Fraction
    objective_error: float
    row_error: float
    infeasible: bool

    @property
    def exact(self) -> bool:
        """Whether nothing is relaxed: both programs have the same optimal value."""
        return self.objective_error == 0 and self.row_error == 0

    def bound(self, integer_bound: int) -> float:
        """Map a lower bound of ``objective @ t`` to a bound of the original objective."""
        value = Fraction(integer_bound) / self.scale + self.constant
        result = float(value)
        if Fraction(result) > value:
            result = math.nextafter(result, -math.inf)
        return self.model.sense * result

    @property
    def least_objective(self) -> int:
        """The least value that ``objective @ t`` has within the column bounds."""
        lower, upper = self.grid.lower.astype(object), self.grid.upper.astype(object)
        c = self.objective.astype(object)
        return int(np.where(self.objective > 0, c * lower, c * upper).sum())


def round_model(model: LinearModel) -> RoundedModel:
    """Make the integer program.

    Raises
    ------
    NotRepresentable
        A column that matters has no finite bound, or numbers of too different size meet in a row.
    """
    grid = integer_grid(model)
    problem = grid.problem
    if problem is not None:
        raise NotRepresentable(problem)
    matrix = model.matrix
    columns = matrix.shape[1]
    # The objective is the last row.
    used = np.flatnonzero(model.cost)
    indptr = np.append(matrix.indptr.astype(np.int64), matrix.nnz + len(used))
    indices = np.concatenate([matrix.indices.astype(np.int64), used])
    data = np.concatenate([matrix.data, model.sense * model.cost[used]])
    row_lower = np.append(model.row_lower, -np.inf)
    row_upper = np.append(model.row_upper, np.inf)
    rows = _Rows(model, grid, indptr, indices, data, row_lower, row_upper)
    sides_lower, sides_upper, row_error = rows.sides()
    objective = np.zeros(columns, dtype=np.int64)
    objective[used] = rows.coefficients[matrix.nnz :]
    scale = Fraction(2) ** int(rows.scale[-1])
    correction = Fraction(int(rows.above[-1]), 1 << FINE) / scale
    return RoundedModel(
        model=model,
        grid=grid,
        indptr=indptr[:-1],
        indices=indices[: matrix.nnz],
        coefficients=rows.coefficients[: matrix.nnz],
        row_lower=sides_lower,
        row_upper=sides_upper,
        objective=objective,
        scale=scale,
        constant=model.sense * Fraction(float(model.offset)) - correction,
        objective_error=rows.objective_error(),
        row_error=row_error,
        infeasible=bool((grid.lower > grid.upper).any())
        or any(low > high for low, high in zip(sides_lower, sides_upper, strict=True)),
    )


class _Rows:
    """Scales, integer coefficients and corrections of all rows at once (step 2 of the proof)."""

    def __init__(
        self,
        model: LinearModel,
        grid: Grid,
        indptr: IntArray,
        indices: IntArray,
        data: FloatArray,
        row_lower: FloatArray,
        row_upper: FloatArray,
    ) -> None:
        self.indptr, self.row_lower, self.row_upper = indptr, row_lower, row_upper
        self.row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        self.low, self.high = grid.lower[indices], grid.upper[indices]
        self.remainder = grid.remainder[indices]
        self.negative = data < 0
        odd, exponent = split(data)
        self.exponent = exponent + grid.exponent[indices]
        self.odd_bits = np.frexp(np.abs(odd).astype(np.float64))[1]
        self.largest = np.maximum(np.abs(self.low), np.abs(self.high)).astype(np.float64)
        self.names = lambda i: _row_name(model, i)
        # |a d| as a double: exact.
        self.alpha = np.ldexp(data, grid.exponent[indices].astype(np.int32))
        self.scale = self._scales()
        self._round()

    def _weight(self) -> FloatArray:
        """Size of each row at S = 1: activity, and the corrections of the remainders."""
        size = np.abs(self.alpha) * (self.largest + self.remainder * float(1 << FINE))
        return by_row(np.add, size, self.indptr, 0.0)

    def _scales(self) -> IntArray:
        weight = self._weight()
        weight_bits = np.where(weight > 0, ceil_log2(np.maximum(weight, 1e-300)), 0)
        finest = -by_row(np.minimum, self.exponent, self.indptr, 0)
        # Integer data on integer columns stay exact as long as they fit.
        natural = (finest <= 0) & ~by_row(np.logical_or, self.remainder, self.indptr, False)
        most_exact = np.where(natural, LIMIT_BITS - 1, EXACT_BITS)
        most_rounded = np.full(len(weight), WISHED_BITS, dtype=np.int64)
        most_exact[-1] = most_rounded[-1] = OBJECTIVE_BITS - 1
        exact = weight_bits + finest <= most_exact
        return np.where(exact, finest, np.minimum(self._wished(), most_rounded - weight_bits))

    def _wished(self) -> IntArray:
        """Scales that keep the coefficients' rounding below 2**-ROW_BITS of the largest term."""
        awkward = self.odd_bits > AWKWARD_BITS
        span = np.maximum((self.high - self.low).astype(np.float64), 1.0)
        spans = by_row(np.add, np.where(awkward, span, 0.0), self.indptr, 0.0)
        term = by_row(np.maximum, np.abs(self.alpha) * span, self.indptr, 0.0)
        wished = (
            ROW_BITS + ceil_log2(np.maximum(spans, 1.0)) - ceil_log2(np.where(term > 0, term, 1.0))
        )
        friendly = np.where(awkward, ZERO_EXPONENT, self.exponent)
        finest = -by_row(np.minimum, friendly, self.indptr, 0)
        return np.maximum(wished, finest)

    def _round(self) -> None:
        v = np.ldexp(self.alpha, self.scale[self.row].astype(np.int32))
        only_upper = np.isinf(self.row_lower)[self.row]  # the objective too
        only_lower = np.isinf(self.row_upper)[self.row] & ~only_upper
        c = np.where(only_upper, np.floor(v), np.where(only_lower, np.ceil(v), np.rint(v)))
        self.v = v
        self.coefficients = c.astype(np.int64)
        self.activity = by_row(np.add, np.abs(c) * self.largest, self.indptr, 0.0)
        inexact = c != v
        spread = by_row(np.add, np.where(inexact, self.largest, 0.0), self.indptr, 0.0)
        remainders = by_row(np.add, np.abs(v) * self.remainder, self.indptr, 0.0)
        fits = (self.activity < 2.0**LIMIT_BITS) & (
            (spread + remainders) * float(1 << FINE) < 2.0**LIMIT_BITS
        )
        fits[-1] &= self.activity[-1] < 2.0**OBJECTIVE_BITS
        if not fits.all():
            name = self.names(int(np.flatnonzero(~fits)[0]))
            raise NotRepresentable(f"{name}: its numbers differ too much in size for 62 bits")
        self._correct(inexact)

    def _correct(self, inexact: npt.NDArray[np.bool_]) -> None:
        """Bounds of ``c t - S a x`` from above and from below, in units of 2**-FINE."""
        above = np.zeros(len(self.v), dtype=np.int64)
        below = np.zeros(len(self.v), dtype=np.int64)
        w = np.ldexp(self.v[inexact], FINE)  # below 2**62, as |v| < 2**52 where it is no integer
        c = self.coefficients[inexact] << FINE
        most, least = c - np.floor(w).astype(np.int64), c - np.ceil(w).astype(np.int64)
        low, high = self.low[inexact], self.high[inexact]

        def greatest(t: IntArray) -> IntArray:
            return t * np.where(t >= 0, most, least)

        def smallest(t: IntArray) -> IntArray:
            return t * np.where(t >= 0, least, most)

        above[inexact] = np.maximum(greatest(low), greatest(high))
        below[inexact] = np.minimum(smallest(low), smallest(high))
        # The remainder r in [0, d) changes S a x by less than |v|.
        rest = np.ceil(np.ldexp(np.abs(np.where(self.remainder, self.v, 0.0)), FINE))
        above += np.where(self.negative, rest, 0.0).astype(np.int64)
        below -= np.where(self.negative, 0.0, rest).astype(np.int64)
        self.loss = by_row(np.add, above - below, self.indptr, 0)
        self.above = by_row(np.add, above, self.indptr, 0)
        self.below = by_row(np.add, below, self.indptr, 0)

    def sides(self) -> tuple[list[int], list[int], float]:
        """Integer sides of every row but the objective, and the largest relative relaxation."""
        c = self.coefficients
        greatest = by_row(np.add, np.where(c > 0, c * self.high, c * self.low), self.indptr, 0)
        least = by_row(np.add, np.where(c > 0, c * self.low, c * self.high), self.indptr, 0)
        lower, upper, error = [], [], 0.0
        for i in range(len(self.scale) - 1):
            scale = int(self.scale[i])
            low = _floor_side(-self.row_lower[i], scale, -int(self.below[i]))
            high = _floor_side(self.row_upper[i], scale, int(self.above[i]))
            low = None if low is None else -low
            # Just outside the activity is as good as far outside, and fits in 64 bits.
            lower.append(_within(low, int(least[i]), int(greatest[i]) + 1, NO_LOWER, 1))
            upper.append(_within(high, int(least[i]) - 1, int(greatest[i]), NO_UPPER, -1))
            if self.loss[i]:
                error = max(error, float(self.loss[i]) / (1 << FINE) / max(self.activity[i], 1.0))
        return lower, upper, error

    def objective_error(self) -> float:
        """Most that the objective's rounding can cost the bound."""
        return float(Fraction(int(self.loss[-1]), 1 << FINE) / Fraction(2) ** int(self.scale[-1]))


def _floor_side(side: float, scale: int, correction: int) -> int | None:
    """Return ``floor(2**scale * side + correction / 2**FINE)``, None for an infinite side."""
    if math.isinf(side):
        return None
    numerator, denominator = float(side).as_integer_ratio()
    shift = scale + FINE
    scaled = (numerator << shift) if shift >= 0 else numerator
    return (scaled // (denominator << max(-shift, 0)) + correction) >> FINE


def _within(side: int | None, least: int, greatest: int, none: int, kind: int) -> int:
    """Clip a side to the activity range; a side that never binds becomes ``none``."""
    if side is None or (kind > 0 and side <= least) or (kind < 0 and side >= greatest):
        return none
    return min(max(side, least), greatest)


def _row_name(model: LinearModel, i: int) -> str:
    if i == model.matrix.shape[0]:
        return "the objective"
    return column_name(model.rows, i, "row")
