"""Compiled depth-first search over masks of experts: :mod:`moeopt.proofs.pair_search`.

Experts come by popularity or, where that says little, by what their labels leave to the target.
GPUs are interchangeable: two neighbouring GPUs that host the same placed experts are tried in one
order only.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from moeopt.proofs.pair_search_kernel import (
    FAILED,
    build_child,
    drop_labels,
    raise_bound,
    restrict,
)

# Places of the array ``control``, shared by all threads.
STOP, ERROR, NODES, OVERFLOW = 0, 1, 2, 3
#: Polyak steps at a node.
STEPS = 10


@njit(cache=True, nogil=True)
def leaf_value(members, weight, masks, excess):
    """Exact excess of a plan, in units of weight / GRID. ``members``: padded with E (mask 0)."""
    total = np.int64(0)
    for s in range(len(weight)):
        row = members[s]
        total += weight[s] * excess[masks[row[0]], masks[row[1]], masks[row[2]], masks[row[3]]]
    return total


@njit(cache=True, nogil=True)
def _ordered(labels, same, gpus):
    """Labels that keep equal neighbouring GPUs in order (bit g of ``same``: g is like g - 1)."""
    result = 0
    for m in range(1, 1 << gpus):
        if labels >> m & 1:
            good = True
            for g in range(1, gpus):
                if same >> g & 1 and m >> g & 1 and not m >> (g - 1) & 1:
                    good = False
            if good:
                result |= 1 << m
    return result


@njit(cache=True, nogil=True)
def _choose(opened, allowed, same, gpus, floor, best, dynamic):
    """Return the most popular open expert, or the one whose labels leave least to the target."""
    least = np.inf
    chosen = opened[0]
    if not dynamic:
        return chosen
    for i in opened:
        labels = _ordered(allowed[i], same, gpus)
        score = 0.0
        for m in range(1, 1 << gpus):
            if labels >> m & 1:
                score += best - floor[i, m]
        if score < least:
            least = score
            chosen = i
    return chosen


@njit(cache=True, nogil=True)
def search(
    slots, gpus, prefix, limit, root, const, unary, pair,
    weight4, members, weight, excess, gain3, gain2, size,
    target, incumbent, control, frontier, dynamic,
):  # fmt: skip
    """Search below a prefix; every plan with a value below ``target[0]`` is found.

    Parameters
    ----------
    prefix : int array, shape (p, 2)
        Experts and masks of the first p levels.
    limit : int
        Nodes at this depth are written to ``frontier`` instead of searched.
    root : allowed labels at depth 0, shape (E,)
    const, unary, pair : tables with those of depth 0 filled in
    target : int array, shape (1,)
        Lowered to the value of each better plan, whose masks go to ``incumbent``.
    control : int array
        Stop (in), error, nodes, overflow (out).
    frontier : int array, shape (n, at least limit, 2)
    dynamic : bool
        Whether the next expert is chosen by the bounds of its labels.

    Returns
    -------
    int
        Nodes written to the frontier, -1 if stopped, or if ``frontier`` is too short.
    """
    experts = len(root)
    deepest = experts + 1
    masks = np.zeros(experts + 1, np.int64)
    allowed = np.zeros((deepest, experts), np.int64)
    floor = np.zeros((deepest, experts, 1 << gpus), np.int64)
    opened = np.zeros((deepest, experts), np.int64)
    room = np.zeros((deepest, gpus), np.int64)
    same = np.zeros(deepest, np.int64)
    spare = np.zeros(deepest, np.int64)
    placed = np.zeros(deepest, np.int64)  # the expert placed below each depth
    labels = np.zeros(deepest, np.int64)  # still to be tried
    allowed[0] = root
    opened[0] = np.arange(experts)
    room[0] = slots
    same[0] = (1 << gpus) - 2
    spare[0] = gpus * slots - experts
    written = 0
    depth = 0
    enter = True
    while True:
        if enter:
            enter = False
            control[NODES] += 1
            if control[STOP] != 0:
                return -1
            labels[depth] = 0
            best = target[0]
            here = opened[depth, : experts - depth]
            if depth == experts:
                value = leaf_value(members, weight, masks, excess)
                if const[depth] > value:
                    control[ERROR] = 1
                    return -1
                if value < target[0]:
                    target[0] = value
                    incumbent[:] = masks[:experts]
            elif restrict(here, allowed[depth], room[depth], spare[depth], size):
                bound = raise_bound(
                    depth, here, allowed[depth], room[depth], const, unary, pair, best, STEPS
                )
                if bound == FAILED:
                    control[OVERFLOW] = 1
                    return -1
                dropped = 0
                if bound < best:
                    dropped = drop_labels(
                        depth, here, allowed[depth], const, unary, pair, best, floor[depth]
                    )
                if dropped > 0 and not restrict(
                    here, allowed[depth], room[depth], spare[depth], size
                ):
                    dropped = -1
                if bound < best and dropped >= 0:
                    if depth < len(prefix):
                        placed[depth] = prefix[depth, 0]
                        labels[depth] = allowed[depth, placed[depth]] & (1 << prefix[depth, 1])
                    elif depth >= limit:
                        if written == len(frontier):
                            return -1
                        for z in range(depth):
                            frontier[written, z, 0] = placed[z]
                            frontier[written, z, 1] = masks[placed[z]]
                        written += 1
                    else:
                        n = _choose(
                            here, allowed[depth], same[depth], gpus, floor[depth], best, dynamic
                        )
                        placed[depth] = n
                        labels[depth] = _ordered(allowed[depth, n], same[depth], gpus)
        if labels[depth] == 0:
            if depth == 0:
                return written
            depth -= 1
            masks[placed[depth]] = 0
            continue
        n = placed[depth]
        mask = 0
        for m in range(1, 1 << gpus):
            if labels[depth] >> m & 1 and (mask == 0 or floor[depth, n, m] < floor[depth, n, mask]):
                mask = m
        labels[depth] &= ~(1 << mask)
        if floor[depth, n, mask] >= target[0]:
            continue
        masks[n] = mask
        count = 0
        for q in range(experts - depth):
            i = opened[depth, q]
            if i != n:
                opened[depth + 1, count] = i
                allowed[depth + 1, i] = allowed[depth, i]
                count += 1
        same[depth + 1] = 0
        for g in range(gpus):
            room[depth + 1, g] = room[depth, g] - (mask >> g & 1)
            if g > 0 and same[depth] >> g & 1 and (mask >> g & 1) == (mask >> (g - 1) & 1):
                same[depth + 1] |= 1 << g
        spare[depth + 1] = spare[depth] - (size[mask] - 1)
        build_child(
            depth, n, mask, opened[depth + 1, :count], const, unary, pair,
            weight4, masks, placed, gain3, gain2,
        )  # fmt: skip
        depth += 1
        enter = True
