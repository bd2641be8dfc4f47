"""Compiled search for one layer under even split: annealing towards a target load.

The cost of a plan is ``Σ over windows and GPUs of max(0, load − target)²``; a plan without cost is
one whose largest loads are within the targets. Moves start from a GPU that is above its target,
mostly:

- swap: one of its slots with a slot of another GPU;
- give: one more replica to an expert of it, in a slot of an expert that has several;
- take: one of its slots, whose expert has several replicas, becomes a replica of another expert.

No move puts an expert twice on a GPU, leaves one without a replica, or brings more than
``most_moves`` copies to GPUs that did not hold them before (``held``).

A seed of numpy's generator gives the same run everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.balance.state import (
    State,
    aim,
    apply_swap,
    apply_turn,
    below,
    improves,
    insert,
    refresh,
    remove,
    value,
)

#: Shares of the moves: swap, give; the rest is take.
_SWAP, _GIVE = 0.7, 0.85
#: Share of the moves that start anywhere: some plans are reached by moves between other GPUs first.
ELSEWHERE = 0.1


@njit(cache=True, nogil=True)
def _touch(state: State, g: int) -> None:
    if not state.mark[g]:
        state.mark[g] = True
        state.touched[state.size[2]] = g
        state.size[2] += 1


@njit(cache=True, nogil=True)
def _forget(state: State) -> None:
    for i in range(state.size[2]):
        g = state.touched[i]
        state.mark[g] = False
        state.change[:, g] = 0.0
    state.size[2] = 0


@njit(cache=True, nogil=True)
def _cost_change(state: State, target: Any) -> float:
    total = 0.0
    for i in range(state.size[2]):
        g = state.touched[i]
        for w in range(len(target)):
            before = state.load[w, g] - target[w]
            after = before + state.change[w, g]
            if after > 0.0:
                total += after * after
            if before > 0.0:
                total -= before * before
    return total


@njit(cache=True, nogil=True)
def _add_loads(state: State, target: Any) -> None:
    for i in range(state.size[2]):
        g = state.touched[i]
        above = False
        for w in range(len(target)):
            state.load[w, g] += state.change[w, g]
            above = above or state.load[w, g] > target[w]
        if above and state.at[g] < 0:
            insert(state.over, state.at, state.size, 0, g)
        elif not above and state.at[g] >= 0:
            remove(state.over, state.at, state.size, 0, g)


@njit(cache=True, nogil=True)
def _swap(state: State, weight: Any, p: int, q: int) -> None:
    """Write the change of the loads if slots p and q exchange their experts."""
    a, b = state.content[p], state.content[q]
    g, h = state.gpu[p], state.gpu[q]
    _touch(state, g)
    _touch(state, h)
    for w in range(len(weight)):
        move = weight[w, b] / state.copies[b] - weight[w, a] / state.copies[a]
        state.change[w, g] += move
        state.change[w, h] -= move


@njit(cache=True, nogil=True)
def _turn(state: State, weight: Any, p: int, b: int) -> None:
    """Write the change of the loads if slot p holds expert b instead of its own."""
    a, g = state.content[p], state.gpu[p]
    fewer, more = state.copies[a] - 1, state.copies[b] + 1
    for k in range(state.copies[a]):
        _touch(state, state.gpu[state.slot[a, k]])
    for k in range(state.copies[b]):
        _touch(state, state.gpu[state.slot[b, k]])
    for w in range(len(weight)):
        old_a, old_b = weight[w, a] / state.copies[a], weight[w, b] / state.copies[b]
        new_a, new_b = weight[w, a] / fewer, weight[w, b] / more
        for k in range(state.copies[a]):
            state.change[w, state.gpu[state.slot[a, k]]] += new_a - old_a
        for k in range(state.copies[b]):
            state.change[w, state.gpu[state.slot[b, k]]] += new_b - old_b
        state.change[w, g] += new_b - new_a


@njit(cache=True, nogil=True)
def anneal(
    state: State,
    weight: Any,
    held: Any,
    most_moves: int,
    target: Any,
    steps: int,
    hot: float,
    cold: float,
    best: Any,
    best_value: float,
    random: np.random.Generator,
) -> Any:
    """Anneal towards ``target`` (W,), at most ``steps`` proposals from temperature hot to cold.

    The best plan met is left in ``best`` (P,); returns (its value, proposals made). The state ends
    where the walk ended: without cost as soon as a plan within the targets is found.
    """
    total, experts = len(state.content), len(state.copies)
    refresh(state, weight)
    cost = aim(state, target)
    temperature = hot
    factor = (cold / hot) ** (1.0 / max(1, steps))
    for step in range(steps):
        temperature *= factor
        if state.size[0] == 0:
            return best_value, step
        g = state.over[below(random, state.size[0])]
        p = state.first[g] + below(random, state.first[g + 1] - state.first[g])
        if random.random() < ELSEWHERE:
            p = below(random, total)
            g = state.gpu[p]
        a = state.content[p]
        kind = random.random()
        moved = 0
        if kind < _SWAP or total == experts:
            q = below(random, total)
            b, h = state.content[q], state.gpu[q]
            if state.on[b, g] or state.on[a, h]:
                continue
            moved += held[a, g]
            moved += held[b, h]
            moved -= held[b, g]
            moved -= held[a, h]
            _swap(state, weight, p, q)
        else:
            b = a
            if kind < _GIVE:
                e = state.several[below(random, state.size[1])]
                p = state.slot[e, below(random, state.copies[e])]
            else:
                b = below(random, experts)
            a, g = state.content[p], state.gpu[p]
            if state.copies[a] < 2 or state.on[b, g]:
                continue
            moved += held[a, g]
            moved -= held[b, g]
            q = -1
            _turn(state, weight, p, b)
        delta = _cost_change(state, target)
        take = delta <= 0.0 or delta < -temperature * np.log(1.0 - random.random())
        if take and (moved <= 0 or state.size[3] + moved <= most_moves):
            _add_loads(state, target)
            if q >= 0:
                apply_swap(state, p, q)
            else:
                apply_turn(state, p, b)
            state.size[3] += moved
            cost += delta
            if improves(state, best_value):
                best_value = value(state)
                best[:] = state.content
        _forget(state)
    return best_value, steps
