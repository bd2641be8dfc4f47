"""Branch on the numbers of requests of waves of given lengths, and compositions from it.

The narrower a wave's range, the better its cuts know whether a split of an expert may pay
(:mod:`moeopt.joint.minorants`).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count as counter

import numpy as np

from moeopt.joint.memory import request_classes
from moeopt.joint.minorants import Domain
from moeopt.joint.waves_program import WavesBound, WavesProgram
from moeopt.problem import FloatArray, IntArray, ProblemData

#: A part is final if its layers lack no more of its bound.
_WORTH = 5e-4

#: Where a range is cut: so far from the programme's solution to the farther end.
_CUT = 0.25


@dataclass(frozen=True)
class WaveRanges:
    """Waves in use with their lengths, numbers of requests and bound."""

    lengths: tuple[int, ...]
    domains: tuple[Domain, ...]
    bound: WavesBound

    @property
    def is_final(self) -> bool:
        """Whether narrower ranges would not raise the bound by much."""
        lacking = float(self.bound.missing.sum())
        return (
            self.bound.requests is None
            or lacking <= _WORTH * self.bound.value
            or all(domain.least == domain.most for domain in self.domains)
        )

    @property
    def estimate(self) -> float:
        """What the waves of the programme's solution take if the layers meet their bounds."""
        return self.bound.value + float(self.bound.missing.sum())


def whole(
    program: WavesProgram, lengths: tuple[int, ...], memory_share: float = 1.0
) -> WaveRanges | None:
    """Bound waves of these lengths, whatever they hold; None if one fits no request."""
    domains = agreeing(program.count, tuple(program.widest(d) for d in lengths))
    if domains is None:
        return None
    bound = program.bound(lengths, domains, memory_share=memory_share)
    return WaveRanges(lengths, domains, bound)


def parts(program: WavesProgram, waves: WaveRanges, memory_share: float = 1.0) -> list[WaveRanges]:
    """Divide the widest range of the wave whose layers lack most; what is empty is left out."""
    assert waves.bound.requests is not None
    open_waves = [w for w, domain in enumerate(waves.domains) if domain.least != domain.most]
    w = max(open_waves, key=lambda w: waves.bound.missing[w])
    domain, here = waves.domains[w], waves.bound.requests[:, w]
    widths = [b - a for a, b in zip(domain.least, domain.most, strict=True)]
    c = int(np.argmax(widths))
    if domain.high - domain.low >= widths[c]:
        middle = _middle(domain.low, domain.high, float(here.sum()))
        halves = [replace(domain, high=middle), replace(domain, low=middle + 1)]
    else:
        middle = _middle(domain.least[c], domain.most[c], float(here[c]))
        halves = [
            replace(domain, most=(*domain.most[:c], middle, *domain.most[c + 1 :])),
            replace(domain, least=(*domain.least[:c], middle + 1, *domain.least[c + 1 :])),
        ]
    divided = []
    for half in halves:
        domains = agreeing(program.count, (*waves.domains[:w], half, *waves.domains[w + 1 :]))
        if domains is not None:
            bound = program.bound(waves.lengths, domains, memory_share=memory_share)
            divided.append(WaveRanges(waves.lengths, domains, bound))
    return divided


def _middle(low: int, high: int, here: float) -> int:
    """Where to cut a range: between the programme's solution and the farther end."""
    farther = high if high - here > here - low else low
    return min(high - 1, max(low, math.floor(here + _CUT * (farther - here))))


def agreeing(count: IntArray, domains: tuple[Domain, ...]) -> tuple[Domain, ...] | None:
    """What a wave surely holds no other one may; None if that leaves no waves."""
    least = np.array([domain.least for domain in domains])
    most = np.array([domain.most for domain in domains])
    most = np.minimum(most, count - least.sum(axis=0) + least)
    least = np.maximum(least, count - most.sum(axis=0) + most)
    agreeing = []
    for domain, a, b in zip(domains, least.tolist(), most.tolist(), strict=True):
        tight = replace(domain, least=tuple(a), most=tuple(b)).tightened()
        if tight is None:
            return None
        agreeing.append(tight)
    return tuple(agreeing)


def best_requests(
    data: ProblemData,
    lengths: tuple[int, ...],
    *,
    memory_share: float,
    deadline: float,
    stop: Callable[[], bool] = lambda: False,
) -> IntArray | None:
    """Requests of each class and wave, shape (C, W), that suit waves of these lengths.

    Parameters
    ----------
    lengths : tuple of int
        0: not used.
    memory_share : float
        Of the memory beside one copy of every expert, for the caches of a wave.
    """
    used = [w for w, d in enumerate(lengths) if d]
    program = WavesProgram(data)
    first = whole(program, tuple(lengths[w] for w in used), memory_share)
    if first is None:
        return None
    order = counter()
    heap = [(first.bound.value, next(order), first)]
    best = first
    while heap:
        _, _, waves = heapq.heappop(heap)
        if waves.is_final or time.monotonic() > deadline or stop():
            break
        for part in parts(program, waves, memory_share):
            if part.bound.requests is not None and part.estimate < best.estimate:
                best = part
            if part.bound.value < best.estimate:
                heapq.heappush(heap, (part.bound.value, next(order), part))
    if best.bound.requests is None:
        return None
    requests = request_classes(data)
    counts = np.zeros((len(requests.count), len(lengths)), dtype=np.int64)
    counts[:, used] = _whole_requests(best.bound.requests, requests.count)
    too_short = (counts > 0) & (requests.output_tokens[:, None] > np.array(lengths))
    return None if too_short.any() else counts


def _whole_requests(requests: FloatArray, count: IntArray) -> IntArray:
    """Round the requests of each class to whole ones that add up."""
    counts = np.floor(requests + 1e-6).astype(np.int64)
    for c, total in enumerate(count.tolist()):
        left = total - int(counts[c].sum())
        nearest = np.argsort(counts[c] - requests[c], kind="stable")
        counts[c, nearest[: max(0, left)]] += 1
        if left > len(nearest):  # the programme left requests without a wave
            counts[c, nearest[0]] += left - len(nearest)
    return counts
