"""Compiled search over the experts that each of four GPUs lacks: :mod:`.pair_search_gpus`.

A GPU is the set D of experts that it does *not* host, one bit each; all have the same number.
Tables over all 2**E sets are sums over subsets (zeta transforms) of whole numbers. Intermediate
sums may wrap around in 32 bits, which is harmless: the final ones fit. Inequalities: docs/bounds/
pair_search.md, "GPU by GPU".
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Places of the array ``control``.
STOP, ERROR, NODES = 0, 1, 2
#: Polyak steps on the prices of experts that two or more GPUs must not all lack.
STEPS = 60
NONE = 2**30


@njit(cache=True, nogil=True)
def sum_subsets(table):
    """Replace ``table[D]`` by the sum over the subsets of D; at least 3 experts."""
    count = len(table)
    for x in range(0, count, 8):  # three experts at once, without a loop of length 1, 2, 4
        a0, a1, a2, a3 = table[x], table[x + 1], table[x + 2], table[x + 3]
        a4, a5, a6, a7 = table[x + 4], table[x + 5], table[x + 6], table[x + 7]
        a1, a3, a5, a7 = a0 + a1, a2 + a3, a4 + a5, a6 + a7
        a2, a3, a6, a7 = a0 + a2, a1 + a3, a4 + a6, a5 + a7
        table[x + 1], table[x + 2], table[x + 3] = a1, a2, a3
        table[x + 4], table[x + 5], table[x + 6], table[x + 7] = a0 + a4, a1 + a5, a2 + a6, a3 + a7
    bit = 8
    while bit < count:
        for x in range(0, count, 2 * bit):
            low = table[x : x + bit]
            high = table[x + bit : x + 2 * bit]
            for k in range(bit):
                high[k] += low[k]
        bit *= 2


@njit(cache=True, nogil=True)
def _sum_within(table, free):
    """The same for the subsets of ``free`` alone."""
    bit = 1
    while bit <= free:
        if free & bit:
            x = free
            while x > 0:
                if x & bit:
                    table[x] += table[x ^ bit]
                x = (x - 1) & free
        bit *= 2


@njit(cache=True, nogil=True)
def charge(first, second, free, sets, weight, excess, moebius, shared, cost, over):
    """Fill the tables of a node whose first GPUs lack given experts.

    Parameters
    ----------
    first, second : uint8 arrays, shape (S,)
        Which members of each set GPUs 1 and 2 lack (0: not fixed, hosts all).
    free : experts that some of these GPUs host
    cost : filled; ``cost[D]``: excess that another GPU lacking D adds, all others hosting all
    over : filled within ``free``; ``over[I]``: weight that two GPUs both lacking I charge twice

    Returns
    -------
    int
        Excess where all other GPUs host everything.
    """
    cost[:] = 0
    x = free
    while True:
        over[x] = 0
        if x == 0:
            break
        x = (x - 1) & free
    known = np.int64(0)
    for s in range(len(weight)):
        a, b, w = first[s], second[s], weight[s]
        known += np.int64(w) * excess[a, b, 0, 0]
        if shared[a, b]:
            over[sets[s, 15]] += w
        for r in range(1, 16):
            factor = moebius[a, b, r]
            if factor != 0:
                cost[sets[s, r]] += w * factor
    sum_subsets(cost)
    _sum_within(over, free)
    return known


@njit(cache=True, nogil=True)
def fill_losses(over, free, lacked, size, thirds, loss):
    """``loss[D]``, D within ``free``: the most that a pair lacking I within D is overcharged.

    Overlap minus ``thirds``/3 of what sets with three experts in I and one hosted by both pay. With
    |I| known, so is the number of experts that both host; the cheapest ones count.
    """
    experts = 0
    while 1 << experts < len(size):
        experts += 1
    gains = np.zeros(experts, np.int64)
    x = free
    while True:
        worst = np.int64(0)
        both = experts - 2 * lacked + size[x]
        if over[x] > 0 and both >= 0 and size[x] <= lacked:
            count = 0
            for e in range(experts):
                if not x >> e & 1:
                    gains[count] = over[x | 1 << e] - over[x] if free >> e & 1 else 0
                    count += 1
            worst = np.int64(over[x])
            total = np.int64(0)
            for z in range(both):
                least = z
                for y in range(z + 1, count):
                    if gains[y] < gains[least]:
                        least = y
                gains[z], gains[least] = gains[least], gains[z]
                total += gains[z]
                worst = max(over[x] - total * thirds // 3, np.int64(0))
                if worst == 0:
                    break
        loss[x] = worst
        if x == 0:
            break
        x = (x - 1) & free
    bit = 1
    while bit <= free:
        if free & bit:
            x = free
            while x > 0:
                if x & bit:
                    loss[x] = max(loss[x], loss[x ^ bit])
                x = (x - 1) & free
        bit *= 2


@njit(cache=True, nogil=True)
def _price_tables(price, low, high):
    for x in range(256):
        low[x] = 0
        high[x] = 0
        for e in range(len(price)):
            if e < 8 and x >> e & 1:
                low[x] += price[e]
            elif e >= 8 and x >> (e - 8) & 1:
                high[x] += price[e]


@njit(cache=True, nogil=True)
def fill_reduced(cost, columns, limited, count, target, steps, reduced):
    """Cost of each column plus prices of its experts; return what prices give back.

    ``count`` GPUs are left and must not all lack an expert of ``limited``. So for prices >= 0 the
    cost of any ``count`` columns is at least the sum of their reduced costs minus the value
    returned. Projected subgradient steps with Polyak's length; prices are whole.
    """
    experts = 0
    while 1 << experts < len(cost):
        experts += 1
    low, high = np.zeros(256, np.int64), np.zeros(256, np.int64)
    price, best_price = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    exact = np.zeros(experts)
    best = -(np.int64(2) ** 62)
    damping = 1.0
    for step in range(steps + 1):
        for e in range(experts):
            price[e] = np.int64(exact[e])
        _price_tables(price, low, high)
        least = np.int64(2) ** 62
        at = np.int64(0)
        for column in columns:
            value = cost[column] + low[column & 255] + high[column >> 8]
            if value < least:
                least = value
                at = column
        bound = count * least - (count - 1) * price.sum()
        if bound > best:
            best = bound
            best_price[:] = price
        else:
            damping *= 0.93
        norm = 0
        for e in range(experts):
            slope = count * (at >> e & 1) - (count - 1)
            if limited >> e & 1 and (slope > 0 or price[e] > 0):
                norm += slope * slope
        if bound >= target or step == steps or norm == 0:
            break
        length = damping * 0.5 * (target - bound) / norm
        for e in range(experts):
            if limited >> e & 1:
                slope = count * (at >> e & 1) - (count - 1)
                exact[e] = min(max(0.0, exact[e] + length * slope), float(NONE))
    _price_tables(best_price, low, high)
    for k in range(len(columns)):
        reduced[k] = cost[columns[k]] + low[columns[k] & 255] + high[columns[k] >> 8]
    return (count - 1) * best_price.sum()


@njit(cache=True, nogil=True)
def _last_two(
    one, two, columns, row, patterns, sets, weight, excess, moebius, shared, size, lacked,
    cost, over, loss, position, value, best, target, found, control,
):  # fmt: skip
    """Try every pair of ``columns`` as GPUs 3 and 4."""
    control[NODES] += 1
    first, second = patterns[row[one]], patterns[row[two]]
    both = one & two
    free = (len(size) - 1) & ~both
    known = charge(first, second, free, sets, weight, excess, moebius, shared, cost, over)
    fill_losses(over, free, lacked, size, 3, loss)
    # An expert that GPUs 1 and 2 lack is on GPU 3 or 4: the best partner for every set of them.
    full = (1 << size[both]) - 1
    best[: full + 1] = NONE
    for k in range(len(columns)):
        column = columns[k]
        place, z, x = 0, 0, both
        while x > 0:
            lowest = x & -x
            if column & lowest:
                place |= 1 << z
            z += 1
            x ^= lowest
        position[k] = place
        value[k] = 2 * cost[column] - loss[column & free]
        best[place] = min(best[place], value[k])
    for z in range(size[both]):
        for place in range(full + 1):
            if place >> z & 1:
                best[place] = min(best[place], best[place ^ 1 << z])
    room = 2 * (target[0] - known)
    kept = 0
    for k in range(len(columns)):
        if np.int64(value[k]) + best[full ^ position[k]] < room:
            position[kept] = columns[k]
            value[kept] = value[k]
            kept += 1
    order = np.argsort(value[:kept])
    for p in range(kept):
        three = position[order[p]]
        if 2 * np.int64(value[order[p]]) >= room:
            break
        for q in range(p, kept):
            four = position[order[q]]
            if np.int64(value[order[p]]) + value[order[q]] >= room:
                break
            common = three & four
            if common & both:
                continue
            bound = known + cost[three] + cost[four] - over[common]
            x = free & ~(three | four)
            while x > 0:
                lowest = x & -x
                bound += over[common | lowest] - over[common]
                x ^= lowest
            if bound >= target[0]:
                continue
            third, fourth = patterns[row[three]], patterns[row[four]]
            exact = np.int64(0)
            for s in range(len(weight)):
                exact += weight[s] * excess[first[s], second[s], third[s], fourth[s]]
            if bound > exact:
                control[ERROR] = 1
                return
            if exact < target[0]:
                target[0] = exact
                room = 2 * (target[0] - known)
                found[0], found[1], found[2], found[3] = one, two, three, four


@njit(cache=True, nogil=True)
def search_below(
    at, columns, row, patterns, sets, weight, excess, moebius, shared, size, lacked,
    target, found, control,
):  # fmt: skip
    """Search all plans whose first column, in the order of ``columns``, is ``columns[at]``.

    Parameters
    ----------
    row : place of a column in ``patterns``, shape (2**E,)
    patterns : uint8 array, shape (columns, S)
        Bits: the members of each set that are in the column.
    sets : array, shape (S, 16)
        The subsets of each set's members, as bits of experts.
    target : int array, shape (1,)
        Lowered to the value of each better plan, whose columns go to ``found``.

    Returns
    -------
    bool
        False if it was stopped.
    """
    tables = np.zeros((6, len(size)), np.int32)
    cost, over, loss, cost2, over2, best = (
        tables[0], tables[1], tables[2], tables[3], tables[4], tables[5],
    )  # fmt: skip
    one = columns[at]
    rest = columns[at:]
    first, nothing = patterns[row[one]], patterns[row[0]]
    known = charge(
        first, nothing, len(size) - 1, sets, weight, excess, moebius, shared, cost, over
    )  # fmt: skip
    fill_losses(over, len(size) - 1, lacked, size, 2, loss)
    for x in range(len(size)):
        cost[x] -= loss[x]  # three columns have three pairs: half of a pair's loss, twice
    reduced = np.zeros(len(rest), np.int64)
    known -= fill_reduced(cost, rest, one, 3, target[0] - known, STEPS, reduced)
    order = np.argsort(reduced, kind="mergesort")
    rest, reduced = rest[order], reduced[order]
    position, value = np.zeros(len(rest), np.int64), np.zeros(len(rest), np.int32)
    for k in range(len(rest)):
        if known + 3 * reduced[k] >= target[0]:
            break
        if control[STOP] != 0:
            return False
        end = np.searchsorted(reduced, target[0] - known - 2 * reduced[k])
        _last_two(
            one, rest[k], rest[k:end], row, patterns, sets, weight, excess, moebius, shared, size,
            lacked, cost2, over2, loss, position, value, best, target, found, control,
        )  # fmt: skip
        if control[ERROR] != 0:
            return False
    return True
