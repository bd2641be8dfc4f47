"""A layer's hosts and token split by local search: relieve the slowest GPU.

The state is who hosts what and how many tokens each replica computes. Heavy experts start in equal
pieces, as many as the target time demands; pieces go largest first to the GPU with the least
tokens among those whose number of replicas is not above the mean. Then, again and again, the
slowest GPU gives away, swaps, levels (a share of an expert that both GPUs host) or, while there are
replicas left, splits an expert with another GPU, as long as both end earlier than it did. Random
swaps lead out of dead ends; the best state is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import MAX, P2, room_of, time_of

_MOVE, _SWAP, _LEVEL, _SPLIT, _MERGE = 0, 1, 2, 3, 4
_GAIN = 1.0 - 1e-10
#: Ways to cut the heavy experts.
_VARIANTS = 4


@njit(cache=True, nogil=True)
def below(random: Any, n: int) -> Any:
    """Return a random number from 0 to n - 1 (xorshift); ``random``, shape (1,), is the state."""
    x = random[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    random[0] = x
    x = x * np.uint64(2685821657736338717)
    return np.int64(((x >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@njit(cache=True, nogil=True)
def level_tokens(cost: Any, from_count: int, from_load: Any, to_count: int, to_load: Any) -> Any:
    """Tokens that level two GPUs with these replicas (activated before and after)."""
    form, _, b, _, beta = cost
    if beta == 0.0:
        return 0.0
    gap = from_load - to_load
    if form == P2 and from_load + to_load > 0.0:
        x, y = b * from_count / beta, b * to_count / beta
        gap += (x - y) * (x + y) / (from_load + to_load)
    elif form != MAX:
        gap += b * (from_count - to_count) / beta
    return 0.5 * gap


@njit(cache=True, nogil=True)
def _put(share: Any, hosts: Any, count: Any, load: Any, e: int, g: int, tokens: Any) -> None:
    if not hosts[e, g]:
        hosts[e, g] = True
        count[g] += 1
    share[e, g] += tokens
    load[g] += tokens


@njit(cache=True, nogil=True)
def _drop(share: Any, hosts: Any, count: Any, load: Any, e: int, g: int) -> None:
    hosts[e, g] = False
    count[g] -= 1
    load[g] -= share[e, g]
    share[e, g] = 0.0


@njit(cache=True, nogil=True)
def _start(tokens: Any, pieces: Any, slots: int, share: Any, hosts: Any) -> Any:
    """Place equal pieces, largest first. False if the slots do not hold them."""
    gpus = share.shape[1]
    count, load = np.zeros(gpus, dtype=np.int64), np.zeros(gpus)
    total = pieces.sum()
    level = -(-total // gpus)
    size = tokens / pieces
    for e in np.argsort(-size, kind="mergesort"):
        for _ in range(pieces[e]):
            best = -1
            for g in range(gpus):
                if hosts[e, g] or count[g] >= slots:
                    continue
                if best < 0:
                    best = g
                    continue
                over, best_over = count[g] >= level, count[best] >= level
                if over != best_over:
                    if best_over:
                        best = g
                elif load[g] < load[best] or (load[g] == load[best] and count[g] < count[best]):
                    best = g
            if best < 0:
                return False
            _put(share, hosts, count, load, e, best, size[e])
    return True


@njit(cache=True, nogil=True)
def _descend(cost: Any, share: Any, hosts: Any, slots: int, left: int, target: Any) -> Any:
    """Relieve the slowest GPU as long as that works. Return (time, replicas left)."""
    experts, gpus = share.shape
    count, load = hosts.sum(axis=0), share.sum(axis=0)
    time = np.empty(gpus)
    for g in range(gpus):
        time[g] = time_of(cost, count[g], load[g])
    for _ in range(50 * (experts + gpus)):
        g = int(np.argmax(time))
        worst = time[g]
        if worst <= target:
            break
        limit = worst * _GAIN
        kind, at_e, at_h, at_i, at_n = -1, -1, -1, -1, 0.0
        best = limit
        split_best, split_e, split_h, split_n = limit, -1, -1, 0.0
        for e in range(experts):
            if not hosts[e, g]:
                continue
            s = share[e, g]
            without = time_of(cost, count[g] - 1, load[g] - s)
            for h in range(gpus):
                if h == g or time[h] >= limit:
                    continue
                if hosts[e, h]:
                    t = max(without, time_of(cost, count[h], load[h] + s))
                    if t < best:
                        best, kind, at_e, at_h, at_n = t, _MERGE, e, h, s
                    n = min(s, level_tokens(cost, count[g], load[g], count[h], load[h]))
                    if n > 0.0:
                        t = max(
                            time_of(cost, count[g], load[g] - n),
                            time_of(cost, count[h], load[h] + n),
                        )
                        if t < best:
                            best, kind, at_e, at_h, at_n = t, _LEVEL, e, h, n
                    continue
                if count[h] < slots:
                    t = max(without, time_of(cost, count[h] + 1, load[h] + s))
                    if t < best:
                        best, kind, at_e, at_h, at_n = t, _MOVE, e, h, s
                    if left > 0 and s > 0.0:
                        n = min(s, level_tokens(cost, count[g], load[g], count[h] + 1, load[h]))
                        if 0.0 < n < s:
                            t = max(
                                time_of(cost, count[g], load[g] - n),
                                time_of(cost, count[h] + 1, load[h] + n),
                            )
                            if t < split_best:
                                split_best, split_e, split_h, split_n = t, e, h, n
                for i in range(experts):
                    if not hosts[i, h] or hosts[i, g]:
                        continue
                    change = share[i, h] - s
                    if change >= 0.0:
                        continue
                    t = max(
                        time_of(cost, count[g], load[g] + change),
                        time_of(cost, count[h], load[h] - change),
                    )
                    if t < best:
                        best, kind, at_e, at_h, at_i = t, _SWAP, e, h, i
        if kind < 0 and split_e < 0:
            break
        if kind < 0:
            _put(share, hosts, count, load, split_e, split_h, split_n)
            share[split_e, g] -= split_n
            load[g] -= split_n
            left -= 1
            h = split_h
        elif kind == _LEVEL:
            h = at_h
            share[at_e, g] -= at_n
            load[g] -= at_n
            share[at_e, h] += at_n
            load[h] += at_n
            if share[at_e, g] <= 0.0:
                _drop(share, hosts, count, load, at_e, g)
                left += 1
        else:
            h = at_h
            s = share[at_e, g]
            _drop(share, hosts, count, load, at_e, g)
            if kind == _MERGE:
                left += 1
            if kind == _SWAP:
                other = share[at_i, h]
                _drop(share, hosts, count, load, at_i, h)
                _put(share, hosts, count, load, at_i, g, other)
            _put(share, hosts, count, load, at_e, h, s)
        for k in (g, h):
            load[k] = share[:, k].sum()  # differences would leave dust behind
            time[k] = time_of(cost, count[k], load[k])
    return time.max(), left


@njit(cache=True, nogil=True)
def _kick(share: Any, hosts: Any, slots: int, random: Any) -> None:
    """Swap a few random shares between random GPUs."""
    experts, gpus = share.shape
    count, load = hosts.sum(axis=0), share.sum(axis=0)
    for _ in range(1 + below(random, 3)):
        for _ in range(20):
            g, h = below(random, gpus), below(random, gpus)
            e, i = below(random, experts), below(random, experts)
            if g == h or not hosts[e, g] or hosts[e, h]:
                continue
            moved = share[e, g]
            if hosts[i, h] and not hosts[i, g]:
                other = share[i, h]
                _drop(share, hosts, count, load, i, h)
                _put(share, hosts, count, load, i, g, other)
            elif count[h] >= slots:
                continue
            _drop(share, hosts, count, load, e, g)
            _put(share, hosts, count, load, e, h, moved)
            break


@njit(cache=True, nogil=True)
def _wander(
    cost: Any,
    share: Any,
    hosts: Any,
    slots: int,
    left: int,
    target: Any,
    kicks: int,
    random: Any,
) -> Any:
    """Descend and kick until ``kicks`` attempts in a row failed; in place.

    Return (time, replicas left).
    """
    time, left = _descend(cost, share, hosts, slots, left, target)
    failed = 0
    while failed < kicks and time > target:
        other_share, other_hosts = share.copy(), hosts.copy()
        _kick(other_share, other_hosts, slots, random)
        other, other_left = _descend(cost, other_share, other_hosts, slots, left, target)
        failed = 0 if other < time * (1.0 - 1e-7) else failed + 1
        if other < time:
            time, left = other, other_left
            share[:] = other_share
            hosts[:] = other_hosts
    return time, left


@njit(cache=True, nogil=True)
def _pieces(cost: Any, tokens: Any, gpus: int, extra: int, target: Any, variant: int) -> Any:
    """Pieces of each expert, as many as the target demands; and the additional replicas left.

    Later variants cut smaller pieces, which leave room for others beside them: counts stay level.
    The last one cuts nothing.
    """
    pieces = np.ones(len(tokens), dtype=np.int64)
    left = extra
    if variant == _VARIANTS:
        return pieces, left
    room = room_of(cost, target, 1 + 2 * variant) * (1.0 - 0.1 * variant)
    for e in np.argsort(-tokens, kind="mergesort"):
        want = gpus if room <= 0.0 else int(min(gpus, np.ceil(tokens[e] / room)))
        pieces[e] = max(1, min(want, left + 1))
        left -= pieces[e] - 1
    return pieces, left


@njit(cache=True, nogil=True)
def search(
    cost: Any, tokens: Any, gpus: int, extra: int, slots: int, target: Any, kicks: int, seed: int
) -> Any:
    """Look for hosts and shares of one layer with at most ``extra`` additional replicas.

    Parameters
    ----------
    tokens : float array, shape (E,)
        Of experts that are charged: one without tokens takes a replica's time.
    slots : int
        Most replicas on a GPU.
    target : float
        The search ends there (and pieces are cut for it).
    kicks : int
        Attempts after the last improvement.

    Returns
    -------
    time : float
        ``inf`` if there is no room.
    share : float array, shape (E, G)
    hosts : bool array, shape (E, G)
    """
    experts = len(tokens)
    random = np.array([np.uint64(seed * 2 + 1) * np.uint64(0x9E3779B97F4A7C15)], dtype=np.uint64)
    best_time, best_left = np.inf, 0
    best_share = np.zeros((experts, gpus))
    best_hosts = np.zeros((experts, gpus), dtype=np.bool_)
    for variant in range(_VARIANTS + 1):
        if best_time < np.inf and (variant == _VARIANTS or best_time <= target):
            break
        share = np.zeros((experts, gpus))
        hosts = np.zeros((experts, gpus), dtype=np.bool_)
        pieces, left = _pieces(cost, tokens, gpus, extra, target, variant)
        if not _start(tokens, pieces, slots, share, hosts):
            continue
        # A split costs time for good: first try without further ones.
        time, free = _wander(cost, share, hosts, slots, 0, target, kicks, random)
        if time < best_time:
            best_time, best_left = time, left + free
            best_share, best_hosts = share, hosts
    if best_time < np.inf and best_time > target and best_left > 0:
        best_time, _ = _wander(
            cost, best_share, best_hosts, slots, best_left, target, kicks, random
        )
    return best_time, best_share, best_hosts
