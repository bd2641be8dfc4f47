"""Groups of experts on nodes: which groups share a node, enumerated with a floor for each choice.

The groups of a node and its GPUs are a part of their own. A choice's floor is the largest floor of
its parts; no plan with this choice has a largest load below it, so the least floor over all choices
is a bound of the layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TypeVar

import numpy as np

from moeopt.balance.data import BalanceData, IntArray

#: More choices than this are not enumerated.
MOST_PACKINGS = 20_000

#: Groups that share a node; nodes have these.
Groups = tuple[int, ...]
Packing = tuple[Groups, ...]
#: Slots of the GPUs of a part: equal rooms have equal plans.
Room = tuple[int, ...]
Value = TypeVar("Value", float, Fraction)


def rooms(data: BalanceData) -> list[Room]:
    """Return the room of each part."""
    return [tuple(row.tolist()) for row in data.slots.reshape(data.parts, -1)]


def experts_of(data: BalanceData, groups: Groups) -> IntArray:
    """Return the experts of some groups, shape (len(groups) * E / K,)."""
    size = data.experts // data.groups
    return (np.array(groups, dtype=np.int64)[:, None] * size + np.arange(size)).ravel()


def packing_count(data: BalanceData) -> int:
    """Return the number of ways to divide the groups among the nodes, equal nodes alike."""
    if data.parts == 1:
        return 1
    each = data.groups // data.nodes
    ways = math.factorial(data.groups) // math.factorial(each) ** data.nodes
    for same in _runs(rooms(data)):
        ways //= math.factorial(same)
    return ways


def packings(data: BalanceData) -> Iterator[Packing]:
    """Yield every way to divide the groups among the nodes, equal neighbouring nodes alike."""
    if data.parts == 1:
        yield (tuple(range(data.groups)),)
        return
    where = rooms(data)
    each = data.groups // data.nodes

    def extend(done: Packing, left: Groups) -> Iterator[Packing]:
        node = len(done)
        if node == data.nodes:
            yield done
            return
        alike = node > 0 and where[node] == where[node - 1]
        for chosen in itertools.combinations(left, each):
            if alike and chosen[0] < done[-1][0]:
                continue
            yield from extend((*done, chosen), tuple(g for g in left if g not in chosen))

    yield from extend((), tuple(range(data.groups)))


def by_floor(
    data: BalanceData, floor: Callable[[Groups, Room], Value], least: Value
) -> list[tuple[Value, Packing]]:
    """Return the packings with their floors, lowest first; a part's floor is computed once.

    ``least``: what every floor is above, such as 0.
    """
    known: dict[tuple[Groups, Room], Value] = {}
    where = rooms(data)
    found = []
    for packing in packings(data):
        highest = least
        for groups, room in zip(packing, where, strict=True):
            if (groups, room) not in known:
                known[groups, room] = floor(groups, room)
            highest = max(highest, known[groups, room])
        found.append((highest, packing))
    found.sort(key=lambda pair: pair[0])
    return found


def packing_of(data: BalanceData, plan: IntArray) -> Packing | None:
    """Return the packing that a plan (P,) uses; None if it does not keep groups on nodes."""
    node = data.gpu_of_slot // (data.gpus // data.parts)
    group = plan // (data.experts // data.groups)
    where = [frozenset(group[node == n].tolist()) for n in range(data.parts)]
    each = data.groups // data.parts
    if any(len(found) != each for found in where) or len(frozenset().union(*where)) < data.groups:
        return None
    return tuple(tuple(sorted(found)) for found in where)


def _runs(where: list[Room]) -> list[int]:
    return [len(list(same)) for _, same in itertools.groupby(where)]
