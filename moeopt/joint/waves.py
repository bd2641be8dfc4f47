"""Which requests decode together: numbers of requests of each class and wave.

Requests are sorted by output length; waves are contiguous pieces of that order (two waves of mixed
lengths can exchange requests until they are), found by dynamic programming over an estimate of the
step time, for several budgets of KV memory a wave. Waves of equal length then share their
requests evenly: by Jensen's inequality equal waves are the cheapest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moeopt.joint.memory import request_classes
from moeopt.problem import FloatArray, IntArray, ProblemData, RequestClasses
from moeopt.step_bound import kv_memory_mib

#: Pieces into which the requests are cut for the dynamic programme.
_PIECES = 240
#: Shares of the KV memory that a wave may use, tried one after the other.
_BUDGETS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.12)

#: A wave's cache beside the least that some wave must have, tried one after the other.
_MARGINS = (1e9, 2.0, 1.3, 1.1, 1.03, 1.01, 1.003, 1.0)


@dataclass(frozen=True)
class Chunk:
    """Requests of one class that stay together in the dynamic programme."""

    request_class: int
    count: int


def wave_steps(data: ProblemData, counts: IntArray) -> IntArray:
    """Steps of each wave of these requests, 0 where it is empty: (C, W) -> (W,)."""
    present = counts > 0
    if data.wave_steps is not None:
        return np.where(present.any(axis=0), np.array(data.wave_steps), 0)
    return np.asarray((request_classes(data).output_tokens[:, None] * present).max(axis=0))


def wave_plans(data: ProblemData) -> Iterator[IntArray]:
    """Yield numbers of requests of each class and wave, shape (C, W).

    The best estimate comes first.
    """
    chunks = _chunks(data)
    memory = kv_memory_mib(data)
    plans = []
    for budget in _BUDGETS:
        found = _cut(data, chunks, budget * memory)
        if found is not None:
            plans.append(found)
    for _, counts in sorted(plans, key=lambda item: item[0]):
        yield evened(data, counts)
        yield counts


def evened(data: ProblemData, counts: IntArray) -> IntArray:
    """Share the requests of waves of equal length evenly among them, caches level."""
    steps = wave_steps(data, counts)
    kv = request_classes(data).kv_mib
    level = counts.copy()
    for length in sorted({int(d) for d in steps if d > 0}):
        waves = np.flatnonzero(steps == length)
        level[:, waves] = _evenly(counts[:, waves], kv)
    return level


def _evenly(counts: IntArray, kv_mib: FloatArray) -> IntArray:
    """Deal the requests of some waves out evenly: shape (C, waves)."""
    waves = counts.shape[1]
    level = np.zeros_like(counts)
    used = np.zeros(waves)
    for c in np.argsort(-kv_mib, kind="stable").tolist():
        each, more = divmod(int(counts[c].sum()), waves)
        extra = np.argsort(used, kind="stable")[:more]
        level[c] = each
        level[c, extra] += 1
        used[extra] += kv_mib[c]
    return level


def waves_of_lengths(data: ProblemData, lengths: tuple[int, ...]) -> Iterator[IntArray]:
    """Yield ways to fill waves of these lengths (0: not used), shape (C, W).

    A request goes to the shortest waves that are long enough and, where these are full, to longer
    ones. Waves are full at several amounts of cache, from all that one copy of every expert leaves
    down to what the requests need in any case.
    """
    requests = request_classes(data)
    outputs, kv = requests.output_tokens, requests.kv_mib
    least = 0.0
    for t in set(outputs.tolist()):
        long_enough = sum(d >= t for d in lengths)
        if not long_enough:
            return
        caches = float((requests.count * kv)[outputs >= t].sum())
        least = max(least, caches / long_enough)
    most = kv_memory_mib(data)
    for margin in _MARGINS:
        found = _fill(requests, lengths, min(most, least * margin))
        if found is not None:
            yield found


def _fill(requests: RequestClasses, lengths: tuple[int, ...], full_mib: float) -> IntArray | None:
    """Fill waves up to so much cache; None if the requests do not fit this way."""
    outputs, kv = requests.output_tokens, requests.kv_mib
    groups = sorted({d for d in lengths if d > 0})
    waves = [np.flatnonzero(np.array(lengths) == d) for d in groups]
    room = [len(w) * full_mib for w in waves]
    counts = np.zeros((len(kv), len(lengths)), dtype=np.int64)
    for c in sorted(range(len(kv)), key=lambda c: (-int(outputs[c]), -float(kv[c]), c)):
        left = int(requests.count[c])
        for i, d in enumerate(groups):
            if d < outputs[c]:
                continue
            fits = left if kv[c] == 0 else min(left, int(max(0.0, room[i]) // kv[c]))
            counts[c, waves[i][0]] = fits
            room[i] -= fits * kv[c]
            left -= fits
        if left:
            return None
    for w in waves:
        counts[:, w] = _evenly(counts[:, w], kv)
    return counts


def _chunks(data: ProblemData) -> list[Chunk]:
    requests = request_classes(data)
    size = max(1, math.ceil(int(requests.count.sum()) / _PIECES))
    order = sorted(range(len(requests.names)), key=lambda c: (-int(requests.output_tokens[c]), c))
    return [
        Chunk(c, min(size, int(requests.count[c]) - first))
        for c in order
        for first in range(0, int(requests.count[c]), size)
    ]


def _cut(
    data: ProblemData, chunks: list[Chunk], kv_limit_mib: float
) -> tuple[float, IntArray] | None:
    """Cut the sorted requests into at most ``data.waves`` waves of least estimated makespan."""
    requests = request_classes(data)
    count = np.array([chunk.count for chunk in chunks])
    kv = np.array([requests.kv_mib[chunk.request_class] * chunk.count for chunk in chunks])
    longest = np.array([int(requests.output_tokens[chunk.request_class]) for chunk in chunks])
    ends_n, ends_kv = np.cumsum(count), np.cumsum(kv)
    total = len(chunks)
    steps = sorted(data.wave_steps, reverse=True) if data.wave_steps is not None else None
    cost = np.full((data.waves + 1, total + 1), np.inf)
    cost[0, 0] = 0.0
    came = np.zeros((data.waves + 1, total + 1), dtype=np.int64)
    for w in range(data.waves):
        cost[w + 1] = cost[w]  # the wave stays empty
        came[w + 1] = np.arange(total + 1)
        for first in range(total):
            if not np.isfinite(cost[w, first]):
                continue
            run = int(longest[first]) if steps is None else steps[w]
            if run < longest[first]:
                continue
            n = ends_n[first:] - (ends_n[first - 1] if first else 0)
            used = ends_kv[first:] - (ends_kv[first - 1] if first else 0.0)
            value = cost[w, first] + run * _step_estimate(data, n, used)
            value[used > kv_limit_mib] = np.inf
            better = np.flatnonzero(value < cost[w + 1, first + 1 :])
            cost[w + 1, first + 1 + better] = value[better]
            came[w + 1, first + 1 + better] = first
    if not np.isfinite(cost[data.waves, total]):
        return None
    counts = np.zeros((len(requests.names), data.waves), dtype=np.int64)
    end = total
    wave_of_rank = np.arange(data.waves)
    if data.wave_steps is not None:
        wave_of_rank = np.argsort(-np.array(data.wave_steps), kind="stable")
    for w in range(data.waves, 0, -1):
        first = int(came[w, end])
        for chunk in chunks[first:end]:
            counts[chunk.request_class, wave_of_rank[w - 1]] += chunk.count
        end = first
    return float(cost[data.waves, total]), counts


def _step_estimate(data: ProblemData, n: FloatArray | IntArray, kv_mib: FloatArray) -> FloatArray:
    """Step time with balanced GPUs, one copy of each expert active."""
    layer = data.layer_time.of(math.ceil(data.experts / data.gpus), data.top_k * n / data.gpus)
    attention = data.attention_base_us + data.attention_us_per_mib * kv_mib / data.gpus
    return np.asarray(attention + data.layers * layer)
