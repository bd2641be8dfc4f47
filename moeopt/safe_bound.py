"""A bound of the LP relaxation that no rounding can fake, from any vector of row duals.

For ``min c x`` with rows ``lower <= A x <= upper`` and any y, let ``d = c - A'y``. Then

    sum over rows of (y+ * lower - y- * upper) + sum over columns of min(d * lb, d * ub)

is a lower bound (weak duality; Neumaier & Shcherbina 2004 make it safe in floating point). Here
``A'y`` carries a proved error bound (zero where the sums are exact in double precision), all
products are split into two doubles without error, and one exactly rounded sum adds them up. The
result is rounded towards the safe side.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moeopt.linear import FloatArray, LinearModel

#: Unit roundoff of double precision.
UNIT = 2.0**-53
#: Split products are free of error between these magnitudes (no underflow, no overflow).
SMALLEST, LARGEST = 2.0**-400, 2.0**400
#: Duals are pulled towards zero by at most this much to mend a sign.
MOST_SHRINK = 1e-6
#: Bits kept where duals are rounded to a grid, so that sums with short data are exact.
GRID_BITS = 30


def safe_dual_bound(model: LinearModel, row_dual: npt.ArrayLike) -> float:
    """Return a valid bound of the LP relaxation's objective: below for min, above for max.

    Parameters
    ----------
    model : LinearModel
    row_dual : array, shape (rows,)
        Any duals: of a simplex, of a first-order method, of a solve cut short. Their sign is that
        of the objective's change with the row's sides (HiGHS's). Values that are no number count
        as 0.

    Returns
    -------
    float
        ``-inf`` (``inf`` for max) where these duals prove nothing: a column without a finite bound
        on the side that its reduced cost points to, or numbers too large or small to be safe.
    """
    dual = np.array(row_dual, dtype=np.float64)
    rows = model.matrix.shape[0]
    if dual.shape != (rows,):
        raise ValueError(f"{dual.shape} duals for {rows} rows")
    dual[~np.isfinite(dual) | (np.abs(dual) < SMALLEST)] = 0.0
    evaluation = Evaluation(model)
    dual *= model.sense
    # A side that is infinite cannot be leaned on.
    dual[(dual > 0) & np.isinf(model.row_lower)] = 0.0
    dual[(dual < 0) & np.isinf(model.row_upper)] = 0.0
    best = evaluation.bound(dual)
    if best == -np.inf:
        best = evaluation.bound(evaluation.shrunk(dual))
    if best == -np.inf:
        best = evaluation.bound(on_grid(dual))
    return model.sense * best


def on_grid(dual: FloatArray) -> FloatArray:
    """Round duals to multiples of one power of two, ``GRID_BITS`` below the largest."""
    largest = np.abs(dual).max(initial=0.0)
    if not SMALLEST < largest < LARGEST:
        return np.zeros_like(dual)
    grid = 2.0 ** (math.frexp(largest)[1] - GRID_BITS)
    return np.round(dual / grid) * grid


class Evaluation:
    """The data of one model, as a minimisation."""

    def __init__(self, model: LinearModel) -> None:
        self.model = model
        self.by_column = sparse.csc_array(model.matrix)
        self.magnitude = abs(self.by_column)
        self.cost = model.sense * model.cost
        self.offset = model.sense * model.offset
        finite = [np.where(np.isinf(b), 0.0, np.abs(b)) for b in (model.lower, model.upper)]
        self.widest = np.maximum(*finite)

    def bound(self, dual: FloatArray) -> float:
        """Return the bound that duals of the right signs prove, rounded down."""
        model = self.model
        with np.errstate(over="ignore", invalid="ignore"):
            activity, error = self.activity(dual)
            # d = high + low, without error but for that of the activity.
            high, low = two_sum(self.cost, -activity)
        if not np.isfinite(high).all() or not np.isfinite(error).all():
            return -np.inf
        # At an infinite bound the sign of d must be beyond doubt.
        unsure = error > 0
        needs_upper = (high < 0) | (unsure & (high <= 2 * error))
        needs_lower = (high > 0) | (unsure & (-high <= 2 * error))
        if (needs_upper & np.isposinf(model.upper)).any():
            return -np.inf
        if (needs_lower & np.isneginf(model.lower)).any():
            return -np.inf
        at = np.where(high > 0, model.lower, model.upper)
        at[high == 0] = 0.0
        side = np.where(dual > 0, model.row_lower, model.row_upper)
        side[dual == 0] = 0.0
        # min(d * lb, d * ub) changes by at most |change of d| * max(|lb|, |ub|); a bound that is
        # infinite plays no part by now.
        slack = np.nextafter(error * self.widest, np.inf)
        slack[error == 0] = 0.0
        terms = [np.array([self.offset]), -slack]
        for a, b in ((high, at), (low, at), (dual, side)):
            if not (_is_safe(a) and _is_safe(b)):
                return -np.inf
            terms += two_product(a, b)
        total = np.concatenate(terms)
        total = total[total != 0]
        return _sum_down(total.tolist())

    def activity(self, dual: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ``A'y`` and a bound of its error, both of shape (columns,)."""
        activity = self.by_column.T @ dual
        total = self.magnitude.T @ np.abs(dual)
        count = np.diff(self.by_column.indptr)
        # n products and sums: relative to the sum of magnitudes the error is below n u / (1 - n u);
        # one more for the rounding of that sum itself, and one for that of this product.
        gamma = (count + 4) * UNIT
        error = total * (gamma / (1 - gamma)) * (1 + 8 * UNIT)
        error[self.exact(dual, total)] = 0.0
        # An underflowing product loses up to 2**-1074 on top.
        error[error > 0] += 2.0**-1000
        return activity, error

    def exact(self, dual: FloatArray, total: FloatArray) -> npt.NDArray[np.bool_]:
        """Return the columns whose sum is exact in double precision, in any order.

        All its products are multiples of one power of two, and their magnitudes add up to less
        than 2**53 of it.
        """
        matrix = self.by_column
        unit = _lowest_bit(matrix.data) + _lowest_bit(dual)[matrix.indices]
        smallest = np.full(matrix.shape[1], 2**20, dtype=np.int64)
        filled = np.diff(matrix.indptr) > 0
        if filled.any():
            smallest[filled] = np.minimum.reduceat(unit, matrix.indptr[:-1][filled])
        with np.errstate(over="ignore", under="ignore"):
            room = np.ldexp(1.0, np.clip(smallest + 52, -1000, 1000).astype(np.int32))
        # 2**52 rather than 2**53: the total itself is rounded.
        return (total == 0) | ((total < room) & (smallest > -900))

    def shrunk(self, dual: FloatArray) -> FloatArray:
        """Pull duals towards zero until reduced costs have the sign that infinite bounds need.

        With ``(1 - t) y`` the reduced cost is ``(1 - t) d + t c``: a cost of the right sign mends
        a small error of d.
        """
        activity, error = self.activity(dual)
        reduced = self.cost - activity
        worst = 0.0
        for open_side, sign in (
            (np.isposinf(self.model.upper), 1.0),
            (np.isneginf(self.model.lower), -1.0),
        ):
            wrong = open_side & (sign * reduced <= 2 * error) & (sign * self.cost > 0)
            if wrong.any():
                lacking = 4 * error[wrong] - sign * reduced[wrong]
                worst = max(worst, float((lacking / (sign * self.cost[wrong])).max()))
        return dual * (1.0 - min(2 * worst, MOST_SHRINK))


def two_sum(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return ``a + b`` as two doubles without error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return ``a * b`` as two doubles without error (Dekker, Veltkamp)."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    rest = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    return product, rest


def _split(a: FloatArray) -> tuple[FloatArray, FloatArray]:
    scaled = 134217729.0 * a  # 2**27 + 1
    high = scaled - (scaled - a)
    return high, a - high


def _is_safe(a: FloatArray) -> bool:
    size = np.abs(a[a != 0])
    return bool(((size > SMALLEST) & (size < LARGEST)).all())


def _lowest_bit(a: FloatArray) -> npt.NDArray[np.int64]:
    """Exponent of the lowest set bit (0 has none: a large number)."""
    mantissa, exponent = np.frexp(a)
    whole = (mantissa * 2.0**53).astype(np.int64)
    lowest = (whole & -whole).astype(np.float64)
    position = np.frexp(np.where(whole == 0, 1.0, lowest))[1] - 1
    return np.where(whole == 0, 2**20, exponent.astype(np.int64) - 53 + position)


def _sum_down(terms: list[float]) -> float:
    """Return the largest double that is at most the exact sum."""
    total = math.fsum(terms)
    if not math.isfinite(total):
        return -math.inf
    # fsum is rounded once from the exact sum, so the sign of what is left is exact.
    return total if math.fsum([*terms, -total]) >= 0 else math.nextafter(total, -math.inf)
