"""Numbers for people, rounded so that no bound looks better than it is."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

#: Significant digits printed, unless told.
DIGITS = 9


def lower_text(value: float, digits: int = DIGITS) -> str:
    """Return a lower bound, rounded down to so many significant digits."""
    return _text(value, digits, ROUND_FLOOR)


def upper_text(value: float, digits: int = DIGITS) -> str:
    """Return an upper bound, rounded up to so many significant digits."""
    return _text(value, digits, ROUND_CEILING)


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
