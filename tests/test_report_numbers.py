"""Numbers of tables: rounded so that no bound and no gap looks better than it is."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeopt.report import numbers
from moeopt.rounding_text import exact_gap, percent_text

VALUES = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)


@given(value=VALUES, digits=st.integers(2, 12))
def test_bounds_are_rounded_away_from_each_other(value: float, digits: int) -> None:
    low, high = numbers.lower(value, digits), numbers.upper(value, digits)
    assert "," not in low + high
    assert "e" not in (low + high).lower()
    # A double that is short in decimal is printed as people wrote it: 0.1 as 0.1.
    written = Fraction(repr(value))
    assert min(Fraction(value), written) >= Fraction(low) or Fraction(low) == written
    assert max(Fraction(value), written) <= Fraction(high) or Fraction(high) == written
    width = Fraction(10) ** (1 - digits) * max(abs(Fraction(value)), Fraction(1, 10**320))
    assert Fraction(high) - Fraction(low) <= width


@given(upper=VALUES, lower=VALUES)
def test_gaps_are_rounded_up(upper: float, lower: float) -> None:
    lower, upper = min(lower, upper), max(lower, upper)
    gap = exact_gap(upper, lower)
    shown = Fraction(percent_text(gap)) / 100
    assert gap <= shown
    assert shown - gap <= Fraction(1, 10**4)
    assert (shown == 0) == (upper == lower)


def test_gap_of_a_small_objective_is_by_the_formula() -> None:
    assert exact_gap(1e-12, 0.0) == Fraction(1e-12) * 10**9
    assert exact_gap(0.0, 0.0) == 0


@pytest.mark.parametrize(
    ("gap", "text"),
    [
        (Fraction(0), "0"),
        (Fraction(1, 10**30), "0.0001"),
        (Fraction(1, 3), "33.34"),
        (Fraction(1, 10), "10.00"),
        (Fraction(999, 10**6), "0.0999"),
        (Fraction(1, 1000), "0.10"),
        (Fraction(5, 2), "250.00"),
    ],
)
def test_percent(gap: Fraction, text: str) -> None:
    assert percent_text(gap) == text


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=20), st.sampled_from([1.0, 100.0]))
def test_shifted_geometric_mean(values: list[float], shift: float) -> None:
    product = math.prod(Decimal(value + shift) for value in values)
    by_hand = float(product ** (Decimal(1) / len(values))) - shift
    mean = numbers.shifted_geometric_mean(values, shift)
    assert mean == pytest.approx(by_hand, rel=1e-9, abs=1e-9 * shift)
    assert mean is not None
    assert min(values) - 1e-6 <= mean <= max(values) + 1e-6 * (1 + max(values))


def test_no_mean_of_nothing() -> None:
    assert numbers.shifted_geometric_mean([], 1.0) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.012345, "0.0123"),
        (1.0, "1.00"),
        (4209.4, "4209"),
        (9.996, "10.00"),
    ],
)
def test_measured(value: float | None, text: str) -> None:
    assert numbers.measured(value) == text
