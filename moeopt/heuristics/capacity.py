"""How many experts each GPU may host, and a first assignment that respects it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moeopt.problem import IntArray, ProblemData

BoolArray = npt.NDArray[np.bool_]


def room(data: ProblemData) -> IntArray:
    """Experts (of all layers) that each GPU's memory holds, shape (G,)."""
    if data.free_mib is None:
        assert data.slots is not None
        return np.full(data.gpus, data.slots * data.layers, dtype=np.int64)
    return np.array([math.floor(free / data.expert_mib) for free in data.free_mib.tolist()])


def slots(data: ProblemData) -> int:
    """Experts of one layer that a GPU may host."""
    return data.experts if data.slots is None else data.slots


def spread(data: ProblemData) -> BoolArray | None:
    """One copy of every expert, each layer spread evenly over the GPUs with room.

    Returns
    -------
    bool array, shape (L, E, G), or None
        None if this simple rule finds no room (which proves nothing).
    """
    left, per_layer = room(data), slots(data)
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    for l in range(data.layers):
        count = np.zeros(data.gpus, dtype=np.int64)
        order = np.argsort(-data.load[l], kind="stable")
        for e in order.tolist():
            open_gpus = [g for g in range(data.gpus) if left[g] > 0 and count[g] < per_layer]
            if not open_gpus:
                return None
            g = min(open_gpus, key=lambda g: (count[g], -left[g], g))
            hosts[l, e, g] = True
            count[g] += 1
            left[g] -= 1
    return hosts
