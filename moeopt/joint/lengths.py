"""Lower bound of the makespan: branch and bound over the lengths of the waves.

Let wave w decode ``n_cw`` requests of class c for ``D_w`` steps, ``S = Σ_w D_w``, and let
``δ_c`` be the shortest length in use that is at least ``O_c``. Every request decodes in a wave of
at least ``δ_c`` steps, so ``Σ_w D_w n_cw >= m_c δ_c``. By Jensen's inequality
(:mod:`moeopt.joint.step_function`), for fixed hosts::

    Σ_w D_w τ_w  >=  S·τ(Σ_w D_w n_w / S)  >=  S·τ(m δ / S)

as a step does not get faster with more tokens. The right-hand side does not decrease in S (S·f(A,
N/S) does not; nor does attention, if the fullest GPU counts as the mean one until S is known), nor
in any δ_c. Waves with ``D_w >= t`` hold all requests with ``O_c >= t``, so one
of them caches at least ``ceil(KV(t) / their number)`` bytes, and that limits the replicas.

A node gives every wave a range of lengths; S and δ take their least values in it, the waves
longer than t their largest number. Everything above is monotone, so that is a bound of the node.
Nodes are taken best first. A node with one length a wave is bounded again, wave by wave, and
divided by the numbers of requests (:mod:`moeopt.joint.wave_ranges`); the first one that lacks
nothing worth it ends the search. Ended earlier, the least bound of the open nodes holds.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count as counter

import numpy as np

from moeopt.joint.memory import memory_of, request_classes
from moeopt.joint.step_function import StepBound, StepFunction
from moeopt.joint.wave_ranges import WaveRanges, parts, whole
from moeopt.joint.waves_program import WavesProgram
from moeopt.problem import ProblemData

#: A leaf is final if its layers lack no more of its bound.
_WORTH = 1e-3

# Sums of a few thousand terms, each rounded once or twice: far below this.
_SAFE = 1.0 - 2.0**-30


@dataclass(frozen=True)
class LengthsBound:
    """A proved lower bound of the makespan.

    Attributes
    ----------
    value : float
        Microseconds (expert-time units for ``unit``); ``inf`` if no waves can hold the requests.
    lengths : tuple of int or None
        Decode steps of each wave (0: not used) worth a plan: where the bound is attained or, if the
        search was cut off, the best seen; None if none was.
    nodes : int
        Bounds of nodes that were computed.
    """

    value: float
    lengths: tuple[int, ...] | None
    nodes: int


@dataclass(frozen=True)
class _Node:
    """Ranges of the position of each wave's length in its list of candidates."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    waves: WaveRanges | None = None

    @property
    def is_leaf(self) -> bool:
        return self.low == self.high


def lengths_bound(
    data: ProblemData,
    *,
    time_limit_s: float = math.inf,
    enough: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    on_bound: Callable[[float], None] = lambda value: None,
) -> LengthsBound:
    """Bound the makespan of ``joint`` (module docstring).

    Parameters
    ----------
    time_limit_s : float
        The search is cut off then; the bound holds nevertheless.
    enough : float
        The search is cut off as soon as the bound reaches this.
    on_bound : callable
        Called with every better bound.
    """
    deadline = time.monotonic() + time_limit_s

    def ended() -> bool:
        return time.monotonic() > deadline or stop()

    return _Search(data, ended).run(enough, on_bound)


class _Search:
    def __init__(self, data: ProblemData, ended: Callable[[], bool]) -> None:
        self.data = data
        self.ended = ended
        self.memory = memory_of(data)
        self.step = StepFunction(data)
        requests = request_classes(data)
        self.outputs = requests.output_tokens
        lengths = sorted(set(self.outputs.tolist()))
        kv = [int(m) * int(b) for m, b in zip(requests.count, self.memory.kv, strict=True)]
        #: (t, bytes of all requests with O_c >= t)
        self.kv_of = [
            (t, sum(b for b, o in zip(kv, self.outputs.tolist(), strict=True) if o >= t))
            for t in lengths
        ]
        if data.wave_steps is None:
            self.candidates = [[0, *lengths]] * data.waves
        else:
            self.candidates = [[0, steps] for steps in data.wave_steps]
        self.nodes = 0
        self.program = WavesProgram(data, thorough=True, ended=ended)
        #: Least estimate of a leaf, and its lengths.
        self.estimate = math.inf
        self.promising: tuple[int, ...] | None = None

    # --- nodes

    def root(self) -> _Node | None:
        """All lengths; equal waves are ordered, the longest first."""
        high = tuple(len(lengths) - 1 for lengths in self.candidates)
        low = [0] * len(high)
        if self.data.wave_steps is None:
            for position, (_, kv) in enumerate(self.kv_of, start=1):
                waves = self._least_waves(kv)
                if waves is None or waves > len(low):
                    return None
                for w in range(waves):
                    low[w] = position
        return _Node(tuple(low), high)

    def _least_waves(self, kv: int) -> int | None:
        """Fewest waves that hold so many bytes beside one copy of every expert."""
        for waves in range(1, len(self.candidates) + 1):
            if self._room(-(-kv // waves)):
                return waves
        return None

    def _room(self, kv: int) -> bool:
        return self.memory.additional(kv) >= 0

    def divide(self, node: _Node) -> list[_Node]:
        """Halve the widest range."""
        w = max(range(len(node.low)), key=lambda i: node.high[i] - node.low[i])
        middle = (node.low[w] + node.high[w]) // 2
        low, high = list(node.low), list(node.high)
        high[w], low[w] = middle, middle + 1
        if self.data.wave_steps is None:
            for i in range(w + 1, len(high)):
                high[i] = min(high[i], middle)
            for i in range(w):
                low[i] = max(low[i], middle + 1)
        return [
            child
            for child in (_Node(node.low, tuple(high)), _Node(tuple(low), node.high))
            if all(a <= b for a, b in zip(child.low, child.high, strict=True))
        ]

    def replicas(self, node: _Node) -> int:
        """Most additional replicas that any plan of the node has; negative if there is none."""
        longest = [lengths[i] for lengths, i in zip(self.candidates, node.high, strict=True)]
        most = self.memory.additional(0)
        for t, kv in self.kv_of:
            waves = sum(length >= t for length in longest)
            if waves == 0:
                return -1
            most = min(most, self.memory.additional(-(-kv // waves)))
        return most

    def value(self, node: _Node, quick: bool) -> tuple[float, StepBound | None]:
        """Bound of a node; infinite if it has no plan."""
        replicas = self.replicas(node)
        if replicas < 0:
            return math.inf, None
        requests = request_classes(self.data)
        total = sum(lengths[i] for lengths, i in zip(self.candidates, node.low, strict=True))
        if total == 0:
            return 0.0, None
        self.nodes += 1
        steps = requests.count * np.array([self._least_length(node, o) for o in self.outputs])
        mean = steps / total
        tokens = np.einsum("c,cle->le", mean, requests.usage)
        several = sum(i > 0 for i in node.high) > 1
        bound = self.step.bound(
            tokens,
            float(mean @ requests.kv_mib),
            replicas,
            mean=several,
            fixed=node.is_leaf,
            quick=quick,
        )
        return total * bound.step_us * _SAFE, bound

    def _least_length(self, node: _Node, output: int) -> int:
        """Least number of steps of a wave in which such a request may decode."""
        least = math.inf
        for lengths, low, high in zip(self.candidates, node.low, node.high, strict=True):
            fitting = [d for d in lengths[low : high + 1] if d >= output]
            least = min([least, *fitting[:1]])
        return int(least)

    # --- leaves

    def lengths(self, leaf: _Node) -> tuple[int, ...]:
        """Length of each wave."""
        return tuple(c[i] for c, i in zip(self.candidates, leaf.low, strict=True))

    def is_final(self, leaf: _Node) -> bool:
        """Whether dividing the leaf would not raise its bound by much."""
        if sum(i > 0 for i in leaf.low) == 1 or self.data.uniform_slots:
            return True  # the mean step is the step
        return leaf.waves is not None and leaf.waves.is_final

    def refine(self, leaf: _Node) -> list[_Node]:
        """Bound a leaf by its waves; one that is, in parts by their numbers of requests."""
        if leaf.waves is None:
            used = tuple(d for d in self.lengths(leaf) if d)
            first = whole(self.program, used)
            divided = [] if first is None else [first]
        else:
            divided = parts(self.program, leaf.waves)
        self.nodes += len(divided)
        for waves in divided:
            if waves.bound.requests is not None and waves.estimate < self.estimate:
                self.estimate, self.promising = waves.estimate, self.lengths(leaf)
        return [replace(leaf, waves=waves) for waves in divided]

    # --- search

    def run(self, enough: float, on_bound: Callable[[float], None]) -> LengthsBound:
        """Best first; partitions are enumerated only for nodes that are taken."""
        root = self.root()
        if root is None:
            return LengthsBound(math.inf, None, self.nodes)
        order = counter()
        heap: list[tuple[float, int, bool, _Node]] = [(0.0, next(order), False, root)]
        best = 0.0
        while heap:
            bound, _, sharp, node = heapq.heappop(heap)
            if bound > best:
                best = bound
                on_bound(best)
            if best >= enough or self.ended():
                return LengthsBound(best, self.promising, self.nodes)
            if not sharp:
                value = max(bound, self.value(node, quick=False)[0])
                if value < math.inf:
                    heapq.heappush(heap, (value, next(order), True, node))
                continue
            if node.is_leaf:
                if self.is_final(node):
                    lengths = self.promising or self.lengths(node)
                    return LengthsBound(bound, lengths, self.nodes)
                for child in self.refine(node):
                    assert child.waves is not None
                    value = max(bound, child.waves.bound.value)
                    heapq.heappush(heap, (value, next(order), True, child))
                continue
            for child in self.divide(node):
                value = max(bound, self.value(child, quick=True)[0])
                if value < math.inf:
                    heapq.heappush(heap, (value, next(order), False, child))
        return LengthsBound(math.inf, None, self.nodes)
