"""Compiled search for one layer with two slots on every GPU: only the counts are annealed.

For given replica counts, pairing the largest piece with the smallest, the next with the next, and
so on, minimises the largest load: exchange the partners of two pairs that are not so, and neither
sum exceeds the larger of the old ones. So the counts are the plan. A piece that would be paired
with one of the same expert lies in the middle of the order and exchanges its partner with a
neighbour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.balance.state import below


@njit(cache=True, nogil=True)
def _order(weight: Any, count: Any) -> Any:
    """Pieces, falling, and their experts: shape (2G,) each."""
    by_size = np.argsort(-(weight / count))
    total = count.sum()
    size = np.zeros(total)
    expert = np.zeros(total, dtype=np.int64)
    p = 0
    for e in by_size:
        for _ in range(count[e]):
            size[p], expert[p] = weight[e] / count[e], e
            p += 1
    return size, expert


@njit(cache=True, nogil=True)
def _merge(size: Any, old: Any, new: Any, olds: Any, news: Any, out: Any) -> None:
    """Copy the falling ``size`` to ``out`` with two runs of pieces taken out and two put in.

    ``old``: lengths of the runs that leave (their sizes in ``olds``), ``new`` and ``news``: those
    that come, falling.
    """
    total = len(size)
    leave0, leave1 = old[0], old[1]
    come = 0
    left = new[0]
    k = 0
    for i in range(total):
        s = size[i]
        if s == olds[0] and leave0 > 0:
            leave0 -= 1
            continue
        if s == olds[1] and leave1 > 0:
            leave1 -= 1
            continue
        while come < 2 and news[come] >= s:
            if left > 0:
                out[k] = news[come]
                k += 1
                left -= 1
            else:
                come += 1
                if come < 2:
                    left = new[come]
        out[k] = s
        k += 1
    while come < 2:
        if left > 0:
            out[k] = news[come]
            k += 1
            left -= 1
        else:
            come += 1
            if come < 2:
                left = new[come]


@njit(cache=True, nogil=True)
def _cost(size: Any, target: float) -> Any:
    """Σ max(0, pair − target)², and the largest pair."""
    total = len(size)
    cost, largest = 0.0, 0.0
    for i in range(total // 2):
        pair = size[i] + size[total - 1 - i]
        excess = max(0.0, pair - target)
        cost += excess * excess
        largest = max(largest, pair)
    return cost, largest


@njit(cache=True, nogil=True)
def anneal_counts(
    weight: Any,
    count: Any,
    most: int,
    target: float,
    steps: int,
    hot: float,
    cold: float,
    random: np.random.Generator,
) -> Any:
    """Anneal the counts (E,) in place to the best met; return (its largest pair, proposals made).

    No count exceeds ``most``; a plan within ``target`` ends the search.
    """
    experts = len(weight)
    size, _ = _order(weight, count)
    other = np.empty_like(size)
    cost, best_value = _cost(size, target)
    best = count.copy()
    old, new = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    olds, news = np.zeros(2), np.zeros(2)
    temperature = hot
    factor = (cold / hot) ** (1.0 / max(1, steps))
    made = steps
    for step in range(steps):
        temperature *= factor
        if best_value <= target:
            made = step
            break
        a, b = below(random, experts), below(random, experts)
        if a == b or count[a] < 2 or count[b] >= most:
            continue
        old[0], old[1] = count[a], count[b]
        olds[0], olds[1] = weight[a] / count[a], weight[b] / count[b]
        sa, sb = weight[a] / (count[a] - 1), weight[b] / (count[b] + 1)
        if sa >= sb:
            new[0], new[1], news[0], news[1] = count[a] - 1, count[b] + 1, sa, sb
        else:
            new[0], new[1], news[0], news[1] = count[b] + 1, count[a] - 1, sb, sa
        _merge(size, old, new, olds, news, other)
        after, largest = _cost(other, target)
        delta = after - cost
        if delta <= 0.0 or delta < -temperature * np.log(1.0 - random.random()):
            count[a] -= 1
            count[b] += 1
            size, other = other, size
            cost = after
            if largest < best_value:
                best_value = largest
                best[:] = count
    count[:] = best
    return best_value, made


@njit(cache=True, nogil=True)
def pair_up(weight: Any, count: Any, content: Any) -> bool:
    """Write the plan of these counts to ``content`` (2G,); False if it has a duplicate."""
    _, expert = _order(weight, count)
    gpus = len(content) // 2
    partner = expert[::-1][:gpus].copy()
    for g in range(gpus - 1, -1, -1):
        if partner[g] != expert[g]:
            continue
        for h in range(gpus - 1, -1, -1):
            if partner[h] != expert[g] and partner[g] != expert[h]:
                partner[g], partner[h] = partner[h], partner[g]
                break
        else:
            return False
    content[::2] = expert[:gpus]
    content[1::2] = partner
    return True
