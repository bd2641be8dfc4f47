"""Numbers for people, rounded so that no bound looks better than it is."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction

#: Significant digits printed, unless told.
DIGITS = 9


def lower_text(value: float, digits: int = DIGITS) -> str:
    """Return a lower bound, rounded down to so many significant digits."""
    return _text(value, digits, ROUND_FLOOR)


def upper_text(value: float, digits: int = DIGITS) -> str:
    """Return an upper bound, rounded up to so many significant digits."""
    return _text(value, digits, ROUND_CEILING)


def exact_gap(upper: float, lower: float) -> Fraction:
    """(upper − lower) / max(|upper|, 1e-9) of two doubles, without rounding."""
    return (Fraction(upper) - Fraction(lower)) / max(abs(Fraction(upper)), Fraction(1, 10**9))


def percent_text(share: Fraction) -> str:
    """Return a share in percent, without the sign, rounded up to 2 decimals (4 below 0.1 %)."""
    if share == 0:
        return "0"
    decimals = 2 if share >= Fraction(1, 1000) else 4
    return f"{Decimal(math.ceil(share * 100 * 10**decimals)).scaleb(-decimals):f}"


def _text(value: float, digits: int, rounding: str) -> str:
    short = Decimal(repr(value))
    if len(short.as_tuple().digits) <= digits:
        return _plain(short)  # the double itself, as it is written everywhere
    exact = Decimal(value)
    unit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    rounded = (exact / unit).to_integral_value(rounding=rounding) * unit
    return _plain(rounded)


def _plain(value: Decimal) -> str:
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
