"""First plans of one layer: replicas where they help most, then the largest pieces first.

Source of both rules: DeepSeek's expert-parallelism load balancer, here without duplicates on a GPU
and for any number of slots. The counts minimise the largest load of a replica: any other counts
with as many replicas give some expert fewer, and that expert the load greedy saw before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def greedy_counts(weight: Any, replicas: int, most: int) -> Any:
    """Replicas of each expert, shape (E,): at most ``most``, ``replicas`` in all.

    Parameters
    ----------
    weight : float array, shape (E,)
    replicas : int
        At least E, at most ``E * most``.
    most : int
        The number of GPUs: more replicas of an expert would share one.
    """
    count = np.ones(len(weight), dtype=np.int64)
    for _ in range(replicas - len(weight)):
        best, at = -1.0, -1
        for e in range(len(weight)):
            if count[e] < most and weight[e] / count[e] > best:
                best, at = weight[e] / count[e], e
        count[at] += 1
    return count


@njit(cache=True, nogil=True)
def pack(weight: Any, count: Any, slots: Any, content: Any) -> None:
    """Write to ``content`` (P,) a plan with these counts: largest pieces first, emptiest GPU first.

    ``slots``: shape (G,), their sum is that of the counts; no count is above G, no slots above E.
    If the counts do not fit without duplicates, other counts are taken.
    """
    experts, gpus = len(weight), len(slots)
    first = np.zeros(gpus + 1, dtype=np.int64)
    first[1:] = np.cumsum(slots)
    used = np.zeros(gpus, dtype=np.int64)
    load = np.zeros(gpus)
    on = np.zeros((experts, gpus), dtype=np.bool_)
    order = np.argsort(-(weight / count))
    for e in order:
        piece = weight[e] / count[e]
        for _ in range(count[e]):
            at = -1
            for g in range(gpus):
                open_ = used[g] < slots[g] and not on[e, g]
                if open_ and (at < 0 or load[g] < load[at]):
                    at = g
            p = -1
            if at >= 0:
                p = first[at] + used[at]
                used[at] += 1
            else:
                p, at = _exchange(weight, count, content, on, load, first, used, slots, e)
            if p < 0:
                _cycle(experts, content)
                return
            content[p] = e
            on[e, at] = True
            load[at] += piece


@njit(cache=True, nogil=True)
def _exchange(
    weight: Any,
    count: Any,
    content: Any,
    on: Any,
    load: Any,
    first: Any,
    used: Any,
    slots: Any,
    e: int,
) -> Any:
    """Free a slot for expert e, which is on every GPU with room; return (slot, GPU) or (-1, -1)."""
    gpus = len(slots)
    for g in range(gpus):
        if used[g] == slots[g]:
            continue
        for h in range(gpus):
            if on[e, h]:
                continue
            for p in range(first[h], first[h] + used[h]):
                c = content[p]
                if not on[c, g]:
                    content[first[g] + used[g]] = c
                    used[g] += 1
                    on[c, h], on[c, g] = False, True
                    load[h] -= weight[c] / count[c]
                    load[g] += weight[c] / count[c]
                    return p, h
    return -1, -1


@njit(cache=True, nogil=True)
def _cycle(experts: int, content: Any) -> None:
    """Fill the slots with 0, 1, … again and again: no duplicates, nobody left out."""
    for p in range(len(content)):
        content[p] = p % experts
