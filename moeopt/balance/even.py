"""One layer under even split: searched part by part, with groups on nodes or as a whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moeopt.balance.data import BalanceData, BoolArray, FloatArray, IntArray, layer_of
from moeopt.balance.layer import Effort, Part, first_plans, free_part, search
from moeopt.balance.packing import (
    MOST_PACKINGS,
    Groups,
    Packing,
    Room,
    by_floor,
    experts_of,
    packing_count,
    packing_of,
    rooms,
)

#: Packings searched for a layer, at most.
_TRIED = 40


def gpu_loads(data: BalanceData, l: int, plan: IntArray) -> FloatArray:
    """Loads of the GPUs under even split, shape (W, G), up to rounding."""
    count = np.bincount(plan, minlength=data.experts)
    pieces = (layer_of(data, l) / np.maximum(count, 1))[:, plan]
    first = np.concatenate([[0], np.cumsum(data.slots)[:-1]])
    return np.asarray(np.add.reduceat(pieces, first, axis=1), dtype=np.float64)


def mean_largest(data: BalanceData, l: int, plan: IntArray) -> float:
    """Mean over windows of the largest load of a plan (P,) under even split, up to rounding."""
    return float(gpu_loads(data, l, plan).max(axis=1).mean())


def find_layer(data: BalanceData, l: int, effort: Effort) -> IntArray:
    """Return a feasible plan of a layer from nothing, shape (P,); moves cost nothing."""
    weight = layer_of(data, l)
    known: dict[tuple[Groups, Room], IntArray] = {}

    def part_of(groups: Groups, room: Room) -> Part:
        return free_part(weight[:, experts_of(data, groups)], np.array(room, dtype=np.int64))

    def floor(groups: Groups, room: Room) -> float:
        return float(part_of(groups, room).floor.mean())

    def plan_of(groups: Groups, room: Room) -> IntArray:
        if (groups, room) not in known:
            part = part_of(groups, room)
            found = [search(part, first, effort) for first in first_plans(part)]
            plan = min(found, key=lambda pair: pair[0])[1]
            known[groups, room] = experts_of(data, groups)[plan]
        return known[groups, room]

    best_value, best = np.inf, np.zeros(data.replicas, dtype=np.int64)
    for low, packing in _candidates(data, weight, floor):
        if low >= best_value * (1.0 - effort.tolerance):
            break
        plan = np.concatenate([plan_of(*part) for part in zip(packing, rooms(data), strict=True)])
        if (found := mean_largest(data, l, plan)) < best_value:
            best_value, best = found, plan
    return best


def improve_layer(
    data: BalanceData, l: int, plan: IntArray, effort: Effort, held: BoolArray, most_moves: int
) -> IntArray:
    """Improve a feasible plan (P,) of a layer; groups stay on their nodes.

    Parameters
    ----------
    data : BalanceData
    l : int
    plan : int array, shape (P,)
    effort : Effort
    held : bool array, shape (E, G)
        Which GPU holds which expert now.
    most_moves : int
        Copies that the result may have on GPUs that do not hold them; the plan has no more.
    """
    packing = packing_of(data, plan)
    assert packing is not None
    weight, gpu = layer_of(data, l), data.gpu_of_slot
    plan = plan.copy()
    per_part = data.gpus // data.parts
    # The fullest node first: it decides, so it has the first choice of moves.
    fullest = gpu_loads(data, l, plan).mean(axis=0).reshape(data.parts, -1).max(axis=1)
    for n in np.argsort(-fullest, kind="stable").tolist():
        gpus = np.arange(n * per_part, (n + 1) * per_part)
        here = np.flatnonzero(gpu // per_part == n)
        experts = experts_of(data, packing[n])
        local = np.full(data.experts, -1, dtype=np.int64)
        local[experts] = np.arange(len(experts))
        moved = ~held[plan, gpu]
        elsewhere = int(moved.sum() - moved[here].sum())
        part = Part(
            np.ascontiguousarray(weight[:, experts]),
            data.slots[gpus],
            np.ascontiguousarray(held[np.ix_(experts, gpus)]),
            most_moves - elsewhere,
        )
        plan[here] = experts[search(part, local[plan[here]], effort)[1]]
    return plan


def _candidates(
    data: BalanceData, weight: FloatArray, floor: Callable[[Groups, Room], float]
) -> list[tuple[float, Packing]]:
    """Packings worth a search, lowest floor first."""
    if data.parts == 1:
        return [(0.0, (tuple(range(data.groups)),))]
    if packing_count(data) <= MOST_PACKINGS:
        return by_floor(data, floor, 0.0)[:_TRIED]
    return [(0.0, _evened(data, weight))]


def _evened(data: BalanceData, weight: FloatArray) -> Packing:
    """Even out the load per slot of the nodes: heaviest groups first, then exchanges of two."""
    load = weight.mean(axis=0).reshape(data.groups, -1).sum(axis=1)
    room = data.slots.reshape(data.parts, -1).sum(axis=1)
    each = data.groups // data.nodes
    node = np.full(data.groups, -1, dtype=np.int64)
    total = np.zeros(data.nodes)
    for group in np.argsort(-load, kind="stable"):
        fits = np.flatnonzero(np.bincount(node[node >= 0], minlength=data.nodes) < each)
        node[group] = fits[np.argmin((total[fits] + load[group]) / room[fits])]
        total[node[group]] += load[group]
    while True:
        full = int(np.argmax(total / room))
        now, pair = total[full] / room[full], None
        for a in np.flatnonzero(node == full).tolist():
            move = load[a] - load
            after = np.maximum((total[full] - move) / room[full], (total[node] + move) / room[node])
            after[node == full] = np.inf
            # A share less in each round: the loop ends.
            if after.min() < now * (1 - 1e-9):
                now, pair = after.min(), (a, int(np.argmin(after)))
        if pair is None:
            break
        a, b = pair
        node[a], node[b] = node[b], node[a]
        total = np.bincount(node, weights=load, minlength=data.nodes).astype(np.float64)
    return tuple(tuple(np.flatnonzero(node == n).tolist()) for n in range(data.nodes))
