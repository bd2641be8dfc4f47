"""Column costs and the bound that prices and duals prove, in whole numbers: no rounding.

Everything is in units of 2**-BITS. Weighted prices are rounded down, so a cost is at most the true
one; sums over subsets then are exact. docs/bounds/columns.md has the proof.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from moeopt.problem import FloatArray, IntArray, Scenarios
from moeopt.proofs.columns_lattice import Lattice
from moeopt.proofs.columns_patterns import PRICE_BITS, Group, shortfall

BITS = 48
#: Duals beyond this are cut off: an expert never costs so much.
_LARGEST_DUAL = 64.0


class Pricing:
    """Costs of all columns for changing prices.

    ``subset[group][s, A]``: number of the set A of scenario s in the lattice, 0 if too large.
    """

    def __init__(self, lattice: Lattice, groups: list[Group]) -> None:
        self.lattice, self.groups = lattice, groups
        self._subset = [self._subsets(group) for group in groups]

    def _subsets(self, group: Group) -> IntArray:
        number = np.zeros(group.price.shape, dtype=np.int64)
        for a in range(1, 1 << group.k):
            place = [i for i in range(group.k) if a >> i & 1]
            if 2 <= len(place) <= self.lattice.largest:
                number[:, a] = self.lattice.numbers(group.members[:, place])
        return number

    def cost(self) -> IntArray:
        """``Σ_S p_S f_S(S ∩ B)``, rounded down, for every set B: shape (len(lattice),)."""
        total = np.zeros(len(self.lattice), dtype=np.int64)
        for group, subset in zip(self.groups, self._subset, strict=True):
            value = weighed(group.weight[:, None], group.price)
            for i in range(group.k):
                # Moebius inversion: the sum over the subsets of A gives back f(A).
                halves = value.reshape(len(value), -1, 2, 1 << i)
                halves[:, :, 1] -= halves[:, :, 0]
            np.add.at(total, subset.ravel(), value.ravel())
        # Sets too large to be part of a column were sent to the empty set.
        total[0] = 0
        return self.lattice.add_subsets(total)

    def excess(self) -> int:
        """What the prices may ask too much: ``Σ_S p_S min(0, shortfall)``, rounded down."""
        total = 0
        for group in self.groups:
            short = shortfall(group)
            broken = short < 0
            if broken.any():
                ask = weighed(group.weight[broken], np.asarray(-short[broken] * 2.0**-PRICE_BITS))
                total -= int(ask.sum()) + 4 * int(broken.sum())
        return total


def weighed(weight: FloatArray, price: FloatArray) -> IntArray:
    """``weight * price`` in units of 2**-BITS, rounded down (weights ≤ 1, prices in 0 … 8).

    The product is below 2**51 units: as a double its error is at most a quarter of a unit, so one
    unit less than its floor is safe.
    """
    return np.maximum(np.floor(weight * price * 2.0**BITS).astype(np.int64) - 1, 0)


def whole(dual: FloatArray) -> IntArray:
    """Duals in units of 2**-BITS."""
    return np.round(np.clip(dual, 0.0, _LARGEST_DUAL) * 2.0**BITS).astype(np.int64)


def least_times(scenarios: Scenarios, gpus: int) -> Fraction:
    """Σ_S p_S ceil(|S|/G), exactly."""
    least = -(-scenarios.sizes // gpus)
    return sum(
        (
            int(t) * sum(map(Fraction, scenarios.weight[least == t].tolist()), Fraction(0))
            for t in np.unique(least)
        ),
        Fraction(0),
    )


def bound_units(dual: IntArray, smallest: int, excess: int, gpus: int, surplus: int) -> int:
    """The bound on the excess time, in units of 2**-BITS.

    ``Σ π − (largest Σ of ``surplus`` duals) + G · min(0, smallest reduced cost) + excess``, for
    duals π ≥ 0.
    """
    ordered = np.sort(dual)[::-1].tolist()
    return sum(ordered[surplus:]) + gpus * min(0, smallest) + excess


def rounded_down(value: Fraction) -> float:
    """Largest double that is at most a fraction."""
    nearest = float(value)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)
