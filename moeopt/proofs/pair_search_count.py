"""Counting bound: what remains of ``replication`` when every scenario may choose its weight.

Of all sets of k experts, let n_t be how many take time >= t under a plan. It depends only on how
many experts have each mask. So E[T] >= min over these numbers of 1 + sum over t >= 2 of the n_t
smallest weights (0 for a set that is no scenario). Strong where weights are nearly equal.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.proofs.pair_search_terms import excess_table

Array = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def _least(experts, gpus, slots, top, times, sums, order, size, best, nodes_limit):
    """Depth-first over masks, experts in the order of their masks; -1 if it gave up.

    ``order``: the masks by size. GPUs are interchangeable, so the first expert has the first mask
    of its size.
    """
    masks = np.zeros(experts + 1, np.int64)
    # sets[d, t]: k-subsets of the first d experts that take at least t
    sets = np.zeros((experts + 1, top + 1), np.int64)
    room = np.zeros((experts + 1, gpus), np.int64)
    room[0] = slots
    spare = np.zeros(experts + 1, np.int64)
    spare[0] = gpus * slots - experts
    following = np.zeros(experts + 1, np.int64)
    depth = 0
    nodes = 0
    while depth >= 0:
        at = following[depth]
        if at == len(order):
            depth -= 1
            continue
        m = order[at]
        following[depth] = at + 1
        if size[m] - 1 > spare[depth]:
            continue
        fits = True
        for g in range(gpus):
            left = room[depth, g] - (m >> g & 1)
            if left < 0 or left > experts - depth - 1:
                fits = False
            room[depth + 1, g] = left
        if not fits or (depth == 0 and m != (1 << size[m]) - 1):
            continue
        nodes += 1
        if nodes > nodes_limit:
            return -1.0
        masks[depth] = m
        spare[depth + 1] = spare[depth] - (size[m] - 1)
        for t in range(top + 1):
            sets[depth + 1, t] = sets[depth, t]
        # Sets whose last member is this expert; members before it by k.
        if top == 2:
            for a in range(depth):
                for t in range(2, times[0, 0, masks[a], m] + 1):
                    sets[depth + 1, t] += 1
        elif top == 3:
            for a in range(depth):
                for b in range(a):
                    for t in range(2, times[0, masks[b], masks[a], m] + 1):
                        sets[depth + 1, t] += 1
        else:
            for a in range(depth):
                for b in range(a):
                    for c in range(b):
                        for t in range(2, times[masks[c], masks[b], masks[a], m] + 1):
                            sets[depth + 1, t] += 1
        value = 1.0
        for t in range(2, top + 1):
            value += sums[sets[depth + 1, t]]
        if value >= best:
            continue
        depth += 1
        if depth == experts:
            best = value
            depth -= 1
        else:
            following[depth] = at
    return best


def counting_bound(
    weight: npt.NDArray[np.float64],
    experts: int,
    gpus: int,
    slots: int,
    top: int,
    upper: float,
    nodes_limit: int = 200_000_000,
) -> float | None:
    """Lower bound on E[T] from the counting argument.

    Parameters
    ----------
    weight : float array
        Probabilities of scenarios of exactly ``top`` distinct sets; other scenarios left out.
    upper : float
        Value of a plan: larger bounds are not looked for.
    nodes_limit : int
        Partial plans after which the search gives up.

    Returns
    -------
    float or None
        None if it gave up. Rounded down by more than the rounding of the sums.
    """
    sets = math.comb(experts, top)
    if not 2 <= top <= 4 or len(weight) > sets or slots >= experts:
        return None
    smallest = np.zeros(sets + 1)
    smallest[1 + sets - len(weight) :] = np.sort(weight)
    sums = np.cumsum(smallest)
    size = np.bitwise_count(np.arange(1 << gpus)).astype(np.int64)
    order = 1 + np.argsort(size[1:], kind="stable")
    times = excess_table(gpus, 1) + 1
    best = _least(experts, gpus, slots, top, times, sums, order, size, upper, nodes_limit)
    return None if best < 0 else best * (1.0 - 2.0**-40)
