"""Loads as whole numbers: doubles are whole multiples of a power of two, so nothing is rounded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from moeopt.balance.data import FloatArray


def whole_loads(loads: FloatArray) -> tuple[list[int], Fraction]:
    """Return whole numbers and their unit: ``loads[e] == whole[e] * unit``, exactly.

    Parameters
    ----------
    loads : float array, shape (E,)
    """
    ratios = [float(load).as_integer_ratio() for load in loads]
    denominator = max(below for _, below in ratios)
    whole = [above * (denominator // below) for above, below in ratios]
    common = math.gcd(*whole) or 1
    return [number // common for number in whole], Fraction(common, denominator)


def sum_below(values: Iterable[float]) -> float:
    """Return a sum, rounded down: for lower bounds."""
    return float_below(sum((Fraction(value) for value in values), Fraction(0)))


def float_below(value: Fraction) -> float:
    """Return the largest double that is not above a value: for lower bounds."""
    near = float(value)
    return near if Fraction(near) <= value else math.nextafter(near, -math.inf)


def float_above(value: Fraction) -> float:
    """Return the smallest double that is not below a value: for upper bounds."""
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)
