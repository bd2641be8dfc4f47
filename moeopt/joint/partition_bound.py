"""Layer bound for few experts: every partition of the experts into groups with GPUs of their own.

A layer plan with E + r replicas is a bipartite graph of experts and GPUs, an edge a replica. A
component with the experts S and k GPUs has at least ``|S| + k − 1`` edges; over all components
``Σ(k − 1) <= r`` (edges minus experts is r) and ``Σk <= G``. Its k GPUs compute the tokens of S,
and nobody else's, so its time is at least ``shared_time(edges, k, w(S))``. Hence the layer's time
is at least the least, over partitions of the experts and numbers of GPUs, of the largest of these.
Given the partition, giving one more GPU to the worst group again and again is optimal: the time of
a group does not increase with k (an added GPU may hold a replica without tokens).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import shared_time

#: 21,147 partitions of 9 experts; ten would have 115,975.
EXPERTS_LIMIT = 9


@njit(cache=True, nogil=True)
def groups_of(group: Any, top: Any, member: Any) -> Any:
    """Return the number of groups of a partition; write what follows from ``group``.

    Parameters
    ----------
    group, top : int arrays
        As in :func:`next_partition`; ``top`` is overwritten.
    member : int array, shape (E,)
        Overwritten by the experts of each group, a bit each.
    """
    member[:] = 0
    for e in range(len(group)):
        top[e + 1] = max(top[e], group[e] + 1)
        member[group[e]] |= 1 << e
    return top[len(group)]


@njit(cache=True, nogil=True)
def next_partition(group: Any, top: Any, most: int) -> bool:
    """Step to the next partition into at most so many groups; False after the last.

    Parameters
    ----------
    group : int array, shape (E,)
        Group of each expert, in restricted growth: at most 1 + those before. Overwritten.
    top : int array, shape (E + 1,)
        Groups among the experts before each.
    """
    e = len(group) - 1
    while e > 0 and (group[e] == top[e] or group[e] + 1 >= most):
        e -= 1
    if e <= 0:
        return False
    group[e] += 1
    group[e + 1 :] = 0
    return True


@njit(cache=True, nogil=True)
def partition_bounds(cost: Any, tokens: Any, charges: Any, tree: int, gpus: int) -> Any:
    """Least layer time with r = 0, 1, …, G − 1 additional replicas.

    Parameters
    ----------
    cost : tuple
        See :func:`moeopt.joint.cost.cost_of`.
    tokens : float array, shape (E,)
        At most :data:`EXPERTS_LIMIT` experts.
    charges : int array, shape (E,)
        1 for each expert that surely activates a replica, else 0.
    tree : int
        1 where a group with k GPUs is charged k − 1 replicas more than its experts, else 0.
    gpus : int

    Returns
    -------
    time : float array, shape (G,)
        ``inf`` nowhere.
    group : int array, shape (G, E)
        Group of each expert in a partition that attains it.
    size : int array, shape (G, E)
        GPUs of each group.
    """
    experts = len(tokens)
    sets = 1 << experts
    alone = np.full((sets, gpus + 1), np.inf)
    for subset in range(1, sets):
        w, p = 0.0, 0
        for e in range(experts):
            if subset >> e & 1:
                w += tokens[e]
                p += charges[e]
        for k in range(1, gpus + 1):
            alone[subset, k] = shared_time(cost, p + tree * (k - 1), k, w)
    return best_partitions(alone, experts, gpus)


@njit(cache=True, nogil=True)
def best_partitions(alone: Any, experts: int, gpus: int) -> Any:
    """Least, over all partitions and numbers of GPUs, of the largest value of a group.

    Parameters
    ----------
    alone : float array, shape (2**E, G + 1)
        Value of each set of experts (a bit each) on so many GPUs; must not increase with these.

    Returns
    -------
    As :func:`partition_bounds`.
    """
    time = np.full(gpus, np.inf)
    group_of = np.zeros((gpus, experts), dtype=np.int64)
    size_of = np.zeros((gpus, experts), dtype=np.int64)
    group = np.zeros(experts, dtype=np.int64)  # restricted growth: group[e] <= 1 + those before
    top = np.zeros(experts + 1, dtype=np.int64)  # groups among the experts before e
    member = np.zeros(experts, dtype=np.int64)
    size = np.zeros(experts, dtype=np.int64)
    while True:
        groups = groups_of(group, top, member)
        size[:] = 0
        size[:groups] = 1
        for extra in range(gpus - groups + 1):
            worst = 0
            for j in range(1, groups):
                if alone[member[j], size[j]] > alone[member[worst], size[worst]]:
                    worst = j
            if alone[member[worst], size[worst]] < time[extra]:
                time[extra] = alone[member[worst], size[worst]]
                group_of[extra] = group
                size_of[extra] = size
            size[worst] += 1
        if not next_partition(group, top, gpus):
            break
    for extra in range(1, gpus):
        if time[extra - 1] <= time[extra]:
            time[extra] = time[extra - 1]
            group_of[extra] = group_of[extra - 1]
            size_of[extra] = size_of[extra - 1]
    return time, group_of, size_of
