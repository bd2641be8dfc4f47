"""Layers with the same streams, and classes of their experts' weights, in whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from moeopt.topology.data import BoolArray, FloatArray, IntArray, TopologyData
from moeopt.topology.exact import HOP_BITS, shrunk, whole_array

#: Bits of the largest weight times the largest hops: sums over streams and levels stay in int64.
PRODUCT_BITS = 48
#: With fewer, lines between them lie far below the bounds of the weights in between.
LEAST_KNOTS = 16


@dataclass(frozen=True)
class Group:
    """Layers with the same streams; weights and hops are none above the true ones.

    Attributes
    ----------
    layers : int
        How many they are.
    way : int array, shape (I, S)
        Hops of a token of each stream by way of each server, times the stream's share.
    weights : int array, shape (layers · E,)
        Ascending.
    knots : int array, shape (m,)
        Some of the weights, the smallest and the largest among them; ascending.
    base : int
        Σ_i of the smallest hops D_0.
    step : int array, shape (P,)
        D_(k+1) − D_k of every pair (i, k).
    near : bool array, shape (P, S)
        Servers at most D_k away.
    """

    layers: int
    way: IntArray
    weights: IntArray
    knots: IntArray
    base: int
    step: IntArray
    near: BoolArray

    @property
    def knot_below(self) -> IntArray:
        """For each weight the last knot at or below it that has one behind it."""
        below = np.searchsorted(self.knots, self.weights, side="right") - 1
        return np.minimum(below, max(0, len(self.knots) - 2))

    @property
    def sizes(self) -> FloatArray:
        """Experts that each knot stands for: one between two knots counts for both in part."""
        sizes = np.zeros(len(self.knots))
        if len(self.knots) == 1:
            return sizes + len(self.weights)
        below = self.knot_below
        width = np.diff(self.knots).astype(np.float64)
        part = (self.weights - self.knots[below]) / width[below]
        np.add.at(sizes, below, 1 - part)
        np.add.at(sizes, below + 1, part)
        return sizes


def groups_of(data: TopologyData, classes: int) -> tuple[list[Group], Fraction]:
    """Group layers and weights; return the groups, and the hops that one unit stands for.

    Parameters
    ----------
    classes : int
        Knots of all groups together; at least :data:`LEAST_KNOTS` a group.
    """
    hops, hop_unit = whole_array(data.hops)
    share, share_unit = whole_array(data.share)
    way = (hops[data.dispatch] + hops.T[data.collect]) * share[:, None]
    small, way_unit = shrunk(way, hop_unit * share_unit, HOP_BITS)
    weight, weight_unit = whole_array(data.weight)
    room = PRODUCT_BITS - int(small.max()).bit_length()
    whole, small_unit = shrunk(weight, weight_unit, room)
    _, first, of_layer = np.unique(
        np.hstack([data.dispatch, data.collect]), axis=0, return_index=True, return_inverse=True
    )
    groups = []
    for g, l in enumerate(first.tolist()):
        layers = np.flatnonzero(of_layer.ravel() == g)
        weights = np.sort(whole[layers], axis=None)
        knots = _knots(weights, max(LEAST_KNOTS, classes // len(first)))
        groups.append(Group(len(layers), small[l], weights, knots, *_levels(small[l])))
    return groups, way_unit * small_unit


def _levels(way: IntArray) -> tuple[int, IntArray, BoolArray]:
    """Nearest hops, the steps between distances, and the servers within each."""
    base, steps, near = 0, [], []
    for row in way:
        distances = np.unique(row)
        base += int(distances[0])
        for nearer, farther in pairwise(distances.tolist()):
            steps.append(farther - nearer)
            near.append(row <= nearer)
    shape = (len(near), way.shape[1])
    return base, np.array(steps, dtype=np.int64), np.array(near, dtype=bool).reshape(shape)


def _knots(weights: IntArray, most: int) -> IntArray:
    """Distinct weights, evenly spaced on a logarithmic scale, with the smallest and the largest."""
    largest = float(weights[-1])
    positive = weights[weights > 0]
    if not len(positive):
        return weights[:1]
    smallest = max(float(positive[0]), largest * 2.0**-20)
    wanted = np.geomspace(smallest, largest, most)
    places = np.minimum(np.searchsorted(weights, wanted), len(weights) - 1)
    return np.unique(weights[np.concatenate(([0], places, [len(weights) - 1]))])
