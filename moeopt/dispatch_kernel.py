"""One decode step, compiled: tokens → experts → replicas → layer times.

Three dispatch rules, all with whole tokens:

- ``even``: an expert's tokens in equal parts over its replicas; what is left over goes round the
  replicas from step to step (what serving systems do);
- ``plan``: in the shares that the plan states, by largest remainder;
- ``level``: whole experts, those with the fewest replicas first, then the largest, each to the
  replica that ends earliest; then shares of the worst GPU are moved or split, or moved to a GPU
  that passes a share of its own on, as long as all GPUs concerned end earlier (near the rule of
  :mod:`moeopt.dispatch_rule`, compiled; never below the exact layer time).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.dispatch_time import gpu_time

RULES = {"even": 0, "plan": 1, "level": 2}
_IMPROVEMENTS = 48


@njit(cache=True)
def layer_step(
    counts: Any,
    first: Any,
    gpu: Any,
    share: Any,
    rule: int,
    turn: int,
    form: int,
    cost: Any,
    sent: Any,
    activated: Any,
    load: Any,
) -> float:
    """Dispatch one layer; return its time.

    Parameters
    ----------
    counts : int array, shape (E,)
        Tokens of each expert.
    first : int array, shape (E + 1,)
        Replicas of expert e are ``first[e]`` to ``first[e + 1]`` of ``gpu`` and ``share``.
    gpu : int array, shape (R,)
    share : float array, shape (R,)
        For the rule ``plan``; sums to 1 for each expert.
    rule, turn, form : int
        :data:`RULES`; number of the step; :data:`moeopt.dispatch_time.FORMS`.
    cost : float array, shape (4,)
    sent : int array, shape (R,)
        Overwritten: tokens of each replica.
    activated, load : float arrays, shape (G,)
        Overwritten: activated replicas and tokens of each GPU.
    """
    activated[:] = 0.0
    load[:] = 0.0
    sent[first[0] : first[-1]] = 0
    if rule == 2:
        _level(counts, first, gpu, form, cost, sent, activated, load)
    else:
        for e in range(len(counts)):
            n, begin, end = counts[e], first[e], first[e + 1]
            if n == 0:
                continue
            if end - begin == 1:
                sent[begin] = n
            elif rule == 0:
                each, over = n // (end - begin), n % (end - begin)
                for i in range(end - begin):
                    sent[begin + (i + turn) % (end - begin)] = each + (1 if i < over else 0)
            else:
                _by_share(n, share[begin:end], sent[begin:end])
            for r in range(begin, end):
                if sent[r] > 0:
                    activated[gpu[r]] += 1.0
                    load[gpu[r]] += sent[r]
    worst = gpu_time(form, cost, activated[0], load[0])
    for g in range(1, len(load)):
        worst = max(worst, gpu_time(form, cost, activated[g], load[g]))
    return worst


@njit(cache=True)
def _by_share(n: int, share: Any, sent: Any) -> None:
    """Whole tokens by largest remainder."""
    left = n
    for i in range(len(share)):
        sent[i] = math.floor(n * share[i] + 1e-9)
        left -= sent[i]
    while left > 0:
        best = 0
        for i in range(1, len(share)):
            if n * share[i] - sent[i] > n * share[best] - sent[best] + 1e-12:
                best = i
        sent[best] += 1
        left -= 1


@njit(cache=True)
def _level(
    counts: Any,
    first: Any,
    gpu: Any,
    form: int,
    cost: Any,
    sent: Any,
    activated: Any,
    load: Any,
) -> None:
    copies = first[1:] - first[:-1]
    # Tokens are far fewer than 2**32: one key sorts by (copies, -tokens).
    order = np.argsort(copies * (1 << 32) - counts, kind="mergesort")
    choice = False
    for e in order:
        n = counts[e]
        if n == 0:
            continue
        choice = choice or copies[e] > 1
        best, best_time, best_load = -1, 0.0, 0.0
        for r in range(first[e], first[e + 1]):
            g = gpu[r]
            time = gpu_time(form, cost, activated[g] + 1.0, load[g] + n)
            if best < 0 or time < best_time or (time == best_time and load[g] < best_load):
                best, best_time, best_load = r, time, load[g]
        _add(best, n, gpu, sent, activated, load)
    for _ in range(_IMPROVEMENTS if choice else 0):
        worst, worst_time = 0, -1.0
        for g in range(len(load)):
            time = gpu_time(form, cost, activated[g], load[g])
            if time > worst_time:
                worst, worst_time = g, time
        limit = worst_time * (1.0 - 1e-9)
        source, target, amount = _best_move(
            counts, first, gpu, form, cost, sent, activated, load, worst, limit
        )
        if source >= 0:
            _add(source, -amount, gpu, sent, activated, load)
            _add(target, amount, gpu, sent, activated, load)
        elif not _pass_on(counts, first, gpu, form, cost, sent, activated, load, worst, limit):
            return


@njit(cache=True)
def _add(r: int, amount: int, gpu: Any, sent: Any, activated: Any, load: Any) -> None:
    """Send ``amount`` more tokens to a replica (fewer if negative)."""
    before = sent[r] > 0
    sent[r] += amount
    load[gpu[r]] += amount
    if (sent[r] > 0) != before:
        activated[gpu[r]] += 1.0 if sent[r] > 0 else -1.0


@njit(cache=True)
def _pass_on(
    counts: Any,
    first: Any,
    gpu: Any,
    form: int,
    cost: Any,
    sent: Any,
    activated: Any,
    load: Any,
    worst: int,
    limit: float,
) -> bool:
    """Move a share off the worst GPU to one that passes a share on, if all three end earlier."""
    for at in range(first[0], first[-1]):
        if gpu[at] != worst or sent[at] == 0:
            continue
        e = np.searchsorted(first, at, side="right") - 1
        whole = sent[at]
        for to in range(first[e], first[e + 1]):
            if to == at:
                continue
            for amount in (whole, (whole + 1) // 2, 1):
                if amount < whole and (cost[3] <= 0.0 or form == 0):
                    continue
                _add(at, -amount, gpu, sent, activated, load)
                _add(to, amount, gpu, sent, activated, load)
                if gpu_time(form, cost, activated[worst], load[worst]) < limit:
                    source, target, part = _best_move(
                        counts, first, gpu, form, cost, sent, activated, load, gpu[to], limit
                    )
                    if source >= 0:
                        _add(source, -part, gpu, sent, activated, load)
                        _add(target, part, gpu, sent, activated, load)
                        return True
                _add(to, -amount, gpu, sent, activated, load)
                _add(at, amount, gpu, sent, activated, load)
    return False


@njit(cache=True)
def _best_move(
    counts: Any,
    first: Any,
    gpu: Any,
    form: int,
    cost: Any,
    sent: Any,
    activated: Any,
    load: Any,
    worst: int,
    limit: float,
) -> tuple[int, int, int]:
    """Move of a share, or of a part of it, off the worst GPU after which both end earliest."""
    best_time, source, target, amount = limit, -1, -1, 0
    for e in range(len(counts)):
        begin, end = first[e], first[e + 1]
        if counts[e] == 0 or end - begin == 1:
            continue
        at = -1
        for r in range(begin, end):
            if gpu[r] == worst and sent[r] > 0:
                at = r
        if at < 0:
            continue
        for r in range(begin, end):
            if r == at:
                continue
            h, whole = gpu[r], sent[at]
            opened = activated[h] + (1.0 if sent[r] == 0 else 0.0)
            time = max(
                gpu_time(form, cost, activated[worst] - 1.0, load[worst] - whole),
                gpu_time(form, cost, opened, load[h] + whole),
            )
            if time < best_time:
                best_time, source, target, amount = time, at, r, whole
            if cost[3] <= 0.0 or form == 0 or whole == 1:
                continue
            # The part that levels both GPUs, by bisection on whole tokens.
            low, high = 0, whole
            while high - low > 1:
                part = (low + high) // 2
                if gpu_time(form, cost, activated[worst], load[worst] - part) >= gpu_time(
                    form, cost, opened, load[h] + part
                ):
                    low = part
                else:
                    high = part
            for part in (low, high):
                if 0 < part < whole:
                    time = max(
                        gpu_time(form, cost, activated[worst], load[worst] - part),
                        gpu_time(form, cost, opened, load[h] + part),
                    )
                    if time < best_time:
                        best_time, source, target, amount = time, at, r, part
    return source, target, amount


@njit(cache=True)
def step_times(
    ids: Any,
    tokens: Any,
    first: Any,
    gpu: Any,
    share: Any,
    rule: int,
    turn: int,
    form: int,
    cost: Any,
    gpus: int,
) -> tuple[float, float]:
    """All layers of one decode step.

    Parameters
    ----------
    ids : unsigned int array, shape (T, L, k)
        Experts of every token of a trace.
    tokens : int array, shape (B,)
        Which tokens are decoded together.
    first : int array, shape (L, E + 1)
        Into ``gpu`` and ``share``.

    Returns
    -------
    layers_us : float
        ``Σ_l max_g f``.
    mean_us : float
        ``Σ_l mean_g f``: what it would be if every GPU ended at the mean.
    """
    layers, experts = first.shape[0], first.shape[1] - 1
    counts = np.zeros(experts, dtype=np.int64)
    sent = np.zeros(len(gpu), dtype=np.int64)
    activated, load = np.zeros(gpus), np.zeros(gpus)
    total, mean = 0.0, 0.0
    for l in range(layers):
        counts[:] = 0
        for t in tokens:
            for i in range(ids.shape[2]):
                counts[ids[t, l, i]] += 1
        total += layer_step(
            counts, first[l], gpu, share, rule, turn, form, cost, sent, activated, load
        )
        for g in range(gpus):
            mean += gpu_time(form, cost, activated[g], load[g]) / gpus
    return total, mean


def level_times(
    ptr: Any, expert: Any, tokens: Any, hosts: Any, form: int, cost: Any
) -> npt.NDArray[np.float64]:
    """Time of every scenario of one layer by the rule ``level``, shape (S,).

    Parameters
    ----------
    ptr, expert, tokens : int arrays
        Scenarios in compressed rows, see :class:`moeopt.problem.Scenarios`.
    hosts : bool array, shape (E, G)
    form, cost
        See :func:`moeopt.dispatch_time.gpu_time`.
    """
    first = np.concatenate([[0], np.cumsum(hosts.sum(axis=1))]).astype(np.int64)
    gpu = np.nonzero(hosts)[1]
    times = np.zeros(len(ptr) - 1)
    _level_times(ptr, expert, tokens, first, gpu, form, cost, hosts.shape[1], times)
    return times


@njit(cache=True)
def _level_times(
    ptr: Any, expert: Any, tokens: Any, first: Any, gpu: Any, form: int, cost: Any, gpus: int,
    times: Any,
) -> None:  # fmt: skip
    counts = np.zeros(len(first) - 1, dtype=np.int64)
    sent = np.zeros(len(gpu), dtype=np.int64)
    share = np.zeros(len(gpu))
    activated, load = np.zeros(gpus), np.zeros(gpus)
    for s in range(len(times)):
        counts[:] = 0
        for i in range(ptr[s], ptr[s + 1]):
            counts[expert[i]] = tokens[i]
        times[s] = layer_step(counts, first, gpu, share, 2, 0, form, cost, sent, activated, load)
