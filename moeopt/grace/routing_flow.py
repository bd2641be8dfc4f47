"""Routing as a flow: for each batch and layer the least traffic that limits on loads allow, exact.

Tokens of one home that use one expert are alike, as far as pairs and loads are concerned: how many
of them each copy computes is a transportation problem, with whole numbers as its best solution. It
is solved by shortest paths: every group of tokens begins at its cheapest copy, which is the best
flow without limits; overloads then leave along cheapest paths from GPU to GPU, which keeps the flow
the best one for the loads it has (successive shortest paths).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.grace.data import Batches, ByteArray, FloatArray, IntArray, Nodes, Plan

#: Price of a pair computed on another node, where one on its node costs 1.
REMOTE_PRICE = 10
#: Limit on the loads of `capped` and `sends`, over the mean load of the batch and layer.
CAP = 1.1
CAPPED, SENDS, NEAR, LEVEL = "capped", "sends", "near", "level"
_FAR = 1 << 40


@njit(cache=True, nogil=True)
def _cheapest(count: Any, open_: Any, cost: Any, share: Any, load: Any) -> None:
    """Give every group its cheapest copy: ``share`` (H, R, G), ``load`` (G,) grows."""
    homes, several, gpus = share.shape
    share[:] = 0
    for h in range(homes):
        for r in range(several):
            at = -1
            for g in range(gpus):
                if open_[h, r, g] and (at < 0 or cost[h, r, g] < cost[h, r, at]):
                    at = g
            share[h, r, at] = count[h, r]
            load[at] += count[h, r]


@njit(cache=True, nogil=True)
def _limit(share: Any, load: Any, open_: Any, cost: Any, cap: int) -> int:
    """Bring all loads to at most ``cap`` at least cost; return ``cap``.

    If that is impossible: a limit above it that no routing undercuts. The GPUs that can be reached
    from overloaded ones are at ``cap`` or above, and their tokens have no copies elsewhere: some
    GPU has at least their mean load.
    """
    homes, several, gpus = share.shape
    price = np.empty((gpus, gpus), dtype=np.int64)
    by_home = np.empty((gpus, gpus), dtype=np.int64)
    by_expert = np.empty((gpus, gpus), dtype=np.int64)
    distance, before = np.empty(gpus, dtype=np.int64), np.empty(gpus, dtype=np.int64)
    while True:
        if load.max() <= cap:
            return cap
        price[:] = _FAR
        for h in range(homes):
            for r in range(several):
                for g in range(gpus):
                    if share[h, r, g] == 0:
                        continue
                    for k in range(gpus):
                        if k != g and open_[h, r, k]:
                            change = cost[h, r, k] - cost[h, r, g]
                            if change < price[g, k]:
                                price[g, k] = change
                                by_home[g, k], by_expert[g, k] = h, r
        # Bellman-Ford from all GPUs above the limit: prices can be negative, cycles cannot.
        for g in range(gpus):
            distance[g] = 0 if load[g] > cap else _FAR
            before[g] = -1
        changed = True
        while changed:
            changed = False
            for g in range(gpus):
                if distance[g] == _FAR:
                    continue
                for k in range(gpus):
                    if price[g, k] < _FAR and distance[g] + price[g, k] < distance[k]:
                        distance[k] = distance[g] + price[g, k]
                        before[k] = g
                        changed = True
        end = -1
        for g in range(gpus):
            if load[g] < cap and distance[g] < _FAR and (end < 0 or distance[g] < distance[end]):
                end = g
        if end < 0:
            total, reached = 0, 0
            for g in range(gpus):
                if distance[g] < _FAR:
                    total += load[g]
                    reached += 1
            return -(-total // reached)
        amount, at = cap - load[end], end
        while before[at] >= 0:
            g = before[at]
            amount = min(amount, share[by_home[g, at], by_expert[g, at], g])
            at = g
        amount = min(amount, load[at] - cap)
        load[at] -= amount
        load[end] += amount
        at = end
        while before[at] >= 0:
            g = before[at]
            share[by_home[g, at], by_expert[g, at], g] -= amount
            share[by_home[g, at], by_expert[g, at], at] += amount
            at = g


@njit(cache=True, nogil=True)
def least_cost_shares(
    count: Any, open_: Any, cost: Any, fixed: Any, cap: int, share: Any, load: Any
) -> int:
    """Share groups of tokens out to copies: least cost, loads at most ``cap`` or least possible.

    Parameters
    ----------
    count : int array, shape (H, R)
        Tokens of each home and row: an expert, or tokens of one kind that use it.
    open_ : bool array, shape (H, R, G)
        GPUs that may compute them; at least one for each.
    cost : int array, shape (H, R, G)
        Price of a pair.
    fixed : int array, shape (G,)
        Loads that have no choice.
    cap : int
    share : int array, shape (H, R, G), written
    load : int array, shape (G,), written

    Returns
    -------
    int
        The limit kept: ``cap``, or the least possible largest load where that is above it.
    """
    load[:] = fixed
    _cheapest(count, open_, cost, share, load)
    start, start_load = share.copy(), load.copy()
    while True:
        least = _limit(share, load, open_, cost, cap)
        if least == cap:
            return cap
        # From the beginning: what went away under the lower limit need not go now.
        cap = least
        share[:], load[:] = start, start_load


@njit(cache=True, nogil=True)
def _hand_out(
    ids: Any, home: Any, place: Any, kind: Any, share: Any, node_of: Any, served: Any
) -> None:
    """Turn shares into GPUs of tokens: first where a token is sent anyway, then on its nodes.

    ``ids`` (T, k) of one layer; ``place`` (E,): the expert's first row of ``share``, -1 with one
    copy, whose pairs are served already; ``kind`` (T,): which of its rows a token is in.
    """
    tokens, top_k = ids.shape
    gpus = len(node_of)
    on_gpu = np.zeros((tokens, gpus), dtype=np.bool_)
    on_node = np.zeros((tokens, node_of.max() + 1), dtype=np.bool_)
    for t in range(tokens):
        on_gpu[t, home[t]] = True
        on_node[t, node_of[home[t]]] = True
        for i in range(top_k):
            if place[ids[t, i]] < 0:
                on_gpu[t, served[t, i]] = True
                on_node[t, node_of[served[t, i]]] = True
    done = np.zeros((tokens, top_k), dtype=np.bool_)
    for turn in range(3):
        for t in range(tokens):
            for i in range(top_k):
                r = place[ids[t, i]]
                if r < 0 or done[t, i]:
                    continue
                r += kind[t]
                for g in range(gpus):
                    wanted = on_gpu[t, g] if turn == 0 else turn == 2 or on_node[t, node_of[g]]
                    if wanted and share[home[t], r, g] > 0:
                        share[home[t], r, g] -= 1
                        served[t, i] = g
                        on_gpu[t, g] = True
                        on_node[t, node_of[g]] = True
                        done[t, i] = True
                        break


@njit(cache=True, nogil=True)
def _flow(
    ids: Any,
    home: Any,
    hosts: Any,
    primary: Any,
    node_of: Any,
    prices: Any,
    near_only: bool,
    cap_share: float,
    served: Any,
    limit: Any,
) -> None:
    """Route all batches and layers. ``prices`` (kinds, H, G): of a pair, by kind of token.

    With two kinds the second is that of the tokens whose node lacks one of their experts.
    """
    batches, tokens, layers, top_k = ids.shape
    kinds, experts, gpus = len(prices), hosts.shape[1], hosts.shape[2]
    kind = np.zeros(tokens, dtype=np.int64)
    for l in range(layers):
        place = np.full(experts, -1, dtype=np.int64)
        on_node = np.zeros((experts, node_of.max() + 1), dtype=np.bool_)
        rows = 0
        for e in range(experts):
            for g in range(gpus):
                if hosts[l, e, g]:
                    on_node[e, node_of[g]] = True
            if hosts[l, e].sum() > 1:
                place[e] = rows
                rows += kinds
        open_ = np.zeros((gpus, rows, gpus), dtype=np.bool_)
        cost = np.zeros((gpus, rows, gpus), dtype=np.int64)
        for e in range(experts):
            if place[e] < 0:
                continue
            for h in range(gpus):
                near = near_only and on_node[e, node_of[h]]
                for c in range(kinds):
                    for g in range(gpus):
                        cost[h, place[e] + c, g] = prices[c, h, g]
                        open_[h, place[e] + c, g] = hosts[l, e, g] and not (
                            near and node_of[g] != node_of[h]
                        )
        share = np.zeros((gpus, rows, gpus), dtype=np.int64)
        load = np.zeros(gpus, dtype=np.int64)
        for b in range(batches):
            count = np.zeros((gpus, rows), dtype=np.int64)
            fixed = np.zeros(gpus, dtype=np.int64)
            for t in range(tokens):
                kind[t] = 0
                for i in range(top_k):
                    if kinds == 2 and not on_node[ids[b, t, l, i], node_of[home[t]]]:
                        kind[t] = 1
                for i in range(top_k):
                    e = ids[b, t, l, i]
                    if place[e] < 0:
                        served[b, t, l, i] = primary[l, e]
                        fixed[primary[l, e]] += 1
                    else:
                        count[home[t], place[e] + kind[t]] += 1
            # The mean, rounded up: no largest load is below it.
            total = tokens * top_k
            cap = max(int(cap_share * total / gpus), -(-total // gpus))
            limit[b, l] = least_cost_shares(count, open_, cost, fixed, cap, share, load)
            _hand_out(ids[b, :, l], home, place, kind, share, node_of, served[b, :, l])


def pair_prices(nodes: Nodes, remote: int) -> IntArray:
    """Price of a pair, by home and GPU, shape (G, G): 0 at home, 1 on its node, else ``remote``."""
    prices = np.where(nodes.node_of[:, None] == nodes.node_of[None, :], 1, remote)
    np.fill_diagonal(prices, 0)
    return np.asarray(prices, dtype=np.int64)


def _solved(plan: Plan, batches: Batches, kind: str) -> tuple[ByteArray, IntArray]:
    served = np.zeros(batches.ids.shape, dtype=np.uint8)
    limit = np.zeros((batches.ids.shape[0], batches.ids.shape[2]), dtype=np.int64)
    prices = [pair_prices(plan.nodes, REMOTE_PRICE)]
    if kind == SENDS:
        prices.append(pair_prices(plan.nodes, 1))
    _flow(
        batches.ids,
        batches.home,
        plan.hosts,
        plan.primary,
        plan.nodes.node_of,
        np.stack(prices),
        kind == NEAR,
        CAP if kind in (CAPPED, SENDS) else 0.0,
        served,
        limit,
    )
    return served, limit


def flow(plan: Plan, batches: Batches, kind: str) -> ByteArray:
    """Route by flow, shape (B, T, L, k).

    A pair costs 0 at home, 1 on its node, else :data:`REMOTE_PRICE`.

    Parameters
    ----------
    kind : {"capped", "sends", "near", "level"}
        ``capped``: least price with no load above :data:`CAP` times the mean, or above the least
        possible. ``sends``: the same, but a remote pair costs 1 where its token's node lacks one of
        its experts, so that (with two nodes) the token is sent anyway. ``near``: least remote
        pairs, then least largest load, then price. ``level``: least largest load, then price.
    """
    return _solved(plan, batches, kind)[0]


def least_largest(plan: Plan, batches: Batches) -> FloatArray:
    """Largest load of a GPU that no routing on this plan undercuts, shape (B, L), in pairs."""
    return _solved(plan, batches, LEVEL)[1].astype(np.float64)
