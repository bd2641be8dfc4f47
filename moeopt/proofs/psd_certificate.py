"""Exact evaluation of the pattern relaxation's bound, from any multipliers, in whole numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeopt.problem import FloatArray, IntArray, Scenarios
from moeopt.proofs.psd_patterns import Multipliers, Patterns, lagrangian
from moeopt.proofs.psd_sets import Costs, cheapest_sets, tables

#: Bits behind the point: costs are multiples of 2**-BITS of an expert-time unit.
BITS = 44
#: Every sum stays below this, so that 64-bit integers are exact.
_LARGEST = 2**62


@dataclass(frozen=True)
class Certificate:
    """Multipliers that prove a bound: any values of the right signs will do.

    Attributes
    ----------
    mates, apart, distinct : float arrays
        As in :class:`moeopt.proofs.psd_patterns.Multipliers`, in expert-time units.
    factor : float array, shape (C(E,2), E − 2, E − 2)
        The Gram multipliers of each pair are ``factor @ factor.T`` over the other experts.
    price : float array, shape (E,)
        Of covering each expert once.
    """

    mates: FloatArray
    apart: FloatArray
    distinct: FloatArray
    factor: FloatArray
    price: FloatArray


def whole(values: FloatArray) -> IntArray:
    """Nearest multiples of 2**-BITS; OverflowError where they leave 64 bits or are no numbers."""
    if not bool((np.abs(values) < 2.0 ** (62 - BITS)).all()):
        raise OverflowError("multipliers are too large for exact evaluation")
    return np.rint(np.ldexp(values, BITS)).astype(np.int64)


def whole_weights(scenarios: Scenarios) -> IntArray:
    """Weights rounded down: no time is negative, so that the bound stays one."""
    return np.floor(np.ldexp(scenarios.weight, BITS)).astype(np.int64)


def as_float(units: int) -> float:
    """The largest float that is at most ``units`` · 2**-BITS."""
    value = math.ldexp(units, -BITS)
    return value if int(math.ldexp(value, BITS)) <= units else math.nextafter(value, -math.inf)


class ExactLagrangian:
    """Whole-number costs of a layer for one vector of multipliers.

    Attributes
    ----------
    costs : Costs of int
    constant : int
        ``E[T] >= constant + costs of the sets on the GPUs``, both in units of 2**-BITS.
    """

    def __init__(
        self, patterns: Patterns, scenarios: Scenarios, at: Multipliers, factor: FloatArray
    ) -> None:
        weight = whole_weights(scenarios)
        objective = patterns.objective(scenarios, weight)
        exact = Multipliers(
            whole(at.mates),
            whole(np.maximum(at.apart, 0.0)),
            whole(np.maximum(at.distinct, 0.0)),
            whole_gram(patterns, factor),
        )
        self._check_size(patterns, int(weight.sum()), exact)
        split = lagrangian(patterns, objective, exact).split
        # A split that would be paid for is charged to the rows (3) that hold it down.
        lacking = np.maximum(-split, 0)
        exact.apart[:, :, 0] += lacking // 2
        exact.apart[:, :, 1] += lacking - lacking // 2
        self._check_size(patterns, int(weight.sum()), exact)
        self.costs: Costs = lagrangian(patterns, objective, exact)
        assert self.costs.split.min(initial=0) >= 0
        self.constant = int(weight.sum()) - int(exact.distinct.sum())
        self.patterns = patterns
        self._tables = tables(self.costs, patterns.experts)

    @staticmethod
    def _check_size(patterns: Patterns, weight: int, at: Multipliers) -> None:
        """Refuse multipliers for which some sum could leave 64 bits.

        A cost of a pair, the largest, has at most E terms of ``mates`` times c − 1, E²/2 of
        ``apart`` and of ``distinct`` and E² + G·E of ``gram``; those of triples, quadruples and
        splits have fewer but for small E, which the constants below cover.
        """
        mates, apart, distinct, gram = (
            int(np.abs(part).max(initial=0)) for part in (at.mates, at.apart, at.distinct, at.gram)
        )
        e, c, g = patterns.experts, patterns.size, patterns.gpus
        cost = weight + 3 * c * e * mates + (e * e + 6 * e + 12) * (apart + distinct)
        cost += 2 * (e + g + 6) * (e + g + 6) * gram
        if cost * (math.comb(c, 2) + math.comb(c, 3) + math.comb(c, 4) + 1) >= _LARGEST // 2:
            raise OverflowError("multipliers are too large for exact evaluation")

    def bound(self, price: FloatArray, keep: int) -> tuple[float, npt.NDArray[np.int64], IntArray]:
        """Evaluate the bound for given prices (equation 7).

        Returns
        -------
        bound : float
            Rounded down.
        reduced, sets : int arrays, shapes (found,), (found, c)
            Up to ``keep`` sets that cost less than their prices, and by how much.
        """
        exact = whole(price)
        if float(np.abs(exact).astype(np.float64).sum()) >= _LARGEST / 4:
            raise OverflowError("prices are too large for exact evaluation")
        least, reduced, sets = cheapest_sets(
            self.patterns.size, -exact, *self._tables, keep, np.int64(0)
        )
        total = self.constant + int(exact.sum()) + self.patterns.gpus * int(least)
        return as_float(total), reduced, sets


def whole_gram(patterns: Patterns, factor: FloatArray) -> IntArray:
    """Whole-number Gram multipliers that are positive semidefinite beyond doubt.

    ``fl(factor @ factor.T)`` in units of 2**-BITS, rounded, differs from the true product by less
    than 1 in each entry: by ½ from rounding and by less than n²·2**-52·max² · 2**BITS from the n
    products and sums, in whatever order. A symmetric n × n matrix with entries of at most 1 in
    magnitude has no eigenvalue below −n; so n is added to the diagonal.
    """
    pairs, size = factor.shape[:2]
    if size**2 * float(np.abs(factor).max(initial=0.0)) ** 2 >= 2.0 ** (51 - BITS):
        raise OverflowError("Gram factors are too large for exact evaluation")
    product = factor @ factor.transpose(0, 2, 1)
    gram = whole(np.tril(product) + np.tril(product, -1).transpose(0, 2, 1))
    gram[:, np.arange(size), np.arange(size)] += size
    full = np.zeros((pairs, patterns.experts, patterns.experts), dtype=np.int64)
    block = np.arange(pairs)[:, None, None]
    full[block, patterns.others[:, :, None], patterns.others[:, None, :]] = gram
    return full
