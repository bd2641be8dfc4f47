"""Numbers of tables: one text for each, the same in every format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal

from moeopt import rounding_text

#: What stands where there is no number.
NOTHING = "–"

#: Shifts of the geometric means, as usual for benchmarks of MIP solvers.
SHIFT_S = 1.0
SHIFT_NODES = 100.0


def lower(value: float | None, digits: int) -> str:
    """Return a lower bound rounded down, without thousands separators: programs read it, too."""
    return NOTHING if value is None else rounding_text.lower_text(value, digits).replace(",", "")


def upper(value: float | None, digits: int) -> str:
    """Return an upper bound rounded up, without thousands separators."""
    return NOTHING if value is None else rounding_text.upper_text(value, digits).replace(",", "")


def count(value: int | None) -> str:
    """Return a whole number."""
    return NOTHING if value is None else str(value)


def measured(value: float | None, digits: int = 3) -> str:
    """Return a time or a mean, rounded to the nearest number of so many significant digits."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    exact = Decimal(value)
    unit = Decimal(1).scaleb(min(0, exact.adjusted() - digits + 1))
    return f"{exact.quantize(unit, rounding=ROUND_HALF_EVEN):f}"


def shifted_geometric_mean(values: Sequence[float], shift: float) -> float | None:
    """Return exp(mean(log(value + shift))) − shift; None of no values.

    Source: T. Achterberg, Constraint Integer Programming, TU Berlin 2007, appendix A.3.
    """
    if not values:
        return None
    mean = math.fsum(math.log1p(value / shift) for value in values) / len(values)
    return shift * math.expm1(mean)
