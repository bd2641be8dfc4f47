"""Optimal split: the best shares of a plan, and a search for plans under them.

The shares that minimise the sum of squared loads also minimise the largest load: loads that are
least in this sense are least for every convex function of them, since the loads that a dispatch can
reach form the base of a polymatroid. Sharing the load of one expert at a time so that its GPUs
become level lowers that sum until the least is reached, so a few rounds of it replace a linear
program. Whatever the shares, their largest load is an upper bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.balance.anneal import ELSEWHERE
from moeopt.balance.data import BalanceData, FloatArray, IntArray, layer_of
from moeopt.balance.layer import Effort, Part, free_part
from moeopt.balance.packing import experts_of, packing_of
from moeopt.balance.state import (
    State,
    aim,
    apply_swap,
    apply_turn,
    below,
    fill,
    improves,
    new_state,
    value,
)

#: Rounds of levelling: for a proposal of the search; for the shares of a plan.
_QUICK, _LONG = 6, 4_000
#: Shares are final when a round moves no more than this part of the mean load.
_STILL = 1e-12
#: A proposal costs as much as so many under even split.
_PRICE = 10
_SWAP, _GIVE = 0.6, 0.8


@njit(cache=True, nogil=True)
def level(state: State, weight: Any, share: Any, rounds: int, still: float) -> None:
    """Level the GPUs of one expert after the other, at most so many rounds.

    ``share``: tokens that each slot computes, shape (W, P), updated with the loads of ``state``.
    Ends early when no share of a round changes by more than ``still``.
    """
    order = np.empty(state.load.shape[1], dtype=np.int64)
    for w in range(len(weight)):
        for _ in range(rounds):
            largest = 0.0
            for i in range(state.size[1]):
                e = state.several[i]
                n = state.copies[e]
                for k in range(n):
                    p = state.slot[e, k]
                    state.load[w, state.gpu[p]] -= share[w, p]
                    # Insertion into the order of the loads without this expert.
                    j = k
                    while j > 0 and (
                        state.load[w, state.gpu[order[j - 1]]] > state.load[w, state.gpu[p]]
                    ):
                        order[j] = order[j - 1]
                        j -= 1
                    order[j] = p
                left = weight[w, e]
                reached = 0.0
                height, filled = 0.0, n
                for k in range(n):
                    reached += state.load[w, state.gpu[order[k]]]
                    height = (reached + left) / (k + 1)
                    if k + 1 == n or height <= state.load[w, state.gpu[order[k + 1]]]:
                        filled = k + 1
                        break
                for k in range(n):
                    p = order[k]
                    new = 0.0
                    if k < filled:
                        new = max(0.0, height - state.load[w, state.gpu[p]])
                    largest = max(largest, abs(new - share[w, p]))
                    share[w, p] = new
                    state.load[w, state.gpu[p]] += new
            if largest <= still:
                break


@njit(cache=True, nogil=True)
def even_shares(state: State, weight: Any, share: Any) -> None:
    """Set all shares and loads to even split."""
    state.load[:] = 0.0
    for p in range(len(state.content)):
        e = state.content[p]
        for w in range(len(weight)):
            share[w, p] = weight[w, e] / state.copies[e]
            state.load[w, state.gpu[p]] += share[w, p]


@njit(cache=True, nogil=True)
def _try_swap(state: State, share: Any, p: int, q: int) -> None:
    g, h = state.gpu[p], state.gpu[q]
    for w in range(len(share)):
        move = share[w, q] - share[w, p]
        state.load[w, g] += move
        state.load[w, h] -= move
        share[w, p], share[w, q] = share[w, q], share[w, p]
    apply_swap(state, p, q)


@njit(cache=True, nogil=True)
def _try_turn(state: State, share: Any, p: int, b: int) -> None:
    """Slot p becomes an idle replica of b; its tokens go to another replica of its expert."""
    a, g = state.content[p], state.gpu[p]
    apply_turn(state, p, b)
    q = state.slot[a, 0]
    for w in range(len(share)):
        state.load[w, g] -= share[w, p]
        state.load[w, state.gpu[q]] += share[w, p]
        share[w, q] += share[w, p]
        share[w, p] = 0.0


@njit(cache=True, nogil=True)
def anneal_levelled(
    state: State,
    weight: Any,
    share: Any,
    target: Any,
    steps: int,
    hot: float,
    cold: float,
    best: Any,
    best_value: float,
    random: np.random.Generator,
) -> Any:
    """Anneal like ``anneal.anneal``, the loads levelled after every proposal."""
    total, experts = len(state.content), len(state.copies)
    cost = aim(state, target)
    old_load, old_share = state.load.copy(), share.copy()
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
        q, b = -1, a
        if kind < _SWAP or total == experts:
            q = below(random, total)
            b = state.content[q]
            if state.on[b, g] or state.on[a, state.gpu[q]]:
                continue
        else:
            if kind < _GIVE:
                e = state.several[below(random, state.size[1])]
                p = state.slot[e, below(random, state.copies[e])]
            else:
                b = below(random, experts)
            a = state.content[p]
            if state.copies[a] < 2 or state.on[b, state.gpu[p]]:
                continue
        old_load[:] = state.load
        old_share[:] = share
        if q >= 0:
            _try_swap(state, share, p, q)
        else:
            _try_turn(state, share, p, b)
        level(state, weight, share, _QUICK, 0.0)
        after = aim(state, target)
        delta = after - cost
        if delta <= 0.0 or delta < -temperature * np.log(1.0 - random.random()):
            cost = after
            if improves(state, best_value):
                best_value = value(state)
                best[:] = state.content
            continue
        if q >= 0:
            apply_swap(state, p, q)
        else:
            apply_turn(state, p, a)
        state.load[:] = old_load
        share[:] = old_share
        aim(state, target)
    return best_value, steps


def best_shares(data: BalanceData, plan: IntArray) -> FloatArray:
    """Return tokens of each slot that minimise the largest loads of a plan: shape (W, L, P).

    Parameters
    ----------
    data : BalanceData
    plan : int array, shape (L, P)
        Without duplicates on a GPU.
    """
    shares = np.zeros((data.windows, data.layers, data.replicas))
    state = new_state(data.windows, data.experts, data.slots)
    free = np.ones((data.experts, data.gpus), dtype=bool)
    for l in range(data.layers):
        weight = layer_of(data, l)
        share = np.zeros((data.windows, data.replicas))
        fill(state, weight, free, plan[l])
        even_shares(state, weight, share)
        level(state, weight, share, _LONG, _STILL * float(weight.sum(axis=1).max()) / data.gpus)
        shares[:, l] = share
    return shares


def improve_levelled(data: BalanceData, l: int, plan: IntArray, effort: Effort) -> IntArray:
    """Search from a feasible plan (P,) under optimal split; groups stay on their nodes."""
    packing = packing_of(data, plan)
    assert packing is not None
    weight, plan = layer_of(data, l), plan.copy()
    per_part = data.gpus // data.parts
    part_of_slot = data.gpu_of_slot // per_part
    for n in range(data.parts):
        experts = experts_of(data, packing[n])
        local = np.full(data.experts, -1, dtype=np.int64)
        local[experts] = np.arange(len(experts))
        here = part_of_slot == n
        part = free_part(weight[:, experts], data.slots[n * per_part : (n + 1) * per_part])
        plan[here] = experts[_search(part, local[plan[here]], effort)]
    return plan


def _search(part: Part, plan: IntArray, effort: Effort) -> IntArray:
    state = new_state(len(part.weight), part.experts, part.slots)
    share = np.zeros((len(part.weight), part.replicas))
    floor, best = part.floor, plan.copy()
    least, best_value, portion = float(floor.mean()), np.inf, 0.5
    for turn in range(effort.rounds):
        fill(state, part.weight, part.held, best)
        even_shares(state, part.weight, share)
        level(state, part.weight, share, _LONG, _STILL * least)
        best_value = value(state)
        excess = best_value - least
        if excess <= effort.tolerance * least or excess <= 0.0:
            break
        target = floor + portion * (state.load.max(axis=1) - floor)
        _, made = anneal_levelled(
            state,
            part.weight,
            share,
            target,
            effort.steps // _PRICE,
            excess**2,
            (0.01 * excess) ** 2,
            best,
            best_value,
            np.random.default_rng([effort.seed, turn]),
        )
        portion = 0.5 if made < effort.steps // _PRICE else min(0.95, portion + 0.15)
    return best
