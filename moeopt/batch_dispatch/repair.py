"""Better dispatches from a given one, compiled: annealing of shares, and an exact split.

Annealing lowers ``Σ_g max(0, f_g − T)²`` for a target T: a move brings a replica's share, or the
part of it that levels both GPUs, to another replica of its expert; a GPU that receives a share may
pass another one on. The split keeps the activated
replicas and levels their tokens exactly: bisection on T over max-flows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from moeopt.balance.state import below
from moeopt.batch_dispatch.data import LayerBatch
from moeopt.batch_dispatch.flow import route
from moeopt.dispatch_time import FORMS, gpu_time
from moeopt.problem import IntArray

#: Portions of the moves that split a share, and of those where the taker passes a share on.
_PART, _PASSED = 0.2, 0.5
#: Temperature in squares of the excess to begin with, and what is left of it in the end.
_HOT, _COOLED = 4.0, 1e-2
#: Bisections of the exact split, each a flow.
_HALVINGS = 14


@njit(cache=True)
def _totals(gpu: Any, sent: Any, activated: Any, load: Any) -> None:
    activated[:] = 0.0
    load[:] = 0.0
    for r in range(len(sent)):
        if sent[r] > 0:
            activated[gpu[r]] += 1.0
            load[gpu[r]] += sent[r]


@njit(cache=True)
def _largest(form: int, cost: Any, activated: Any, load: Any) -> float:
    worst = gpu_time(form, cost, activated[0], load[0])
    for g in range(1, len(load)):
        worst = max(worst, gpu_time(form, cost, activated[g], load[g]))
    return worst


@njit(cache=True)
def _over(form: int, cost: Any, activated: float, tokens: float, target: float) -> float:
    return max(0.0, gpu_time(form, cost, activated, tokens) - target) ** 2


@njit(cache=True)
def _levelling_part(
    form: int, cost: Any, a: float, n: float, opened: float, m: float, whole: int
) -> int:
    """Least part that leaves the giver no later than the taker, of 1 to ``whole`` tokens."""
    low, high = 0, whole
    while high - low > 1:
        part = (low + high) // 2
        if gpu_time(form, cost, a, n - part) >= gpu_time(form, cost, opened, m + part):
            low = part
        else:
            high = part
    return high


@njit(cache=True)
def _shift(r: int, to: int, part: int, gpu: Any, sent: Any, activated: Any, load: Any) -> None:
    """Bring tokens from one replica to another of the same expert."""
    g, h = gpu[r], gpu[to]
    if sent[to] == 0:
        activated[h] += 1.0
    sent[r] -= part
    sent[to] += part
    if sent[r] == 0:
        activated[g] -= 1.0
    load[g] -= part
    load[h] += part


@njit(cache=True)
def _anneal(
    first: Any,
    gpu: Any,
    owner: Any,
    movable_first: Any,
    movable: Any,
    form: int,
    cost: Any,
    gpus: int,
    sent: Any,
    target: float,
    steps: int,
    random: np.random.Generator,
) -> float:
    """Anneal towards a target; leave the best dispatch met in ``sent`` and return its time."""
    activated, load = np.zeros(gpus), np.zeros(gpus)
    _totals(gpu, sent, activated, load)
    best = sent.copy()
    best_time = _largest(form, cost, activated, load)
    temperature = _HOT * (best_time - target) ** 2
    factor = _COOLED ** (1.0 / max(1, steps))
    for _ in range(steps):
        temperature *= factor
        r = movable[below(random, len(movable))]
        g, e = gpu[r], owner[r]
        if sent[r] == 0:
            continue
        to = first[e] + below(random, first[e + 1] - first[e])
        if to == r:
            continue
        h, whole = gpu[to], sent[r]
        kind = random.random()
        part = whole
        if kind < _PART and whole > 1:
            opened = activated[h] + (1.0 if sent[to] == 0 else 0.0)
            part = _levelling_part(form, cost, activated[g], load[g], opened, load[h], whole)
        # A share that the other GPU passes on, perhaps back.
        r2, to2, part2, k = -1, -1, 0, -1
        if kind > 1.0 - _PASSED:
            r2 = movable[movable_first[h] + below(random, movable_first[h + 1] - movable_first[h])]
            e2 = owner[r2]
            to2 = first[e2] + below(random, first[e2 + 1] - first[e2])
            if e2 == e or to2 == r2 or sent[r2] == 0:
                continue
            k, part2 = gpu[to2], sent[r2]
        before = _over(form, cost, activated[g], load[g], target)
        before += _over(form, cost, activated[h], load[h], target)
        if k >= 0 and k != g:
            before += _over(form, cost, activated[k], load[k], target)
        if before == 0.0:
            continue  # nothing to gain here
        _shift(r, to, part, gpu, sent, activated, load)
        if k >= 0:
            _shift(r2, to2, part2, gpu, sent, activated, load)
        after = _over(form, cost, activated[g], load[g], target)
        after += _over(form, cost, activated[h], load[h], target)
        if k >= 0 and k != g:
            after += _over(form, cost, activated[k], load[k], target)
        delta = after - before
        if delta > 0.0 and delta >= -temperature * math.log(1.0 - random.random()):
            if k >= 0:
                _shift(to2, r2, part2, gpu, sent, activated, load)
            _shift(to, r, part, gpu, sent, activated, load)
        elif delta < 0.0 and after < (best_time - target) ** 2:
            time = _largest(form, cost, activated, load)
            if time < best_time:
                best_time = time
                best[:] = sent
                if time <= target:
                    break
    sent[:] = best
    return best_time


@njit(cache=True)
def _room(form: int, cost: Any, activated: float, time: float, most: int) -> int:
    """Most whole tokens, up to ``most``, within a time; -1 where not even none."""
    if gpu_time(form, cost, activated, 0.0) > time:
        return -1
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if gpu_time(form, cost, activated, float(middle)) <= time:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True)
def _split(
    first: Any,
    gpu: Any,
    owner: Any,
    on_first: Any,
    on: Any,
    order: Any,
    tokens: Any,
    form: int,
    cost: Any,
    gpus: int,
    sent: Any,
    lower: float,
    halvings: int,
) -> float:
    """Level tokens over the replicas in use; change ``sent`` and return its time."""
    activated, load = np.zeros(gpus), np.zeros(gpus)
    _totals(gpu, sent, activated, load)
    best = _largest(form, cost, activated, load)
    is_open = sent > 0
    total = tokens.sum()
    free, reached = np.zeros(gpus, dtype=np.int64), np.zeros(gpus, dtype=np.bool_)
    trial = np.zeros(len(sent), dtype=np.int64)
    low = lower
    time = lower  # often attained
    for _ in range(halvings):
        if not time < best * (1.0 - 1e-9):
            break
        fits = True
        for g in range(gpus):
            free[g] = _room(form, cost, activated[g], time, total)
            fits = fits and free[g] >= 0
        if fits:
            trial[:] = 0
            left = tokens.copy()
            fits = route(
                first, gpu, owner, on_first, on, order, is_open, left, trial, free, reached
            )
        if fits:
            sent[:] = trial
            _totals(gpu, sent, activated, load)
            # Replicas that became idle are charged no more.
            best = min(best, _largest(form, cost, activated, load))
            is_open[:] = sent > 0
        else:
            low = time
        time = (low + best) / 2.0
    return best


def anneal(
    batch: LayerBatch,
    sent: IntArray,
    target: float,
    steps: int,
    random: np.random.Generator,
) -> float:
    """Improve a dispatch towards a target time; change ``sent`` and return its time.

    Parameters
    ----------
    batch : LayerBatch
    sent : int array, shape (R,)
    target : float
        In us.
    steps : int
    random : numpy.random.Generator
    """
    on = batch.on[1]
    movable = on[(batch.copies > 1)[batch.owner[on]]]
    counts = np.bincount(batch.gpu[movable], minlength=batch.gpus)
    movable_first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return float(
        _anneal(
            batch.first,
            batch.gpu,
            batch.owner,
            movable_first,
            movable,
            FORMS[batch.layer_time.form],
            batch.cost,
            batch.gpus,
            sent,
            target,
            steps if len(movable) else 0,
            random,
        )
    )


def split(batch: LayerBatch, sent: IntArray, lower: float, halvings: int = _HALVINGS) -> float:
    """Level the tokens of the activated replicas; change ``sent`` and return its time.

    Parameters
    ----------
    batch : LayerBatch
    sent : int array, shape (R,)
    lower : float
        A lower bound of the time, in us: tried first.
    halvings : int
        Flows at most.
    """
    return float(
        _split(
            batch.first,
            batch.gpu,
            batch.owner,
            *batch.on,
            batch.order,
            batch.tokens,
            FORMS[batch.layer_time.form],
            batch.cost,
            batch.gpus,
            sent,
            lower,
            halvings,
        )
    )
