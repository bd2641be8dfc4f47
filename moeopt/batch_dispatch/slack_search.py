"""The search within the slack, compiled: sets of joined GPUs, and experts whole to groups of them.

What it decides, and why, is said in :mod:`slack <moeopt.batch_dispatch.slack>`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.dispatch_time import gpu_time

#: Answers of the search.
IMPOSSIBLE, POSSIBLE, UNKNOWN = 0, 1, 2
#: Splits tried, at most.
MOST_SPLITS = 4
#: More than any payment: the limit of GPUs without a price.
FREE = 1 << 61


@njit(cache=True)
def _settle(
    item_first: Any,
    item_gpu: Any,
    item_pay: Any,
    item_tokens: Any,
    group: Any,
    groups: int,
    splits: Any,
    fixed: Any,
    limit: Any,
    fixed_activated: Any,
    fixed_tokens: Any,
    form: int,
    cost: Any,
    time: float,
    budget: int,
    nodes: Any,
    chosen: Any,
) -> int:
    """Send every expert with a choice (F of them) whole to a group of GPUs, within the budget.

    ``group``: of each GPU; ``splits``: what the splits within a group pay; ``nodes[0]`` is counted
    down; ``chosen`` (F,): the groups, if possible.
    """
    count = len(item_first) - 1
    # What comes before the first step costs as much as so many of them.
    nodes[0] -= groups * (2 + groups // 16)
    paid, most = np.zeros(groups, dtype=np.int64), np.zeros(groups, dtype=np.int64)
    size = np.zeros(groups, dtype=np.int64)
    activated, tokens = np.zeros(groups), np.zeros(groups)
    for g in range(len(group)):
        s = group[g]
        size[s] += 1
        paid[s] += fixed[g]
        most[s] = min(FREE, most[s] + limit[g])
        activated[s] += fixed_activated[g]
        tokens[s] += fixed_tokens[g]
    for s in range(groups):
        if most[s] < FREE:
            most[s] -= splits[s]
    # Options of each expert: groups, and the least payment there; one option is no choice.
    option_first = np.zeros(count + 1, dtype=np.int64)
    option, pay = np.empty(len(item_gpu), dtype=np.int64), np.empty(len(item_gpu), dtype=np.int64)
    least = np.empty(count, dtype=np.int64)
    k = 0
    for i in range(count):
        least[i] = item_pay[item_first[i] : item_first[i + 1]].min()
        for r in range(item_first[i], item_first[i + 1]):
            s, found = group[item_gpu[r]], -1
            for o in range(option_first[i], k):
                if option[o] == s:
                    found = o
            if found < 0:
                option[k], pay[k] = s, item_pay[r]
                k += 1
            else:
                pay[found] = min(pay[found], item_pay[r])
        option_first[i + 1] = k
        chosen[i] = -1
    potential = paid.copy()
    open_items = np.zeros(groups, dtype=np.int64)
    for i in range(count):
        for o in range(option_first[i], option_first[i + 1]):
            potential[option[o]] += pay[o]
            open_items[option[o]] += 1
    short = 0
    for s in range(groups):
        if paid[s] > most[s]:
            return IMPOSSIBLE
        if most[s] < FREE:
            short += max(0, most[s] - potential[s])
    if short > budget:
        return IMPOSSIBLE
    # The group with the fewest experts left is filled first.
    order, placed, k = np.empty(count, dtype=np.int64), np.zeros(count, dtype=np.bool_), 0
    while k < count:
        best = -1
        for s in range(groups):
            if open_items[s] > 0 and (best < 0 or open_items[s] < open_items[best]):
                best = s
        begin = k
        for i in range(count):
            if placed[i]:
                continue
            for o in range(option_first[i], option_first[i + 1]):
                if option[o] == best:
                    placed[i], order[k] = True, i
                    k += 1
                    for p in range(option_first[i], option_first[i + 1]):
                        open_items[option[p]] -= 1
                    break
        for a in range(begin + 1, k):  # most tokens first
            b = a
            while b > begin and item_tokens[order[b]] > item_tokens[order[b - 1]]:
                order[b], order[b - 1] = order[b - 1], order[b]
                b -= 1
    tried, taken = np.zeros(count + 1, dtype=np.int64), np.full(count + 1, -1, dtype=np.int64)
    left = budget
    depth = 0
    while True:
        if depth == count:
            return POSSIBLE
        i = order[depth]
        if taken[depth] >= 0:  # undo
            t = taken[depth]
            s = option[t]
            paid[s] -= pay[t]
            activated[s] -= 1.0
            tokens[s] -= item_tokens[i]
            left += pay[t] - least[i]
            for o in range(option_first[i], option_first[i + 1]):
                if o != t:
                    h = option[o]
                    if most[h] < FREE:
                        short -= max(0, most[h] - potential[h])
                        potential[h] += pay[o]
                        short += max(0, most[h] - potential[h])
            taken[depth] = -1
        best, room = -1, -1
        for o in range(option_first[i], option_first[i + 1]):
            if tried[depth] >> (o - option_first[i]) & 1:
                continue
            free = most[option[o]] - paid[option[o]] - pay[o]
            if free > room:
                best, room = o, free
        if best < 0:
            tried[depth] = 0
            depth -= 1
            if depth < 0:
                return IMPOSSIBLE
            continue
        nodes[0] -= 1
        if nodes[0] < 0:
            return UNKNOWN
        tried[depth] |= 1 << (best - option_first[i])
        s = option[best]
        taken[depth], chosen[i] = best, s
        paid[s] += pay[best]
        activated[s] += 1.0
        tokens[s] += item_tokens[i]
        left -= pay[best] - least[i]
        for o in range(option_first[i], option_first[i + 1]):
            if o != best:
                h = option[o]
                if most[h] < FREE:
                    short -= max(0, most[h] - potential[h])
                    potential[h] -= pay[o]
                    short += max(0, most[h] - potential[h])
        if short > left:
            continue
        if form != 1 and size[s] == 1 and gpu_time(form, cost, activated[s], tokens[s]) > time:
            continue
        depth += 1


@njit(cache=True)
def _join(group: Any, a: int, b: int) -> bool:
    """Make one group of those of two GPUs; False if they are one already."""
    s, t = min(group[a], group[b]), max(group[a], group[b])
    if s == t:
        return False
    for g in range(len(group)):
        if group[g] == t:
            group[g] = s
        elif group[g] > t:
            group[g] -= 1
    return True


@njit(cache=True)
def decide(
    item_first: Any,
    item_gpu: Any,
    item_pay: Any,
    item_tokens: Any,
    start: Any,
    groups: int,
    fixed: Any,
    limit: Any,
    fixed_activated: Any,
    fixed_tokens: Any,
    form: int,
    cost: Any,
    time: float,
    budget: int,
    edge: Any,
    edge_cost: Any,
    nodes: Any,
    chosen: Any,
    group: Any,
    joined: Any,
) -> int:
    """Try all sets of joined GPUs (edges, cheapest first), fewest first; fill the answer."""
    edges = len(edge_cost)
    at = np.zeros(MOST_SPLITS + 2, dtype=np.int64)
    dues = np.zeros(groups, dtype=np.int64)
    for splits in range(MOST_SPLITS + 2):
        least = 0
        for k in range(splits):
            least = FREE if k >= edges else min(FREE, least + edge_cost[k])
        if least > budget:
            return IMPOSSIBLE
        if splits > MOST_SPLITS:
            return UNKNOWN
        for k in range(splits):
            at[k] = k
        while True:
            nodes[0] -= 1
            if nodes[0] < 0:
                return UNKNOWN
            total = 0
            for k in range(splits):
                total += edge_cost[at[k]]
            if total <= budget:
                group[:] = start
                apart = True
                for k in range(splits):
                    apart = apart and _join(group, edge[at[k], 0], edge[at[k], 1])
                dues[:] = 0
                for k in range(splits):
                    dues[group[edge[at[k], 0]]] += edge_cost[at[k]]
                if apart:
                    answer = _settle(
                        item_first,
                        item_gpu,
                        item_pay,
                        item_tokens,
                        group,
                        groups - splits,
                        dues,
                        fixed,
                        limit,
                        fixed_activated,
                        fixed_tokens,
                        form,
                        cost,
                        time,
                        budget - total,
                        nodes,
                        chosen,
                    )
                    if answer != IMPOSSIBLE:
                        joined[:] = -1
                        joined[:splits] = at[:splits]
                        return answer
            # The next set; one that is too dear is left with all that are dearer.
            k = splits - 1
            if total > budget:
                while k >= 0 and (k > 0 and at[k] == at[k - 1] + 1):
                    k -= 1
                k -= 1
            while k >= 0 and at[k] >= edges - splits + k:
                k -= 1
            if k < 0:
                break
            at[k] += 1
            for j in range(k + 1, splits):
                at[j] = at[j - 1] + 1
    return UNKNOWN
