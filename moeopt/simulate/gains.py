"""Means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and its two-sided 95 % interval (Student); none for fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain data for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "seeds": self.seeds}


def interval(values: Sequence[float]) -> Interval:
    """Mean of one value a seed, and its interval."""
    numbers = np.asarray(values, dtype=np.float64)
    mean, count = float(numbers.mean()), len(numbers)
    if count < 2:
        return Interval(mean, None, None, count)
    half = float(student.ppf((1 + LEVEL) / 2, count - 1) * numbers.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def gain(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Relative gain ``ours/theirs - 1``, seed by seed: both replay the same requests.

    Raises
    ------
    ValueError
        Different numbers of seeds.
    """
    return interval([a / b - 1.0 for a, b in zip(ours, theirs, strict=True)])
