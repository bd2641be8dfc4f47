"""``paging`` as arrays: requests, the cache, and what a load costs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from moeopt.balance.exact import whole_loads
from moeopt.paging.policies import FloatArray
from moeopt.paging.requests import IntArray, Requests


@dataclass(frozen=True)
class PagingData:
    """A cache and its requests.

    Attributes
    ----------
    requests : Requests
    cache : int
        Experts that the cache holds.
    load_us : float array, shape (L,), or None
        Time to load an expert of each layer, microseconds, positive; None: misses are counted.
    """

    requests: Requests
    cache: int
    load_us: FloatArray | None = None

    def whole_costs(self) -> tuple[list[int], Fraction]:
        """Cost of a load of each layer in whole numbers, and their unit: nothing is rounded."""
        if self.load_us is None:
            return [1] * self.requests.layers, Fraction(1)
        return whole_loads(self.load_us)

    def cost(self, misses: IntArray) -> Fraction:
        """Cost of misses by layer, shape (L,), exactly."""
        whole, unit = self.whole_costs()
        return unit * sum(c * n for c, n in zip(whole, misses.tolist(), strict=True))
