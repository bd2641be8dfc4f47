"""Compiled time of one scenario in the ``unit`` form, from the masks of the GPUs of its experts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

_ONE = np.uint64(1)
_NO_BITS = np.uint64(0)
#: Lines of the scratch array of GPUs: load; expert that reached the GPU; queue of GPUs.
LOAD, VIA, QUEUE = 0, 1, 2


# Typed as any object: called as functions of one number, which only numba knows.
@intrinsic
def _bit_count(typingctx: Any, value: Any) -> Any:
    """Number of bits set."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), code


@intrinsic
def _trailing_zeros(typingctx: Any, value: Any) -> Any:
    """Number of the lowest bit set of a number that is not 0."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.int64(types.uint64), code


bit_count: Any = _bit_count
lowest_bit: Any = _trailing_zeros


# --- the time of one scenario -----------------------------------------------------------------


@njit(cache=True, nogil=True)
def time_of_four(a: Any, b: Any, c: Any, d: Any) -> int:
    """Time of at most four experts from their masks of GPUs (all ones: no expert).

    Hall: T > t iff some experts A have more than t·|N(A)| members. For |A| ≤ 4 these are the tests
    below; a mask of all ones has more GPUs than there are experts and never violates.
    """
    ab, cd = a | b, c | d
    every = ab | cd
    if bit_count(every) == 1:
        return 4
    abc, abd, acd, bcd = ab | c, ab | d, a | cd, b | cd
    fewest = min(
        min(bit_count(abc), bit_count(abd)),
        min(bit_count(acd), bit_count(bcd)),
    )
    if fewest == 1:
        return 3
    if fewest == 2 or bit_count(every) <= 3:
        return 2
    pairs = min(
        min(min(bit_count(ab), bit_count(cd)), min(bit_count(a | c), bit_count(b | d))),
        min(bit_count(a | d), bit_count(b | c)),
    )
    return 2 if pairs == 1 else 1


@njit(cache=True, nogil=True)
def match(size: int, mask: Any, place: Any, scratch: Any) -> int:
    """Time of ``size`` experts on the GPUs ``mask``; ``place`` becomes a dispatch that attains it.

    Augmenting paths with capacity t, t raised where there is none: then the experts reached have
    more members than t·(their GPUs), so T > t.
    """
    gpus = scratch.shape[1]
    union = _NO_BITS
    for x in range(size):
        union |= mask[x]
        place[x] = -1
    t = (size + bit_count(union) - 1) // bit_count(union)
    for g in range(gpus):
        scratch[LOAD, g] = 0
    free = union  # GPUs with less than t
    for x in range(size):
        if mask[x] & free == _NO_BITS:
            while not _augment(x, size, t, mask, place, scratch):
                t += 1
            free = _NO_BITS
            for g in range(gpus):
                if scratch[LOAD, g] < t:
                    free |= _ONE << np.uint64(g)
        else:
            g = lowest_bit(mask[x] & free)
            place[x] = g
            scratch[LOAD, g] += 1
            if scratch[LOAD, g] == t:
                free &= ~(_ONE << np.uint64(g))
    return t


@njit(cache=True, nogil=True)
def full_gpus(size: int, t: int, place: Any, scratch: Any) -> Any:
    """GPUs that have ``t`` experts after :func:`match`."""
    full = _NO_BITS
    for x in range(size):
        if scratch[LOAD, place[x]] >= t:
            full |= _ONE << np.uint64(place[x])
    return full


@njit(cache=True, nogil=True)
def _augment(x: int, size: int, t: int, mask: Any, place: Any, scratch: Any) -> bool:
    reached = _NO_BITS
    head, tail = 0, 0
    y = x
    g, ahead = -1, size  # experts on g from number ``ahead`` on are still to be looked at
    while True:
        new = mask[y] & ~reached
        reached |= new
        while new:
            h = lowest_bit(new)
            new &= new - _ONE
            scratch[VIA, h] = y
            if scratch[LOAD, h] < t:
                scratch[LOAD, h] += 1
                while True:
                    y = scratch[VIA, h]
                    before = place[y]
                    place[y] = h
                    if before < 0:
                        return True
                    h = before
            scratch[QUEUE, tail] = h
            tail += 1
        y = -1
        while y < 0:
            while ahead < size and place[ahead] != g:
                ahead += 1
            if ahead < size:
                y = ahead
                ahead += 1
            elif head == tail:
                return False
            else:
                g = scratch[QUEUE, head]
                head += 1
                ahead = 0
