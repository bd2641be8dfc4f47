"""Compiled steps at one node of the pair search: tables of a child, capacities, bound, filter.

All tables are whole numbers (int32; constants int64), so nothing here rounds. A node at depth d has
a constant ``const[d]``, unary tables ``unary[d, i, M]`` of its open experts and pair tables
``pair[d, i, j, M, M']`` (i < j). On every completion with exactly ``room[d, g]`` more copies on GPU
g, constant + unaries + pairs is at most the value, and equal at a leaf. Entries of labels that
are not in ``labels[d, i]`` (a bit set) mean nothing.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: Entries are capped here (a smaller entry is a valid one) and must stay above -BIG; with ``LIMIT``
#: on what a child adds and ``PRICE`` on prices no sum leaves 32 bits (docs/bounds/pair_search.md).
BIG = 2**28
LIMIT = 2**29
PRICE = 2**26
FAILED = -(2**62)


@njit(cache=True, nogil=True)
def build_child(
    depth, expert, mask, opened, const, unary, pair, weight4, masks, placed, gain3, gain2
):
    """Fill the tables of ``depth + 1``: ``expert`` gets ``mask``; ``opened``: the experts left."""
    experts = unary.shape[1]
    labels = unary.shape[2]
    by_mask = np.zeros(labels, np.int32)
    const[depth + 1] = const[depth] + unary[depth, expert, mask]
    for q in range(len(opened)):
        i = opened[q]
        for b in range(labels):
            edge = (
                pair[depth, expert, i, mask, b] if expert < i else pair[depth, i, expert, b, mask]
            )
            unary[depth + 1, i, b] = min(unary[depth, i, b] + edge, BIG)
        for r in range(q + 1, len(opened)):
            j = opened[r]
            by_mask[:] = 0
            for z in range(depth):
                by_mask[masks[placed[z]]] += weight4[placed[z], expert, i, j]
            by_mask[0] += weight4[experts, expert, i, j]
            still = np.int32(0)
            for z in range(len(opened)):
                if z != q and z != r:
                    still += weight4[opened[z], expert, i, j]
            source = pair[depth, i, j]
            target = pair[depth + 1, i, j]
            for a in range(1, labels):
                for b in range(labels):
                    target[a, b] = min(source[a, b], BIG) + still * gain3[mask, a, b]
            for x in range(labels):
                w = by_mask[x]
                if w > 0:
                    for a in range(1, labels):
                        for b in range(labels):
                            target[a, b] += w * gain2[x, mask, a, b]
            for a in range(1, labels):
                for b in range(labels):
                    target[a, b] = min(target[a, b], BIG)


@njit(cache=True, nogil=True)
def restrict(opened, allowed, room, spare, size):
    """Drop labels that no completion can have; False if an expert has none left.

    GPU g takes exactly ``room[g]`` more copies, and the open experts have ``spare`` copies beyond
    one each.
    """
    count = len(opened)
    gpus = len(room)
    must = 0
    full = 0
    for g in range(gpus):
        if room[g] > count:
            return False
        if room[g] == count:
            must |= 1 << g
        if room[g] == 0:
            full |= 1 << g
    least = spare - (count - 1) * (gpus - 1)
    for q in range(count):
        left = 0
        for m in range(1, len(size)):
            if (
                allowed[opened[q]] >> m & 1
                and m & full == 0
                and m & must == must
                and least <= size[m] - 1 <= spare
            ):
                left |= 1 << m
        if left == 0:
            return False
        allowed[opened[q]] = left
    return True


@njit(cache=True, nogil=True)
def _price(depth, opened, const, unary, room, g, price):
    """Charge every copy on GPU g: nothing changes on plans that fill the GPU exactly."""
    const[depth] -= price * room[g]
    for q in range(len(opened)):
        table = unary[depth, opened[q]]
        for m in range(len(table)):
            if m >> g & 1:
                table[m] += price


@njit(cache=True, nogil=True)
def _settle(depth, opened, allowed, const, unary, used):
    """Move the least of each unary table into the constant, the bound; count copies on GPUs."""
    used[:] = 0
    for q in range(len(opened)):
        table = unary[depth, opened[q]]
        ok = allowed[opened[q]]
        least = np.int32(BIG)
        at = 0
        for m in range(1, len(table)):
            if ok >> m & 1 and table[m] < least:
                least = table[m]
                at = m
        const[depth] += least
        for m in range(len(table)):
            # A smaller entry is a valid one.
            table[m] = min(table[m] - least, BIG) if ok >> m & 1 else 0
        for g in range(len(used)):
            used[g] += at >> g & 1
    return const[depth]


@njit(cache=True, nogil=True)
def _sweep(depth, opened, allowed, unary, pair):
    """One forward and one backward pass of sequential message passing (TRW-S), in place.

    Afterwards no allowed pair entry is negative. Returns the least entry met.
    """
    lowest = np.int32(0)
    count = len(opened)
    labels = unary.shape[2]
    share = np.zeros(labels, np.int32)
    least = np.zeros(labels, np.int32)
    for q in range(count):
        i = opened[q]
        table = unary[depth, i]
        after = count - 1 - q
        for b in range(labels):
            share[b] = table[b] // max(after, q, 1) if allowed[i] >> b & 1 else 0
        for b in range(labels):
            table[b] -= after * share[b]
        for r in range(q + 1, count):
            j = opened[r]
            edge = pair[depth, i, j]
            least[:] = BIG
            for a in range(1, labels):
                if allowed[i] >> a & 1:
                    give = share[a]
                    for b in range(labels):
                        value = edge[a, b] + give
                        edge[a, b] = value
                        least[b] = min(least[b], value)
            other = unary[depth, j]
            for b in range(labels):
                if not allowed[j] >> b & 1:
                    least[b] = 0
                other[b] = min(other[b] + least[b], BIG)
                lowest = min(lowest, other[b])
            for a in range(1, labels):
                if allowed[i] >> a & 1:
                    for b in range(labels):
                        edge[a, b] -= least[b]
    outside = np.zeros(labels, np.int32)
    for q in range(count - 1, 0, -1):
        j = opened[q]
        table = unary[depth, j]
        for b in range(labels):
            inside = allowed[j] >> b & 1
            outside[b] = 0 if inside else BIG
            share[b] = table[b] // max(q, count - 1 - q) if inside else 0
        for b in range(labels):
            table[b] -= q * share[b]
        for r in range(q):
            i = opened[r]
            edge = pair[depth, i, j]
            other = unary[depth, i]
            for a in range(1, labels):
                if allowed[i] >> a & 1:
                    low = np.int32(BIG)
                    for b in range(labels):
                        value = edge[a, b] + share[b]
                        edge[a, b] = value
                        if outside[b] == 0:
                            low = min(low, value)
                    for b in range(labels):
                        edge[a, b] -= low
                    other[a] = min(other[a] + low, BIG)
                    lowest = min(lowest, other[a])
    return lowest


@njit(cache=True, nogil=True)
def raise_bound(depth, opened, allowed, room, const, unary, pair, target, steps):
    """Move costs between the tables so that the bound grows; return it.

    The bound is the constant plus the least entry of every unary table; after :func:`_sweep` no
    pair table has a negative entry. One sweep, then up to ``steps`` Polyak steps on the price of
    each GPU; the best prices are kept. Returns ``FAILED`` if a number became too small for 32 bits.
    """
    gpus = len(room)
    used = np.zeros(gpus, np.int64)
    moved = np.zeros(gpus, np.int64)
    if _sweep(depth, opened, allowed, unary, pair) < -BIG:
        return FAILED
    best = np.int64(FAILED)
    damping = 1
    for step in range(steps + 1):
        bound = _settle(depth, opened, allowed, const, unary, used)
        if bound > best:
            best = bound
            moved[:] = 0
        else:
            damping *= 2
        if bound >= target or step == steps or damping > 2**20:
            break
        norm = 0
        for g in range(gpus):
            norm += (used[g] - room[g]) ** 2
        if norm == 0:
            break
        length = (target - bound) // (damping * norm) + 1
        for g in range(gpus):
            price = length * (used[g] - room[g])
            price = min(max(price, -PRICE - moved[g]), PRICE - moved[g])
            moved[g] += price
            if price != 0:
                _price(depth, opened, const, unary, room, g, price)
    for g in range(gpus):
        if moved[g] != 0:
            _price(depth, opened, const, unary, room, g, -moved[g])
    return _settle(depth, opened, allowed, const, unary, used)


@njit(cache=True, nogil=True)
def drop_labels(depth, opened, allowed, const, unary, pair, target, floor):
    """Bound of every label, ``floor[i, M]``; drop those that reach the target.

    With i on M fixed each other open expert pays at least the least of its unary + its pair with i.
    Needs settled unaries and swept pairs (least entries 0). Returns the number dropped, -1 if an
    expert has none left.
    """
    labels = unary.shape[2]
    dropped = 0
    for q in range(len(opened)):
        i = opened[q]
        for m in range(1, labels):
            if not allowed[i] >> m & 1:
                continue
            value = const[depth] + unary[depth, i, m]
            for r in range(len(opened)):
                j = opened[r]
                if j == i:
                    continue
                low = np.int32(BIG)
                for b in range(1, labels):
                    if allowed[j] >> b & 1:
                        edge = pair[depth, i, j, m, b] if i < j else pair[depth, j, i, b, m]
                        low = min(low, unary[depth, j, b] + edge)
                value += low
                if value >= target:
                    break
            floor[i, m] = value
            if value >= target:
                allowed[i] &= ~(1 << m)
                dropped += 1
        if allowed[i] == 0:
            return -1
    return dropped
