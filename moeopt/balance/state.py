"""A plan of one layer as the compiled searches hold it, and its two moves.

``swap`` exchanges the experts of two slots, ``turn`` makes a slot a replica of another expert.

numba's cache of a search does not notice changes of this file: after editing it, touch those that
import it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from moeopt.balance.data import BoolArray, FloatArray, IntArray


class State(NamedTuple):
    """A plan of one layer and what the moves need to know of it.

    ``content``: expert of a slot; ``gpu``: GPU of a slot; ``first``: first slot of a GPU (G + 1);
    ``copies``: replicas of an expert; ``slot``: slots of an expert's replicas (E, G); ``rank``:
    place of a slot in that list; ``on``: expert on GPU (E, G); ``load``: (W, G); ``over``: GPUs
    above a target, ``at`` their places in it; ``several``: experts with several replicas, ``among``
    their places in it; ``change``: of a move (W, G), ``touched`` its GPUs, ``mark`` of them;
    ``size``: [over, several, touched, copies moved].
    """

    content: IntArray
    gpu: IntArray
    first: IntArray
    copies: IntArray
    slot: IntArray
    rank: IntArray
    on: BoolArray
    load: FloatArray
    over: IntArray
    at: IntArray
    several: IntArray
    among: IntArray
    change: FloatArray
    touched: IntArray
    mark: BoolArray
    size: IntArray


def new_state(windows: int, experts: int, slots: IntArray) -> State:
    """Return a state for so many windows and experts, and GPUs with so many ``slots`` (G,)."""
    gpus, total = len(slots), int(slots.sum())
    return State(
        content=np.zeros(total, dtype=np.int64),
        gpu=np.repeat(np.arange(gpus), slots),
        first=np.concatenate([[0], np.cumsum(slots)]),
        copies=np.zeros(experts, dtype=np.int64),
        slot=np.zeros((experts, gpus), dtype=np.int64),
        rank=np.zeros(total, dtype=np.int64),
        on=np.zeros((experts, gpus), dtype=bool),
        load=np.zeros((windows, gpus)),
        over=np.zeros(gpus, dtype=np.int64),
        at=np.full(gpus, -1, dtype=np.int64),
        several=np.zeros(experts, dtype=np.int64),
        among=np.full(experts, -1, dtype=np.int64),
        change=np.zeros((windows, gpus)),
        touched=np.zeros(gpus, dtype=np.int64),
        mark=np.zeros(gpus, dtype=bool),
        size=np.zeros(4, dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def fill(state: State, weight: Any, held: Any, content: Any) -> None:
    """Set the state to a plan: the experts of the slots, shape (P,)."""
    state.content[:] = content
    state.copies[:] = 0
    state.on[:] = False
    state.size[:] = 0
    state.among[:] = -1
    for p in range(len(content)):
        e, g = content[p], state.gpu[p]
        state.slot[e, state.copies[e]] = p
        state.rank[p] = state.copies[e]
        state.copies[e] += 1
        state.on[e, g] = True
        state.size[3] += not held[e, g]
    for e in range(len(state.copies)):
        if state.copies[e] > 1:
            insert(state.several, state.among, state.size, 1, e)
    refresh(state, weight)


@njit(cache=True, nogil=True)
def refresh(state: State, weight: Any) -> None:
    """Recompute the loads, which the moves only update."""
    state.load[:] = 0.0
    for p in range(len(state.content)):
        e = state.content[p]
        for w in range(len(weight)):
            state.load[w, state.gpu[p]] += weight[w, e] / state.copies[e]


@njit(cache=True, nogil=True)
def value(state: State) -> float:
    """Mean over windows of the largest load."""
    total = 0.0
    for w in range(len(state.load)):
        total += state.load[w].max()
    return total / len(state.load)


@njit(cache=True, nogil=True)
def improves(state: State, best_value: float) -> bool:
    """Whether `value` is below ``best_value``, which is above the targets that ``over`` is for."""
    if len(state.load) > 1:
        return value(state) < best_value
    for i in range(state.size[0] - 1, -1, -1):  # the latest first: mostly it decides
        worse = state.load[0, state.over[i]] >= best_value
        if worse:
            return False
    return True


@njit(cache=True, nogil=True)
def below(random: np.random.Generator, n: int) -> int:
    """Return a random whole number from 0 to n − 1."""
    return int(random.random() * n)


@njit(cache=True, nogil=True)
def insert(items: Any, at: Any, size: Any, which: int, item: int) -> None:
    """Append an item to a list of ``size[which]``; ``at`` knows where."""
    items[size[which]] = item
    at[item] = size[which]
    size[which] += 1


@njit(cache=True, nogil=True)
def remove(items: Any, at: Any, size: Any, which: int, item: int) -> None:
    """Take an item out of such a list; the last one takes its place."""
    size[which] -= 1
    last = items[size[which]]
    items[at[item]] = last
    at[last] = at[item]
    at[item] = -1


@njit(cache=True, nogil=True)
def aim(state: State, target: Any) -> float:
    """Collect the GPUs above a target; return the cost."""
    cost = 0.0
    state.size[0] = 0
    state.at[:] = -1
    for g in range(state.load.shape[1]):
        excess = 0.0
        for w in range(len(target)):
            excess += max(0.0, state.load[w, g] - target[w]) ** 2
        if excess > 0.0:
            insert(state.over, state.at, state.size, 0, g)
        cost += excess
    return cost


@njit(cache=True, nogil=True)
def apply_swap(state: State, p: int, q: int) -> None:
    """Exchange the experts of two slots; loads stay as they are."""
    a, b = state.content[p], state.content[q]
    g, h = state.gpu[p], state.gpu[q]
    state.content[p], state.content[q] = b, a
    i, j = state.rank[p], state.rank[q]
    state.slot[a, i], state.slot[b, j] = q, p
    state.rank[q], state.rank[p] = i, j
    state.on[a, g] = state.on[b, h] = False
    state.on[a, h] = state.on[b, g] = True


@njit(cache=True, nogil=True)
def apply_turn(state: State, p: int, b: int) -> None:
    """Make slot p a replica of expert b; loads stay as they are."""
    a, g = state.content[p], state.gpu[p]
    state.copies[a] -= 1
    last = state.slot[a, state.copies[a]]
    state.slot[a, state.rank[p]] = last
    state.rank[last] = state.rank[p]
    state.slot[b, state.copies[b]] = p
    state.rank[p] = state.copies[b]
    state.copies[b] += 1
    state.content[p] = b
    state.on[a, g] = False
    state.on[b, g] = True
    if state.copies[a] == 1:
        remove(state.several, state.among, state.size, 1, a)
    if state.copies[b] == 2:
        insert(state.several, state.among, state.size, 1, b)
