"""Round a lower bound up to the next value that a plan can have.

Layer times in expert-time units are whole numbers, and weights are often counts of tokens over
their total: then the expected time of every plan is a multiple of 1/total, and a bound a hair below
such a multiple proves the multiple itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

#: The smallest weight is tried as a count up to this.
MOST_SMALLEST_COUNT = 2**18
#: Totals beyond this leave multiples too close to be told apart in double precision.
LARGEST_TOTAL = 2**40
#: Unit roundoff of double precision.
UNIT = Fraction(1, 2**53)


def whole_total(scenario_weight: npt.ArrayLike) -> int | None:
    """Return the least N such that every weight is a whole count over N, correctly rounded.

    Verified exactly: each weight is the double next to count/N. None if no N is found with the
    smallest weight a count of about ``MOST_SMALLEST_COUNT`` at most.
    """
    weights = np.unique(np.asarray(scenario_weight, dtype=np.float64))
    weights = weights[weights != 0]
    if not len(weights) or weights[0] < 0 or not np.isfinite(weights).all():
        return None
    first, last = 1, 16
    while first <= MOST_SMALLEST_COUNT:
        total = _first_total(weights, np.arange(first, last + 1, dtype=np.float64))
        if total is not None:
            return total
        first, last = last + 1, 8 * last
    return None


def _first_total(weights: npt.NDArray[np.float64], smallest: npt.NDArray[np.float64]) -> int | None:
    """Try each count of the smallest weight."""
    totals = np.rint(smallest / weights[0])
    totals = totals[totals <= LARGEST_TOTAL]
    # A cheap test first, up to a few units in the last place: few totals pass it.
    for weight in weights.tolist():
        counts = weight * totals
        totals = totals[np.abs(counts - np.rint(counts)) <= 4e-16 * counts]
        if not len(totals):
            return None
    for total in map(int, totals.tolist()):
        if all(round(Fraction(w) * total) / total == w for w in weights.tolist()):
            return total
    return None


def lift(bound: float, weights: npt.ArrayLike | Sequence[npt.ArrayLike]) -> float:
    """Lift a lower bound of an expected time whose layer times are whole numbers.

    Parameters
    ----------
    bound : float
        A valid lower bound, positive.
    weights : array, or a sequence of arrays
        Scenario weights of the layer(s) that the bound sums over.

    Returns
    -------
    float
        A valid lower bound, at least ``bound``; ``bound`` itself where the weights are no counts.

    Notes
    -----
    With N the least common multiple of the layers' totals and n/N the exact weights, the plan's
    value in exact weights is a multiple of 1/N; in the rounded weights it differs by at most 2**-53
    of itself, relatively, and so does the bound. The lifted multiple is lowered by 8 such units,
    which also covers the rounding of a sum by the checker (``math.fsum`` of rounded products).
    """
    layers = _layers(weights)
    if not math.isfinite(bound) or bound <= 0:
        return bound
    totals = []
    for layer in layers:
        total = whole_total(layer)
        if total is None:
            return bound
        totals.append(total)
    common = math.lcm(*totals)
    if common > LARGEST_TOTAL:
        return bound
    # Bound in exact weights: lower by the weights' rounding; a multiple of 1/N is not below it.
    exact = Fraction(bound) * (1 - 2 * UNIT)
    multiple = Fraction(math.ceil(exact * common), common)
    lowered = multiple * (1 - 8 * UNIT)
    value = float(lowered)
    if Fraction(value) > lowered:
        value = math.nextafter(value, -math.inf)
    return max(bound, value)


def _layers(weights: npt.ArrayLike | Sequence[npt.ArrayLike]) -> list[npt.ArrayLike]:
    if isinstance(weights, np.ndarray):
        return [weights] if weights.ndim == 1 else list(weights)
    parts: list[npt.ArrayLike] = list(weights)  # type: ignore[arg-type]
    return [np.asarray(parts)] if all(np.ndim(part) == 0 for part in parts) else parts
