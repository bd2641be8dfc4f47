"""Hops in whole numbers: the exact value of a plan, and data on a grid below the true ones.

Doubles are whole multiples of a power of two, so nothing is rounded until the end. Bounds use
numbers rounded **down** to a grid that fits 64-bit integers: all are non-negative, so that every
plan costs at most as much with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.balance.exact import float_above, whole_loads
from moeopt.topology.data import BoolArray, FloatArray, IntArray, TopologyData

#: Bits of a grid's hops, and of the largest weight times the largest hops times the layers: a path
#: through the residual network changes each layer by one such product at most.
HOP_BITS, TOTAL_BITS = 28, 60


def whole_array(values: FloatArray) -> tuple[np.ndarray, Fraction]:
    """Return Python integers in an object array, and their unit: ``values == whole * unit``."""
    whole, unit = whole_loads(values.ravel())
    return np.array(whole, dtype=object).reshape(values.shape), unit


def layer_values(data: TopologyData, plan: BoolArray) -> list[Fraction]:
    """Return the exact hops of each layer: every token goes to the nearest copy.

    Parameters
    ----------
    plan : bool array, shape (L, E, S)
        Every expert has a copy somewhere.
    """
    hops, hop_unit = whole_array(data.hops)
    share, share_unit = whole_array(data.share)
    weight, weight_unit = whole_array(data.weight)
    unit = hop_unit * share_unit * weight_unit
    values = []
    for l in range(data.layers):
        way = hops[data.dispatch[l]] + hops.T[data.collect[l]]  # (I, S)
        # Servers sorted by each stream's hops: the first that holds a copy is the nearest.
        order = np.argsort(data.way[l], axis=1, kind="stable")
        total = 0
        for i in range(data.streams):
            first = plan[l][:, order[i]].argmax(axis=1)
            total += int(share[i]) * int((weight[l] * way[i, order[i][first]]).sum())
        values.append(total * unit)
    return values


def value_above(data: TopologyData, plan: BoolArray) -> float:
    """Return the hops of a plan, rounded up to a double."""
    return float_above(sum(layer_values(data, plan), Fraction(0)))


@dataclass(frozen=True)
class Grid:
    """Weights and hops in whole numbers, none above the true ones.

    Attributes
    ----------
    weight : int array, shape (L, E)
    cost : int array, shape (L, S)
        Mean over the streams of the hops by way of each server.
    unit : Fraction
        Hops that one unit of ``weight * cost`` stands for.
    """

    weight: IntArray
    cost: IntArray
    unit: Fraction


def on_grid(data: TopologyData) -> Grid:
    """Round weights and costs down to the finest grid whose products fit."""
    hops, hop_unit = whole_array(data.hops)
    share, share_unit = whole_array(data.share)
    way = hops[data.dispatch] + hops.T[data.collect]  # (L, I, S)
    exact = (way * share[:, None]).sum(axis=1)
    cost, cost_unit = shrunk(exact, hop_unit * share_unit, HOP_BITS)
    weight, weight_unit = whole_array(data.weight)
    largest = max(1, int(cost.max(initial=0)))
    room = TOTAL_BITS - largest.bit_length() - data.layers.bit_length()
    small, small_unit = shrunk(weight, weight_unit, room)
    return Grid(small, cost, cost_unit * small_unit)


def shrunk(whole: np.ndarray, unit: Fraction, bits: int) -> tuple[IntArray, Fraction]:
    """Drop the last bits, so that ``bits`` are left of the largest number; return the unit too."""
    excess = max(0, int(max(whole.ravel(), default=0)).bit_length() - bits)
    return np.array(whole >> excess, dtype=np.int64), unit * 2**excess
