"""Replica counts that leave room beside the large pieces: another first plan of one layer.

The counts with the smallest largest piece may be bad ones: each large piece needs a GPU of its own,
filled up with the smallest pieces there are, and so many small ones there may not be. For given
counts and any K, either two of the K largest pieces share a GPU, or these K GPUs hold one each, and
in their other slots at least the smallest pieces. The least largest load that this allows is the
crowding of the counts. Extra replicas are exchanged until it is hardly above the mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

#: A crowding above the mean by less than this does not hinder a search.
_FREE = 1.001


@njit(cache=True, nogil=True)
def crowding(weight: Any, count: Any, room: Any) -> float:
    """Least largest load that the large pieces of these counts allow.

    Parameters
    ----------
    weight : float array, shape (E,)
    count : int array, shape (E,)
    room : int array, shape (G,)
        Slots of the first, the first two, … GPUs, those with the fewest slots first.
    """
    total = count.sum()
    size = np.empty(total)
    p = 0
    for e in range(len(weight)):
        size[p : p + count[e]] = weight[e] / count[e]
        p += count[e]
    size.sort()
    mean = weight.sum() / len(room)
    large, small, others, most = 0.0, 0.0, 0, 0.0
    for k in range(1, min(len(room), total) + 1):
        piece = size[total - k]
        if 2.0 * piece <= mean:
            break
        large += piece
        while others < room[k - 1] - k:
            small += size[others]
            others += 1
        most = max(most, min(2.0 * piece, (large + small) / k))
    return most


@njit(cache=True, nogil=True)
def make_room(weight: Any, count: Any, room: Any) -> None:
    """Exchange extra replicas in ``count`` (E,) while that lowers a crowding well above the mean.

    A replica goes to an expert with a large piece, or to the one with the smallest.
    """
    gpus = len(room)
    mean = weight.sum() / gpus
    now = crowding(weight, count, room)
    tiny = np.argmin(weight / count)
    while now > _FREE * mean:
        best, giver, taker = now, -1, -1
        for a in range(len(weight)):
            if count[a] < 2:
                continue
            count[a] -= 1
            for b in range(len(weight)):
                large = 2.0 * weight[b] > mean * count[b]
                if b == a or count[b] >= gpus or not (large or b == tiny):
                    continue
                count[b] += 1
                found = crowding(weight, count, room)
                count[b] -= 1
                if found < best:
                    best, giver, taker = found, a, b
            count[a] += 1
        if giver < 0:
            break
        count[giver] -= 1
        count[taker] += 1
        now = best
