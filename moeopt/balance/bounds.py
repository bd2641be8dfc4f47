"""Lower bounds of one layer of ``balance``, in exact arithmetic.

Proofs are in docs/balance.md. All hold for both rules, and for GPUs with different slots.
"""

from __future__ import annotations

import heapq
from fractions import Fraction

import numpy as np

from moeopt.balance.data import IntArray


def mean_bound(whole: list[int], gpus: int) -> Fraction:
    """Return the load of all over the GPUs: no plan's largest load is below the mean."""
    return Fraction(sum(whole), gpus)


def piece_bound(whole: list[int], replicas: int, most: int) -> Fraction:
    """Return the smallest largest piece of so many replicas, at most ``most`` of an expert.

    Parameters
    ----------
    whole : list of int, E long
    replicas : int
        Slots in all, at least E.
    most : int
        GPUs that may hold an expert.
    """
    heap = [(Fraction(-load), e, 1) for e, load in enumerate(whole)]
    heapq.heapify(heap)
    for _ in range(replicas - len(whole)):
        _, e, count = heap[0]
        if count == most:  # no more replicas help the largest piece
            break
        heapq.heapreplace(heap, (Fraction(-whole[e], count + 1), e, count + 1))
    return -heap[0][0]


def component_bound(whole: list[int], slots: IntArray) -> Fraction:
    """Return the bound by the components that touch the heaviest experts.

    The heaviest j experts lie in components of the graph of experts and GPUs; with ``K`` GPUs
    these components have at least the ``K`` smallest numbers of slots, at most ``P − E`` of them
    hold extra replicas, and the other slots hold distinct experts. There are at most j components,
    so ``K`` is at most ``P − E + j``.

    Parameters
    ----------
    whole : list of int, E long
    slots : int array, shape (G,)
    """
    experts, gpus = len(whole), len(slots)
    extra = int(slots.sum()) - experts
    falling = sorted(whole, reverse=True)
    room = np.cumsum(np.sort(slots))
    part = np.array([load / max(1, sum(whole)) for load in falling])  # may not fit a double itself
    heavy = np.concatenate([[0.0], np.cumsum(part)])
    light = np.concatenate([[0.0], np.cumsum(part[::-1])])
    best, at = -1.0, 1
    for j in range(1, experts + 1):
        k = np.arange(1, min(gpus, extra + j) + 1)
        others = np.maximum(0, room[k - 1] - extra - j)
        fits = others <= experts - j
        value = ((heavy[j] + light[others[fits]]) / k[fits]).min() if fits.any() else -1.0
        if value > best:
            best, at = value, j
    return _component_value(falling, room, extra, at)


def _component_value(falling: list[int], room: IntArray, extra: int, j: int) -> Fraction:
    """Exact value of the bound for one j, which floating point only chose."""
    experts, gpus = len(falling), len(room)
    top = sum(falling[:j])
    values = []
    for k in range(1, min(gpus, extra + j) + 1):
        others = max(0, int(room[k - 1]) - extra - j)
        if others <= experts - j:
            values.append(Fraction(top + sum(falling[experts - others :]), k))
    return min(values)
