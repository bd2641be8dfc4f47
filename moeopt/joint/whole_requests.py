"""Whole requests on GPUs: how large the largest cache is at least, and how to make it small.

What a GPU caches is a sum of whole requests. Sums that are possible at all are the bits of one
large number, class by class (subset sums): it tells the least one above the mean, and the best way
to share the requests of two GPUs.
"""

from __future__ import annotations

import numpy as np

from moeopt.problem import IntArray

#: Units of cache up to which sums are counted.
_UNITS_LIMIT = 4_000_000
#: Random exchanges in a row that lead to nothing.
_KICKS = 60


def largest_cache(counts: IntArray, kv: IntArray, gpus: int) -> int:
    """Bytes of KV cache that some GPU holds at least, whole requests of classes (C,) dealt out.

    Of the jG + 1 largest requests some GPU holds j + 1, at least the smallest of these. And its
    cache is that of whole requests: the least such sum that is not below the mean.
    """
    order = np.argsort(-kv, kind="stable")
    sizes = np.repeat(kv[order], counts[order])
    before = np.concatenate(([0], np.cumsum(sizes)))
    j = np.arange((len(sizes) - 1) // gpus + 1)
    together = int((before[j * gpus + 1] - before[j * (gpus - 1)]).max())
    return least_sum(counts, kv, max(together, -(-int(before[-1]) // gpus)))


def least_sum(counts: IntArray, kv: IntArray, least: int) -> int:
    """Least number of bytes, ``least`` or more, that some of these requests cache together.

    Parameters
    ----------
    counts, kv : int arrays, shape (C,)
        Requests of each class, and bytes of one.
    least : int
        At most what all of them cache.
    """
    if least <= 0 or not kv[counts > 0].any():
        return max(0, least)
    unit = int(np.gcd.reduce(kv[counts > 0]))
    first = -(-least // unit)
    sums = _sums(counts, kv // unit, first + int(kv.max()) // unit)[-1]
    return unit * (first + _first_bit(sums >> first))


def level_caches(z: IntArray, left: IntArray, kv: IntArray, *, seed: int = 0) -> None:
    """Shrink the largest cache: two GPUs at a time share their requests anew; in place.

    Parameters
    ----------
    z : int array, shape (C, G)
        Requests of each class on each GPU.
    left : int array, shape (G,)
        Bytes that each may cache; respected, if it is at the start.
    kv : int array, shape (C,)
        Bytes of a request.
    """
    counts, used = z.sum(axis=1), kv @ z
    if not used.any() or len(used) < 2:
        return
    unit = int(np.gcd.reduce(kv[counts > 0]))
    if 2 * int(used.max()) // unit > _UNITS_LIMIT:
        return
    units, room = kv // unit, left // unit
    level = largest_cache(counts, kv, len(used)) // unit
    used = units @ z
    random = np.random.default_rng(seed)
    failed = 0
    while used.max() > level and failed < _KICKS:
        g = int(used.argmax())
        for h in np.argsort(used, kind="stable").tolist():
            if h != g and used[h] < used[g] - 1 and _share(z, used, room, units, g, h, level):
                failed = 0
                break
        else:  # other requests on two GPUs that are not the fullest
            others = np.flatnonzero(used < used[g])
            failed += 1
            if len(others) < 2:
                return
            one, two = random.choice(others, 2, replace=False).tolist()
            _share(z, used, room, units, one, two, level, random)


def _share(
    z: IntArray, used: IntArray, room: IntArray, units: IntArray, g: int, h: int, level: int,
    random: np.random.Generator | None = None,
) -> bool:  # fmt: skip
    """Share the requests of two GPUs so that the fuller one holds less; False if that fails.

    With ``random`` any way is taken that leaves neither of them fuller than the fuller one was.
    """
    together = z[:, g] + z[:, h]
    total = int(used[g] + used[h])
    fuller = int(max(used[g], used[h]))
    most = min(max(fuller, level) if random is not None else fuller - 1, int(room[g]))
    least = max(-(-total // 2), total - int(room[h]))
    if least > most:
        return False
    sums = _sums(together, units, most + 1)
    start = least if random is None else int(random.integers(least, most + 1))
    found = start + _first_bit(sums[-1] >> start)
    if found < start or found > most:
        return False
    amount = found
    for c in range(len(units) - 1, -1, -1):
        ways = range(int(together[c]) + 1)
        if random is not None:
            ways = range(int(together[c]), -1, -1) if random.integers(2) else ways
        take = next(
            k for k in ways if amount >= k * units[c] and sums[c] >> int(amount - k * units[c]) & 1
        )
        z[c, g], z[c, h] = take, together[c] - take
        amount -= int(take * units[c])
    used[g], used[h] = found, total - found
    return True


def _sums(counts: IntArray, units: IntArray, end: int) -> list[int]:
    """Sums below ``end`` of the first 0, 1, … classes; bit s: some of the requests make s units."""
    within, sums = (1 << end) - 1, [1]
    for count, unit in zip(counts.tolist(), units.tolist(), strict=True):
        made, left, step = sums[-1], int(count), 1
        while left:
            step = min(step, left)  # 1, 2, 4, … and the rest make every number up to the count
            made = (made | made << (step * unit)) & within
            left, step = left - step, 2 * step
        sums.append(made)
    return sums


def _first_bit(bits: int) -> int:
    """Position of the lowest bit; -1 if there is none."""
    return (bits & -bits).bit_length() - 1
