"""Compiled plans of the ``unit`` form: scenario times, and the change that a move makes.

A plan is a list of *cells*: ``content[c]`` is the expert in cell c of GPU ``gpu[c]``, or −1.
Experts of all layers are numbered through (``layer · E + e``), so that layers may share memory. Two
moves:

- *swap* the contents of two cells on different GPUs (one may be empty: a move);
- *replace* the content of a cell, empty or one of several copies, by a copy of another expert.

They keep the number of cells of every GPU, hence its memory. The change of a move is computed from
the scenarios that contain a touched expert, in O(1) each for single copies: the largest count of
a scenario follows from its old value and how many GPUs attain it. With replicas each scenario
keeps an optimal dispatch: where that does not use the lost copy and the time is already the least
possible, nothing changes; else the time is found anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from moeopt.heuristics.anneal_times import full_gpus, match, time_of_four
from moeopt.problem import FloatArray, IntArray

_ALL = np.uint64(2**64 - 1)
_ONE = np.uint64(1)
_NO_BITS = np.uint64(0)
_NO_GPU = -2  # never the value of ``served``


class Rows(NamedTuple):
    """What stays: scenarios of all layers; occurrences ``first[i]:first[i+1]`` of expert i."""

    first: IntArray  # (n + 1,)
    row: Any  # int32: scenario of each occurrence, ascending for each expert
    occurrence: Any  # int32 (S, k): occurrence of each member
    member: Any  # int32 (S, k): experts of each scenario, padded with −1
    bits: Any  # uint64 (S, words): the same as a set of e (not of layer · E + e)
    size: IntArray  # (S,)
    least: IntArray  # (S,): ceil(size / G), no time is below
    weight: FloatArray  # (S,)
    experts: int  # E: experts of one layer
    slots: int  # experts of one layer on one GPU


class Plan(NamedTuple):
    """What moves change."""

    content: Any  # int32 (cells,)
    gpu: Any  # int32 (cells,), constant
    cell: Any  # int32 (n, G): cell with a copy of the expert, or −1
    copies: IntArray  # (n,)
    mask: Any  # uint64 (n,): GPUs that host the expert (replicas)
    used: IntArray  # (L, G): experts of a layer on a GPU
    time: IntArray  # (S,)
    count: (
        Any  # int16 (S, G + 1): experts of a scenario on a GPU; GPUs at the largest (single copies)
    )
    served: Any  # int16 (occurrences,): GPU that serves it (replicas)
    late: Any  # bool (S,): whether the time is above the least (replicas)
    full: Any  # uint64 (S,): GPUs that serve as many experts as the time (replicas)


class Work(NamedTuple):
    """Scratch of one thread. Few arrays: numba counts references to every one it passes on."""

    mask: Any  # uint64 (max(k, 4),): GPUs of each expert of a scenario
    place: IntArray  # (max(k, 4),): GPU that serves it
    gpus: IntArray  # (3, G): load; expert that reached the GPU; queue of GPUs


# --- the change of a move ---------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _bit_of(rows: Any, i: int, j: int) -> Any:
    """Word and bit of ``rows.bits`` that tell whether a scenario of expert i contains j."""
    if j < 0 or i // rows.experts != j // rows.experts:
        return 0, np.uint64(0)
    e = j % rows.experts
    return e >> 6, _ONE << np.uint64(e & 63)


@njit(cache=True, nogil=True)
def _shift_change(rows: Any, plan: Any, i: int, g: int, h: int, j: int) -> float:
    """Change of the expected time by moving i from g to h, over scenarios without j."""
    total = 0.0
    if i < 0:
        return total
    row, bits, weight, time, count = rows.row, rows.bits, rows.weight, plan.time, plan.count
    tops = plan.cell.shape[1]
    word, bit = _bit_of(rows, i, j)
    for o in range(rows.first[i], rows.first[i + 1]):
        s = row[o]
        t = time[s]
        there = count[s, h] + 1
        falls = there < t and count[s, g] == t and count[s, tops] == 1
        if (there > t or falls) and bits[s, word] & bit == _NO_BITS:
            total += -weight[s] if falls else weight[s]
    return total


@njit(cache=True, nogil=True)
def _shift(rows: Any, plan: Any, i: int, g: int, h: int) -> None:
    if i < 0:
        return
    row, time, count, gpus = rows.row, plan.time, plan.count, plan.cell.shape[1]
    for o in range(rows.first[i], rows.first[i + 1]):
        s = row[o]
        count[s, g] -= 1
        count[s, h] += 1
        top, tops = 0, 0
        for x in range(gpus):
            n = count[s, x]
            if n > top:
                top, tops = n, 1
            elif n == top:
                tops += 1
        time[s] = top
        count[s, gpus] = tops


@njit(cache=True, nogil=True)
def _remask_change(
    rows: Any, plan: Any, i: int, mi: Any, lost_i: int, j: int, mj: Any, lost_j: int, work: Any
) -> float:
    """Change of the expected time if i has the GPUs mi and j the GPUs mj.

    A scenario at its least time does not change if no lost copy serves it, or if one of the new
    GPUs has room for the expert. Arrays are taken out of their tuples once: this is the innermost
    loop of the search.
    """
    first, row, occurrence, member = rows.first, rows.row, rows.occurrence, rows.member
    size, weight, bits = rows.size, rows.weight, rows.bits
    hosts, time, served, late, full = plan.mask, plan.time, plan.served, plan.late, plan.full
    masks, places, scratch, width = work.mask, work.place, work.gpus, member.shape[1]
    word_i, bit_i = _bit_of(rows, j, i) if i >= 0 and j >= 0 else (0, _NO_BITS)
    word_j, bit_j = _bit_of(rows, i, j) if i >= 0 and j >= 0 else (0, _NO_BITS)
    total = 0.0
    for turn in range(2):
        e, lost, new = (i, lost_i, mi) if turn == 0 else (j, lost_j, mj)
        word, bit = (word_j, bit_j) if turn == 0 else (word_i, bit_i)
        if e < 0:
            continue
        for o in range(first[e], first[e + 1]):
            s = row[o]
            if not late[s] and served[o] != lost:
                continue
            if (
                not late[s]
                and new & ~full[s] != _NO_BITS
                # The first turn looks again where the other expert may lose its GPU, too.
                and (turn == 1 or bits[s, word] & bit == _NO_BITS)
            ):
                continue
            if turn == 1 and bits[s, word] & bit != _NO_BITS:
                p = 0
                while member[s, p] != i:
                    p += 1
                if late[s] or served[occurrence[s, p]] == lost_i:
                    continue  # the first turn saw it
            if width <= 4:
                a = b = c = d = _ALL
                for p in range(size[s]):
                    x = member[s, p]
                    m = mi if x == i else mj if x == j else hosts[x]
                    a, b, c, d = b, c, d, m
                t = time_of_four(a, b, c, d)
            else:
                for p in range(size[s]):
                    x = member[s, p]
                    masks[p] = mi if x == i else mj if x == j else hosts[x]
                t = match(size[s], masks, places, scratch)
            total += weight[s] * (t - time[s])
    return total


@njit(cache=True, nogil=True)
def _remask(rows: Any, plan: Any, i: int, lost: int, work: Any) -> None:
    """Find dispatches again where i loses or gains a copy (``plan.mask`` has it already)."""
    if i < 0:
        return
    row, occurrence, member, size, least = (
        rows.row,
        rows.occurrence,
        rows.member,
        rows.size,
        rows.least,
    )
    hosts, time, served, late, full = plan.mask, plan.time, plan.served, plan.late, plan.full
    masks, places, scratch = work.mask, work.place, work.gpus
    for o in range(rows.first[i], rows.first[i + 1]):
        s = row[o]
        if late[s] or served[o] == lost:
            for p in range(size[s]):
                masks[p] = hosts[member[s, p]]
            time[s] = match(size[s], masks, places, scratch)
            late[s] = time[s] > least[s]
            full[s] = full_gpus(size[s], time[s], places, scratch)
            for p in range(size[s]):
                served[occurrence[s, p]] = places[p]


@njit(cache=True, nogil=True)
def set_up(rows: Any, plan: Any, replicas: bool, work: Any) -> float:
    """Fill times and dispatches from ``content``; return the expected time."""
    gpus = plan.cell.shape[1]
    plan.cell[:] = -1
    plan.copies[:] = 0
    plan.mask[:] = np.uint64(0)
    plan.used[:] = 0
    for c in range(len(plan.content)):
        content = plan.content[c]
        plan.content[c] = -1
        _put(rows, plan, c, content)
    value = 0.0
    plan.count[:] = 0
    for s in range(len(rows.weight)):
        if replicas:
            for p in range(rows.size[s]):
                work.mask[p] = plan.mask[rows.member[s, p]]
            plan.time[s] = match(rows.size[s], work.mask, work.place, work.gpus)
            plan.late[s] = plan.time[s] > rows.least[s]
            plan.full[s] = full_gpus(rows.size[s], plan.time[s], work.place, work.gpus)
            for p in range(rows.size[s]):
                plan.served[rows.occurrence[s, p]] = work.place[p]
        else:
            for p in range(rows.size[s]):
                g = 0
                while plan.cell[rows.member[s, p], g] < 0:
                    g += 1
                plan.count[s, g] += 1
            top = plan.count[s, :gpus].max()
            plan.time[s] = top
            plan.count[s, gpus] = (plan.count[s, :gpus] == top).sum()
        value += rows.weight[s] * plan.time[s]
    return value


# --- moves ------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _put(rows: Any, plan: Any, c: int, i: int) -> None:
    g, old = plan.gpu[c], plan.content[c]
    bit = _ONE << np.uint64(g & 63)
    if old >= 0:
        plan.cell[old, g] = -1
        plan.copies[old] -= 1
        plan.mask[old] &= ~bit
        plan.used[old // rows.experts, g] -= 1
    plan.content[c] = i
    if i >= 0:
        plan.cell[i, g] = c
        plan.copies[i] += 1
        plan.mask[i] |= bit
        plan.used[i // rows.experts, g] += 1


@njit(cache=True, nogil=True)
def can_swap(rows: Any, plan: Any, c: int, d: int) -> bool:
    """Whether cells c and d may exchange their contents."""
    i, j, g, h = plan.content[c], plan.content[d], plan.gpu[c], plan.gpu[d]
    if g == h or i == j or (i >= 0 and plan.cell[i, h] >= 0) or (j >= 0 and plan.cell[j, g] >= 0):
        return False
    li = i // rows.experts if i >= 0 else -1
    lj = j // rows.experts if j >= 0 else -1
    if li == lj:
        return True
    return (li < 0 or plan.used[li, h] < rows.slots) and (lj < 0 or plan.used[lj, g] < rows.slots)


@njit(cache=True, nogil=True)
def can_replace(rows: Any, plan: Any, c: int, j: int) -> bool:
    """Whether a copy of expert j may take cell c."""
    i, g = plan.content[c], plan.gpu[c]
    if plan.cell[j, g] >= 0 or (i >= 0 and plan.copies[i] < 2):
        return False
    lj = j // rows.experts
    return (i >= 0 and i // rows.experts == lj) or plan.used[lj, g] < rows.slots


@njit(cache=True, nogil=True)
def change(rows: Any, plan: Any, replicas: bool, c: int, d: int, j: int, work: Any) -> Any:
    """Change of the expected time by swapping cells c and d, or by j in cell c (d < 0)."""
    i, g = plan.content[c], plan.gpu[c]
    if not replicas:
        h, other = plan.gpu[d], plan.content[d]
        return _shift_change(rows, plan, i, g, h, other) + _shift_change(rows, plan, other, h, g, i)
    bit_g = _ONE << np.uint64(g)
    none = _NO_BITS
    if d < 0:
        mi = plan.mask[i] & ~bit_g if i >= 0 else none
        return _remask_change(rows, plan, i, mi, g, j, plan.mask[j] | bit_g, _NO_GPU, work)
    h, other = plan.gpu[d], plan.content[d]
    bit_h = _ONE << np.uint64(h)
    mi = (plan.mask[i] & ~bit_g) | bit_h if i >= 0 else none
    mj = (plan.mask[other] & ~bit_h) | bit_g if other >= 0 else none
    return _remask_change(rows, plan, i, mi, g, other, mj, h, work)


@njit(cache=True, nogil=True)
def apply(rows: Any, plan: Any, replicas: bool, c: int, d: int, j: int, work: Any) -> None:
    """Make the move of :func:`change`."""
    i, g = plan.content[c], plan.gpu[c]
    if d < 0:
        _put(rows, plan, c, j)
        _remask(rows, plan, i, g, work)
        _remask(rows, plan, j, _NO_GPU, work)
        return
    h, other = plan.gpu[d], plan.content[d]
    _put(rows, plan, c, -1)
    _put(rows, plan, d, i)
    _put(rows, plan, c, other)
    if replicas:
        _remask(rows, plan, i, g, work)
        _remask(rows, plan, other, h, work)
    else:
        _shift(rows, plan, i, g, h)
        _shift(rows, plan, other, h, g)
