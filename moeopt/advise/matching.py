"""GPUs of a plan renamed, layer by layer, so that as many copies as possible stay where they are.

GPUs of one node are alike: which of them takes which content is free. An assignment problem says
best: the copies that a GPU has already are what it saves.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from moeopt.balance.data import BoolArray


def renamed(before: BoolArray, after: BoolArray, nodes: int = 1) -> BoolArray:
    """Return ``after`` with the GPUs of each node in the order that moves the fewest copies.

    Parameters
    ----------
    before, after : bool array, shape (L, E, G)
        Equally many slots on every GPU of ``after``.
    nodes : int
        GPUs keep to their node; 1: all of them may be exchanged.
    """
    result = after.copy()
    each = after.shape[2] // nodes
    for was, now, row in zip(before, after, result, strict=True):
        for n in range(nodes):
            here = slice(n * each, (n + 1) * each)
            stays = was[:, here].T.astype(np.int64) @ now[:, here].astype(np.int64)
            old, new = linear_sum_assignment(stays, maximize=True)
            row[:, n * each + old] = now[:, n * each + new]
    return result


def moves(before: BoolArray, after: BoolArray) -> int:
    """Copies on GPUs that did not hold them before; hosts of shape (L, E, G)."""
    return int((after & ~before).sum())
