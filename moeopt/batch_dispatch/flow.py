"""Whole amounts from experts to replicas, compiled: routing within rooms, and levelling.

Levelling is Newton's method on cuts: from a level that is surely needed, route; where routing
fails, the GPUs that can be reached are a cut, and the level rises to what the experts hosted only
inside it need. The last cut proves the level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.batch_dispatch.data import LayerBatch
from moeopt.problem import IntArray


@njit(cache=True)
def route(
    first: Any,
    gpu: Any,
    owner: Any,
    on_first: Any,
    on: Any,
    order: Any,
    is_open: Any,
    left: Any,
    sent: Any,
    free: Any,
    reached: Any,
) -> bool:
    """Send what is left of every expert to its open replicas within the GPUs' room, if possible.

    Parameters
    ----------
    first, gpu, owner, on_first, on, order : int arrays
        See :class:`LayerBatch`.
    is_open : bool array, shape (R,)
        Replicas that may be used.
    left : int array, shape (m,)
        Amount of each expert that is still to be sent; changed.
    sent : int array, shape (R,)
        Amount at each replica; changed, never above what fits.
    free : int array, shape (G,)
        Room left on each GPU; changed.
    reached : bool array, shape (G,)
        If routing fails: a cut. Its GPUs are full, and what they hold can go nowhere else.
    """
    gpus = len(free)
    to = np.empty(gpus, dtype=np.int64)  # replica that receives when a GPU is reached
    back = np.empty(gpus, dtype=np.int64)  # replica, elsewhere, that gives the same amount
    queue = np.empty(gpus, dtype=np.int64)
    tried = np.empty(len(left), dtype=np.bool_)
    for e in order:
        while left[e] > 0:
            best = -1
            for r in range(first[e], first[e + 1]):
                if is_open[r] and free[gpu[r]] > 0 and (best < 0 or free[gpu[r]] > free[gpu[best]]):
                    best = r
            if best < 0:
                break
            amount = min(left[e], free[gpu[best]])
            sent[best] += amount
            free[gpu[best]] -= amount
            left[e] -= amount
    for e in order:
        while left[e] > 0:
            reached[:] = False
            tried[:] = False
            tried[e] = True
            head, tail, end = 0, 0, -1
            for r in range(first[e], first[e + 1]):
                g = gpu[r]
                if is_open[r] and not reached[g]:
                    reached[g], to[g], back[g] = True, r, -1
                    queue[tail] = g
                    tail += 1
            while head < tail and end < 0:
                g = queue[head]
                head += 1
                if free[g] > 0:
                    end = g
                    break
                for at in range(on_first[g], on_first[g + 1]):
                    giver = on[at]
                    i = owner[giver]
                    if sent[giver] == 0 or tried[i]:
                        continue
                    tried[i] = True
                    for r in range(first[i], first[i + 1]):
                        h = gpu[r]
                        if is_open[r] and not reached[h]:
                            reached[h], to[h], back[h] = True, r, giver
                            queue[tail] = h
                            tail += 1
            if end < 0:
                return False
            amount = min(left[e], free[end])
            g = end
            while back[g] >= 0:
                amount = min(amount, sent[back[g]])
                g = gpu[back[g]]
            free[end] -= amount
            left[e] -= amount
            g = end
            while True:
                sent[to[g]] += amount
                if back[g] < 0:
                    break
                sent[back[g]] -= amount
                g = gpu[back[g]]
    return True


@njit(cache=True)
def _level(
    first: Any,
    gpu: Any,
    owner: Any,
    on_first: Any,
    on: Any,
    order: Any,
    amount: Any,
    gpus: int,
    sent: Any,
    cut: Any,
) -> int:
    """Least largest amount of a GPU; fills ``sent`` (R,) and the cut (G,) that proves it."""
    experts = len(amount)
    level = -(-amount.sum() // gpus)
    cut[:] = True
    for e in range(experts):
        copies = first[e + 1] - first[e]
        if -(-amount[e] // copies) > level:
            level = -(-amount[e] // copies)
            cut[:] = False
            for r in range(first[e], first[e + 1]):
                cut[gpu[r]] = True
    left, free = amount.copy(), np.full(gpus, level, dtype=np.int64)
    is_open, reached = np.ones(len(gpu), dtype=np.bool_), np.zeros(gpus, dtype=np.bool_)
    while not route(first, gpu, owner, on_first, on, order, is_open, left, sent, free, reached):
        inside, size = 0, 0
        for e in range(experts):
            within = True
            for r in range(first[e], first[e + 1]):
                within = within and reached[gpu[r]]
            if within:
                inside += amount[e]
        for g in range(gpus):
            if reached[g]:
                size += 1
        raised = -(-inside // size)
        free += raised - level
        level = raised
        cut[:] = reached
    return level


def level(batch: LayerBatch, amount: IntArray) -> tuple[int, IntArray, IntArray]:
    """Level whole amounts of the experts over the GPUs, exactly.

    Parameters
    ----------
    batch : LayerBatch
    amount : int array, shape (m,)
        Tokens, or 1 for each expert, or any whole weights below 2**62 together.

    Returns
    -------
    level : int
        Least largest amount of a GPU.
    sent : int array, shape (R,)
        Amount at each replica.
    cut : int array, shape (G,)
        1 for the GPUs of a set U: the experts hosted only inside U have more than
        ``(level - 1) |U|`` together. 0 for the others.
    """
    sent, cut = np.zeros(len(batch.gpu), dtype=np.int64), np.zeros(batch.gpus, dtype=np.bool_)
    if not len(amount):
        return 0, sent, cut.astype(np.int64)
    found = _level(
        batch.first,
        batch.gpu,
        batch.owner,
        *batch.on,
        batch.order,
        np.ascontiguousarray(amount, dtype=np.int64),
        batch.gpus,
        sent,
        cut,
    )
    return int(found), sent, cut.astype(np.int64)
