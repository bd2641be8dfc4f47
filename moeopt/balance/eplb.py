"""The published heuristic (DeepSeek EPLB), rewritten: greedy replicas, equal-count packing.

Loads are single-precision numbers, as there: near ties are decided by them. It may put two copies
of an expert on one GPU.

Source: https://github.com/deepseek-ai/EPLB, whose example is a test of this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from moeopt.balance.data import IntArray
from moeopt.errors import InputError


@dataclass(frozen=True)
class PublishedPlan:
    """What the published heuristic answers.

    ``slots``: expert of each slot, shape (L, P); ``rank``: which of its expert's copies the slot
    holds, shape (L, P); ``count``: copies of each expert, shape (L, E).
    """

    slots: IntArray
    rank: IntArray
    count: IntArray


def published_plan(
    weight: ArrayLike, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> PublishedPlan:
    """Place by the published heuristic.

    Parameters
    ----------
    weight : array_like, shape (L, E)
        Tokens of each expert.
    num_replicas : int
        Slots of a layer, P.
    num_groups : int
        Groups of consecutive experts. If they cannot be divided among the nodes, groups and nodes
        are ignored.
    num_nodes, num_gpus : int

    Raises
    ------
    InputError
        The numbers do not divide each other as the heuristic needs.
    """
    loads = np.ascontiguousarray(weight, dtype=np.float32)
    if loads.ndim != 2 or loads.size == 0:
        raise InputError("weight: an array of shape (layers, experts) is needed")
    if min(num_groups, num_nodes, num_gpus) < 1:
        raise InputError("groups, nodes and GPUs: at least one of each is needed")
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    experts = loads.shape[1]
    lines = [
        f"{above} {what} cannot be divided equally among {below} {whom}"
        for above, what, below, whom in (
            (experts, "experts", num_groups, "groups"),
            (num_gpus, "GPUs", num_nodes, "nodes"),
            (num_replicas, "slots", num_gpus, "GPUs"),
        )
        if above % below
    ]
    if num_replicas < experts:
        lines.append(f"{num_replicas} slots cannot hold {experts} experts")
    if lines:
        raise InputError(lines)
    layers = [_layer(row, num_replicas, num_groups, num_nodes, num_gpus) for row in loads]
    slots, rank, count = (np.stack(parts) for parts in zip(*layers, strict=True))
    return PublishedPlan(slots, rank, count)


@njit(cache=True, nogil=True)
def _packing(weight: Any, packs: int) -> Any:
    """Equally many items for each pack, heaviest first to the lightest pack with room.

    Returns (pack, place in it) of each item.
    """
    items = len(weight)
    most = items // packs
    pack = np.zeros(items, dtype=np.int64)
    place = np.zeros(items, dtype=np.int64)
    if most == 1:
        pack[:] = np.arange(items)
        return pack, place
    load = np.zeros(packs, dtype=np.float32)
    used = np.zeros(packs, dtype=np.int64)
    for item in np.argsort(-weight, kind="mergesort"):
        at = -1
        for k in range(packs):
            if used[k] < most and (at < 0 or load[k] < load[at]):
                at = k
        pack[item], place[item] = at, used[at]
        load[at] += weight[item]
        used[at] += 1
    return pack, place


@njit(cache=True, nogil=True)
def _layer(weight: Any, replicas: int, groups: int, nodes: int, gpus: int) -> Any:
    experts, size = len(weight), len(weight) // groups
    group_weight = np.zeros(groups, dtype=np.float32)
    for group in range(groups):
        for e in range(group * size, (group + 1) * size):
            group_weight[group] += weight[e]
    node_of_group, place = _packing(group_weight, nodes)
    # Experts in the order of their nodes: expert[m] is the m-th.
    expert = np.zeros(experts, dtype=np.int64)
    for group in range(groups):
        begin = (node_of_group[group] * (groups // nodes) + place[group]) * size
        for i in range(size):
            expert[begin + i] = group * size + i
    here, room, per_gpu = experts // nodes, replicas // nodes, replicas // gpus
    slots = np.zeros(replicas, dtype=np.int64)
    rank = np.zeros(replicas, dtype=np.int64)
    count = np.ones(experts, dtype=np.int64)
    for node in range(nodes):
        local = expert[node * here : (node + 1) * here]
        copy_of = np.zeros(room, dtype=np.int64)
        copy_rank = np.zeros(room, dtype=np.int64)
        copies = np.ones(here, dtype=np.int64)
        for p in range(room):
            if p < here:
                copy_of[p] = p
                continue
            at = 0
            for i in range(1, here):
                share = np.float32(weight[local[i]] / np.float32(copies[i]))
                if share > np.float32(weight[local[at]] / np.float32(copies[at])):
                    at = i
            copy_of[p], copy_rank[p] = at, copies[at]
            copies[at] += 1
        share_of = np.zeros(room, dtype=np.float32)
        for p in range(room):
            share_of[p] = weight[local[copy_of[p]]] / np.float32(copies[copy_of[p]])
        gpu, place_in = _packing(share_of, gpus // nodes)
        for p in range(room):
            target = node * room + gpu[p] * per_gpu + place_in[p]
            slots[target] = local[copy_of[p]]
            rank[target] = copy_rank[p]
        for i in range(here):
            count[local[i]] = copies[i]
    return slots, rank, count
