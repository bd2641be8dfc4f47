"""What no plan exceeds: throughput under a limit of the step time, by branch and bound on n.

Let n requests of the mix decode together. LB(w, κ; R) bounds the step with expert tokens w, cache
κ and at most R additional replicas (:class:`moeopt.joint.step_function.StepFunction`). It does not
decrease in w or κ, nor increase in R. For n in [n1, n2] take the least tokens of every expert, the
least cache, and R beside that cache, over the **rounded** counts of all n in the range:

*Step.* Every plan of the range needs at least LB, so n / step <= n2 / LB; and the range is out
where LB exceeds the limit.

*Rate.* S·LB(w/S, κ/S; R) does not decrease in S (docs/bounds/layers.md; the attention is taken at
the mean cache of the GPUs here). So with w(n) >= n·μ, κ(n) >= n·ν for all n of the range::

    n / LB(w(n), κ(n); R)  <=  n / LB(n·μ, n·ν; R)  <=  n2 / LB(n2·μ, n2·ν; R)

A range of one n has its exact counts, and whole requests (:func:`largest_cache`). Ranges are
halved, the one with the largest throughput first; all limits share one tree. The first single n
that is taken ends a search: nothing that is left is larger.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moeopt.front.steady import SteadyState
from moeopt.front.whole import whole_bound
from moeopt.joint.knapsack import share_out
from moeopt.joint.memory import memory_of, request_classes
from moeopt.joint.step_function import StepFunction
from moeopt.joint.whole_requests import largest_cache
from moeopt.problem import FloatArray
from moeopt.units import BYTES_PER_MIB

_US_PER_S = 1e6
_MIB_PER_BYTE = 1.0 / BYTES_PER_MIB

#: Ranges up to this length look at the expert tokens of every n.
_EVERY = 64

# Sums of a few thousand terms, each rounded once or twice: far below this.
_SAFE = 1.0 - 2.0**-30


@dataclass(frozen=True)
class Range:
    """Bounds of all plans with ``first`` to ``last`` requests in flight.

    Attributes
    ----------
    step_us : float
        None is faster.
    throughput : float
        None decodes more tokens a second.
    """

    first: int
    last: int
    step_us: float
    throughput: float


class Envelope:
    """Bounds of one steady state, computed once and kept."""

    def __init__(self, steady: SteadyState) -> None:
        self.steady = steady
        self.step = StepFunction(steady.data)
        self.memory = memory_of(steady.data)
        requests = request_classes(steady.data)
        self.usage = requests.usage
        self.least_usage = requests.usage.min(axis=0)
        self.cache = steady.counts @ self.memory.kv  # bytes, of every n
        self._ranges: dict[tuple[int, int], Range] = {}

    @property
    def computed(self) -> int:
        """Ranges that were bounded so far."""
        return len(self._ranges)

    # --- bounds

    def range(self, first: int, last: int) -> Range:
        """Bound all plans with ``first`` to ``last`` requests in flight."""
        key = (first, last)
        if key not in self._ranges:
            self._ranges[key] = self._single(first) if first == last else self._several(*key)
        return self._ranges[key]

    def _single(self, n: int) -> Range:
        tokens = np.einsum("c,cle->le", self.steady.counts[n].astype(np.float64), self.usage)
        cache = int(self.cache[n])
        replicas = self.memory.additional(cache)
        if replicas < 0:
            return Range(n, n, math.inf, 0.0)
        gpus = self.steady.data.gpus
        fullest = largest_cache(self.steady.counts[n], self.memory.kv, gpus)
        step = self._step(tokens, cache, replicas, fullest * gpus)
        return Range(n, n, step, n / step * _US_PER_S)

    def with_replicas(self, n: int, replicas: int) -> Range:
        """Bound plans of n requests with at most so many additional replicas, in any memory."""
        tokens = np.einsum("c,cle->le", self.steady.counts[n].astype(np.float64), self.usage)
        step = self._step(tokens, 0, replicas, float(self.cache[n]))
        return Range(n, n, step, n / step * _US_PER_S)

    def _several(self, first: int, last: int) -> Range:
        caches = self.cache[first : last + 1]
        least = int(caches.min())
        replicas = self.memory.additional(least)
        if replicas < 0:
            return Range(first, last, math.inf, 0.0)
        tokens, rate = self._least_tokens(first, last)
        step = self._step(tokens, least, replicas, least)
        cache_rate = float((caches / np.arange(first, last + 1)).min())
        even = self._step(last * rate, 0, replicas, last * cache_rate)
        return Range(first, last, step, last / max(step, even) * _US_PER_S)

    def _step(self, tokens: FloatArray, cache: int, replicas: int, even: float) -> float:
        """Bound a step with so much cache, some GPU's at least ``even`` / G (both in bytes)."""
        data = self.steady.data
        found = self.step.bound(tokens, cache * _MIB_PER_BYTE, replicas, mean=False)
        attention = float(data.attention_us_per_mib * even * _MIB_PER_BYTE / data.gpus)
        if data.uniform_slots:
            return max(float(found.step_us), self._layers(tokens, replicas) + attention) * _SAFE
        whole = [
            whole_bound(self.step.cost, w, self.step.charged(l, w, False), data.gpus)
            for l, w in enumerate(tokens)
        ]
        layers, _ = share_out(np.maximum(found.table, np.array(whole)[:, None]), replicas)
        return max(float(found.step_us), data.attention_base_us + layers + attention) * _SAFE

    def _layers(self, tokens: FloatArray, replicas: int) -> float:
        """Bound a step without cache."""
        return float(self.step.bound(tokens, 0.0, replicas, mean=False).step_us)

    def _least_tokens(self, first: int, last: int) -> tuple[FloatArray, FloatArray]:
        """Least tokens of each expert, and least tokens a request: two arrays (L, E)."""
        counts = self.steady.counts[first : last + 1].astype(np.float64)
        n = np.arange(first, last + 1, dtype=np.float64)
        if last - first < _EVERY:
            tokens = np.einsum("nc,cle->nle", counts, self.usage, optimize=True)
            rates = tokens / n[:, None, None]
            return tokens.min(axis=0) * _SAFE, rates.min(axis=0) * _SAFE
        return (
            self._at_least(counts.min(axis=0), float(first)) * _SAFE,
            self._at_least((counts / n[:, None]).min(axis=0), 1.0) * _SAFE,
        )

    def _at_least(self, counts: FloatArray, total: float) -> FloatArray:
        """Tokens of so many of each class; the others use what every class uses at least."""
        others = max(0.0, total - float(counts.sum()))
        return np.asarray(np.einsum("c,cle->le", counts, self.usage) + others * self.least_usage)

    # --- search

    def singles(
        self, limit_us: float = math.inf, *, most: int | None = None, enough: float = 0.0
    ) -> Iterator[Range]:
        """Yield numbers of requests that may fit the limit, by falling bound of their throughput.

        Parameters
        ----------
        most : int, optional
            Only up to this n.
        enough : float
            Ranges that cannot exceed this throughput are not divided: the last one yielded may be
            such a range.
        """
        last = self.steady.most if most is None else most
        if last < 1:
            return
        heap: list[tuple[float, int, int]] = []

        def add(first: int, last: int, above: float) -> None:
            bounds = self.range(first, last)
            if bounds.step_us <= limit_us and bounds.step_us < math.inf:
                heapq.heappush(heap, (-min(above, bounds.throughput), first, last))

        add(1, last, math.inf)
        while heap:
            bound, first, last = heapq.heappop(heap)
            found = self.range(first, last)
            if first == last or -bound <= enough:
                yield Range(first, last, found.step_us, -bound)
                continue
            middle = (first + last) // 2
            add(first, middle, -bound)
            add(middle + 1, last, -bound)
