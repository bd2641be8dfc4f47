"""Prices of servers as a lower bound of every plan with one copy of each expert.

For prices μ[s] ≥ 0 of a place on a server and ν[l,s] ≥ 0 of a place of a layer there,

    Σ_(l,e) min_s (w[l,e] c[l,s] + μ[s] + ν[l,s])  −  Σ_s μ[s] C[s]  −  Σ_(l,s) ν[l,s] K[s]

is at most the hops of any plan: its experts pay at least the minima, and their places bring in at
most what is subtracted. Whole numbers, so it is exact whoever chose the prices.
"""

from __future__ import annotations

import numba
import numpy as np

from moeopt.balance.exact import float_below
from moeopt.topology.data import IntArray, TopologyData
from moeopt.topology.exact import Grid


def certified(data: TopologyData, grid: Grid, server: IntArray, layer: IntArray) -> float:
    """Return the bound that these prices prove, rounded down to a double.

    Parameters
    ----------
    grid : Grid
        Of the same data.
    server : int array, shape (S,)
        μ, not negative, in units of the grid.
    layer : int array, shape (L, S)
        ν, likewise.
    """
    if server.min(initial=0) < 0 or layer.min(initial=0) < 0:
        raise ValueError("prices must not be negative")
    pays = _least(grid.weight, grid.cost, server + layer).ravel().tolist()
    rent = sum(int(p) * int(room) for p, room in zip(server, data.capacity, strict=True))
    rows = zip(layer.sum(axis=0), data.capacity_per_layer, strict=True)
    rent += sum(int(p) * int(room) for p, room in rows)
    return max(0.0, float_below((sum(pays) - rent) * grid.unit))


@numba.njit(cache=True)
def _least(weight: np.ndarray, cost: np.ndarray, price: np.ndarray) -> np.ndarray:
    """What each expert pays at least, shape (L, E)."""
    least = np.empty_like(weight)
    for l, e in np.ndindex(weight.shape):
        best = weight[l, e] * cost[l, 0] + price[l, 0]
        for s in range(1, cost.shape[1]):
            best = min(best, weight[l, e] * cost[l, s] + price[l, s])
        least[l, e] = best
    return least
