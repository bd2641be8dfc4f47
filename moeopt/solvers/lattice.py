"""The integer grid of a model's columns (step 1 of :mod:`moeopt.solvers.rounding`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moeopt.linear import Block, LinearModel
from moeopt.solvers.dyadic import ZERO_EXPONENT, by_row, ceil_log2, split
from moeopt.solvers.tighten import finite_bounds

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Steps of a continuous column whose coefficients are powers of two (scaling keeps them exact)…
FINE_STEP_BITS = 30
#: …and of any other one. On small joint programs CP-SAT proved optima in a second with 2**22
#: steps that it did not find in seven with 2**24 or 2**25.
STEP_BITS = 22
#: A lattice with more steps than this is no help.
LATTICE_BITS = 34
#: Largest |t|.
LARGEST_BITS = 46
MAX_ROUNDS = 20


@dataclass(frozen=True)
class Grid:
    """Columns as integers: ``x = t 2**exponent + r``, ``lower <= t <= upper``.

    Attributes
    ----------
    lower, upper, exponent : int arrays, shape (columns,)
    remainder : bool array
        Where r may be anything in [0, 2**exponent); elsewhere r = 0.
    """

    lower: IntArray
    upper: IntArray
    exponent: IntArray
    remainder: npt.NDArray[np.bool_]
    problem: str | None = field(default=None)

    def values(self, t: npt.ArrayLike) -> FloatArray:
        """Values of the columns; of a column with a remainder the grid point below it."""
        points = np.asarray(t, dtype=np.float64)
        return np.ldexp(points, self.exponent.astype(np.int32))

    def points(self, x: FloatArray) -> IntArray:
        """Grid points for (finite) values, clipped to the bounds."""
        scaled = np.ldexp(x, -self.exponent.astype(np.int32))
        near = np.round(scaled)
        # A value computed in doubles may lie a hair below the grid point that it means.
        close = np.abs(scaled - near) <= 1e-6
        t = np.where(close, near, np.floor(scaled))
        return np.clip(t, self.lower, self.upper).astype(np.int64)


def integer_grid(model: LinearModel) -> Grid:
    """Choose bounds and units; ``problem`` says why there is none."""
    lower, upper = finite_bounds(model)
    used = (model.cost != 0) | (np.diff(model.matrix.tocsc().indptr) > 0)
    open_columns = np.isinf(lower) | np.isinf(upper)
    nothing = np.zeros(0, dtype=np.int64)
    if (open_columns & used).any():
        names = [column_name(model.columns, int(j)) for j in np.flatnonzero(open_columns & used)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        problem = f"no finite bounds are known for {', '.join(names[:3])}{more}"
        return Grid(nothing, nothing, nothing, nothing.astype(bool), problem)
    # A column that occurs nowhere takes any value within its bounds.
    anything = np.where(np.isfinite(lower), lower, np.where(np.isfinite(upper), upper, 0.0))
    lower = np.where(open_columns, anything, lower)
    upper = np.where(open_columns, anything, upper)
    exponent = np.zeros(len(lower), dtype=np.int64)
    lattice = _lattice(model, lower, upper)
    on_lattice = lattice < ZERO_EXPONENT
    exponent[on_lattice] = lattice[on_lattice]
    free = ~model.integer & ~on_lattice
    exponent[free] = _units(model, lower, upper)[free]
    low = np.ldexp(lower, -exponent.astype(np.int32))
    high = np.ldexp(upper, -exponent.astype(np.int32))
    low, high = np.where(free, np.floor(low), np.ceil(low)), np.floor(high)
    large = np.maximum(np.abs(low), np.abs(high)) >= 2.0**LARGEST_BITS
    if large.any():
        name = column_name(model.columns, int(np.flatnonzero(large)[0]))
        problem = f"the bounds of {name} are too large"
        return Grid(nothing, nothing, nothing, nothing.astype(bool), problem)
    return Grid(low.astype(np.int64), high.astype(np.int64), exponent, free)


def _units(model: LinearModel, lower: FloatArray, upper: FloatArray) -> IntArray:
    """Return the exponents of the units of continuous columns that lie on no lattice."""
    odd, _ = split(model.matrix.data)
    awkward = _marked(len(lower), model.matrix.indices[np.abs(odd) != 1])
    awkward |= np.abs(split(model.cost)[0]) > 1
    bits = np.where(awkward, STEP_BITS, FINE_STEP_BITS)
    size = np.maximum(np.abs(lower), np.abs(upper))
    span = np.where(upper > lower, upper - lower, size)
    # Far from zero, a very fine unit would make the numbers large.
    span = np.maximum(span, np.ldexp(size, -12))
    return np.where(span > 0, ceil_log2(np.where(span > 0, span, 1.0)) - bits, 0)


def _lattice(model: LinearModel, lower: FloatArray, upper: FloatArray) -> IntArray:
    """Exponents of continuous columns that may be taken on a lattice, else ``ZERO_EXPONENT``.

    The result has ``ZERO_EXPONENT`` for integer columns, too: their unit is 1 in any case.
    """
    columns = len(lower)
    result = np.full(columns, ZERO_EXPONENT, dtype=np.int64)
    if model.integer.all():
        return result
    known = model.integer.copy()
    exponent = np.zeros(columns, dtype=np.int64)
    matrix = model.matrix
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(indptr))
    odd, entry_exponent = split(matrix.data)
    cost = model.sense * model.cost
    span = np.maximum(np.maximum(np.abs(lower), np.abs(upper)), 1e-300)
    fixed = np.minimum(split(lower)[1], 0)
    accept = ~known & (lower == upper) & (ceil_log2(span) - fixed <= LATTICE_BITS)
    result[accept] = exponent[accept] = fixed[accept]
    known |= accept
    for _ in range(MAX_ROUNDS):
        candidates = ~known
        others = np.where(known[indices], entry_exponent + exponent[indices], ZERO_EXPONENT)
        row_exponent = by_row(np.minimum, others, indptr, ZERO_EXPONENT)
        unknown = by_row(np.add, candidates[indices].astype(np.int64), indptr, 0)
        for from_below in (True, False):
            side = np.where(
                (matrix.data > 0) == from_below, model.row_lower[row], model.row_upper[row]
            )
            binding = candidates[indices] & np.isfinite(side)
            end = np.minimum(row_exponent[row], split(np.where(binding, side, 0.0))[1])
            end = np.where(end == ZERO_EXPONENT, end, end - entry_exponent)
            good = (unknown[row] == 1) & (np.abs(odd) == 1)
            own = model.lower if from_below else model.upper
            unit = np.where(np.isfinite(own), split(np.where(np.isfinite(own), own, 0.0))[1], 0)
            np.minimum.at(unit, indices[binding], end[binding])
            fails = _marked(columns, indices[binding & ~good])
            unit = np.minimum(unit, 0)  # a finer lattice contains a coarser one
            accept = ~known & ~fails & ((cost >= 0) if from_below else (cost <= 0))
            accept &= ceil_log2(span) - unit <= LATTICE_BITS
            # An open own bound is no end point only where cost rules out that `finite_bounds`
            # replaced it by domination.
            accept &= np.isfinite(own) | (_marked(columns, indices[binding]) & (cost != 0))
            result[accept] = exponent[accept] = unit[accept]
            known |= accept
        if not (candidates & known).any():
            break
    return result


def _marked(columns: int, where: IntArray) -> npt.NDArray[np.bool_]:
    result = np.zeros(columns, dtype=bool)
    result[where] = True
    return result


def column_name(blocks: Mapping[str, Block], j: int, kind: str = "column") -> str:
    """Name column (or row) ``j`` as its component and index, such as ``x[0,3]``."""
    for name, block in blocks.items():
        if block.start <= j < block.start + block.size:
            offset = j - block.start
            if block.shape == ():
                return name
            index = (
                tuple(block.index[offset])
                if block.index is not None
                else tuple(int(k) for k in np.unravel_index(offset, block.shape))
            )
            return f"{name}[{','.join(str(k) for k in index)}]"
    return f"{kind} {j}"
