"""Doubles as what they are, odd integers times powers of two; sums by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Exponent of zero: a multiple of every power of two that occurs.
ZERO_EXPONENT = 1 << 20


def split(values: npt.ArrayLike) -> tuple[IntArray, IntArray]:
    """Write finite doubles as ``odd * 2**exponent``, exactly.

    Returns
    -------
    odd, exponent : int arrays
        ``odd`` is 0 and ``exponent`` is ``ZERO_EXPONENT`` where the value is zero.
    """
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    odd = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = odd & -odd
    zero = odd == 0
    shift = np.frexp(np.where(zero, 1, lowest).astype(np.float64))[1].astype(np.int64) - 1
    return odd >> shift, np.where(zero, ZERO_EXPONENT, exponent.astype(np.int64) - 53 + shift)


def by_row(ufunc: np.ufunc, values: npt.NDArray[Any], indptr: IntArray, empty: Any) -> Any:
    """Reduce the entries of each compressed row with ``ufunc``; empty rows give ``empty``."""
    result = np.full(len(indptr) - 1, empty, dtype=values.dtype)
    filled = np.flatnonzero(np.diff(indptr))
    if len(filled):
        result[filled] = ufunc.reduceat(values, indptr[filled])
    return result


def ceil_log2(values: FloatArray) -> IntArray:
    """Return the least k with ``values <= 2**k`` (values > 0)."""
    mantissa, exponent = np.frexp(values)
    return exponent.astype(np.int64) - (mantissa == 0.5)
