"""Affine lower bounds of a layer's time over all waves of a range: cuts for a linear programme.

Of a wave it is known which requests it may hold (between ``least[c]`` and ``most[c]`` of class c,
between ``low`` and ``high`` in all): a domain Q. A layer's time is not convex in the requests n:
splitting an expert charges another replica, so it is the least over partitions of the experts of
convex functions (:mod:`moeopt.joint.partition_bound`). But for any slope α ::

    T(n) >= α·n + F,    F = min over n in Q of (T(n) − α·n)

and F is bounded from below by exchanging two minima and a maximum: over all partitions, the least
of the largest, over the groups of the partition, of ``min over Q of (tangent of the group's time −
α·n)``. A tangent minus α·n is affine in n, so its minimum over Q is a continuous knapsack. Where
no wave of Q gains by a split, F is as large as if splits were forbidden.

Slopes come from the waves where the programme's solution is too cheap: the tangent of the group
that decides the layer's time there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit

from moeopt.joint.cost import P2, Cost, tangent_of
from moeopt.joint.partition_bound import EXPERTS_LIMIT, best_partitions
from moeopt.problem import FloatArray, IntArray

# A few hundred rounded operations: far below this, relative to the largest term.
_ROUNDING = 2.0**-36

#: Tangents of a group's time between its least and its most tokens, where it is curved.
_TANGENTS = 5


#: Layer, slope and floor of a cut in the number of requests.
TotalCut = tuple[int, FloatArray, float]


@dataclass(frozen=True)
class Domain:
    """Waves with ``least[c]`` to ``most[c]`` requests of class c, ``low`` to ``high`` in all."""

    least: tuple[int, ...]
    most: tuple[int, ...]
    low: int
    high: int

    def tightened(self) -> Domain | None:
        """The same waves with limits that agree; None if there are none."""
        low, high = max(self.low, sum(self.least)), min(self.high, sum(self.most))
        fits = low <= high and all(a <= b for a, b in zip(self.least, self.most, strict=True))
        return Domain(self.least, self.most, low, high) if fits else None


@dataclass
class Cuts:
    """Affine lower bounds of the layers' times on one domain: ``T[layer] >= slope @ n + floor``.

    Attributes
    ----------
    layer, floor : lists, one entry a cut
    slope : list of float arrays, shape (C,)
    """

    layer: list[int] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    slope: list[FloatArray] = field(default_factory=list)

    def add(self, layer: int, slope: FloatArray, floor: float) -> None:
        """Keep a cut."""
        self.layer.append(layer)
        self.slope.append(slope)
        self.floor.append(floor)


@njit(cache=True, nogil=True)
def _least(constant: Any, slope: Any, least: Any, most: Any, low: Any, high: Any) -> Any:
    """Return the minimum of ``constant + slope @ n`` over the domain."""
    value, used = constant, 0.0
    for c in range(len(slope)):
        value += slope[c] * least[c]
        used += least[c]
    for c in np.argsort(slope):
        limit = high if slope[c] < 0.0 else low
        if used >= limit:
            break
        n = min(most[c] - least[c], limit - used)
        value += slope[c] * n
        used += n
    return value


@njit(cache=True, nogil=True)
def _layer_floor(
    cost: Any,
    usage: Any,
    charges: Any,
    gpus: int,
    least: Any,
    most: Any,
    low: Any,
    high: Any,
    slope: Any,
) -> Any:
    """Lower bound of ``T(n) − slope @ n`` over the domain; usage: shape (C, E)."""
    classes, experts = usage.shape
    sets = 1 << experts
    alone = np.full((sets, gpus + 1), np.inf)
    points = np.array([0.0, 1e300])
    use = np.zeros(classes)
    flat = _least(0.0, -slope, least, most, low, high)
    for subset in range(1, sets):
        use[:] = 0.0
        p = 0
        for e in range(experts):
            if subset >> e & 1:
                use += usage[:, e]
                p += charges[e]
        if cost[0] == P2:
            first = _least(0.0, use, least, most, low, high)
            last = -_least(0.0, -use, least, most, low, high)
            points = np.linspace(first, last, _TANGENTS)
        for k in range(1, gpus + 1):
            best = -np.inf
            for w in points:
                constant, rise = tangent_of(cost, p + k - 1, k, w)
                value = constant + flat
                if rise != 0.0:
                    value = _least(constant, rise * use - slope, least, most, low, high)
                best = max(best, value)
            # The time itself does not increase with k; its tangents could.
            alone[subset, k] = min(best, alone[subset, k - 1])
    return best_partitions(alone, experts, gpus)[0][gpus - 1]


@njit(cache=True, nogil=True)
def _deciding(cost: Any, usage: Any, charges: Any, gpus: int, requests: Any) -> Any:
    """Layer bound of a wave, and the slope of the group that decides it."""
    classes, experts = usage.shape
    sets = 1 << experts
    alone = np.full((sets, gpus + 1), np.inf)
    tokens = np.zeros(experts)
    for c in range(classes):
        tokens += requests[c] * usage[c]
    for subset in range(1, sets):
        w, p = 0.0, 0
        for e in range(experts):
            if subset >> e & 1:
                w += tokens[e]
                p += charges[e]
        for k in range(1, gpus + 1):
            # Its tangent there, which is quicker to find.
            constant, rise = tangent_of(cost, p + k - 1, k, w)
            alone[subset, k] = min(constant + rise * w, alone[subset, k - 1])
    time, group, size = best_partitions(alone, experts, gpus)
    slope, worst = np.zeros(classes), -np.inf
    for j in range(gpus):
        w, p = 0.0, 0
        use = np.zeros(classes)
        for e in range(experts):
            if group[gpus - 1, e] == j:
                w += tokens[e]
                p += charges[e]
                use += usage[:, e]
        k = size[gpus - 1, j] if j < experts else 0
        if k == 0:
            continue
        constant, rise = tangent_of(cost, p + k - 1, k, w)
        if constant + rise * w > worst:
            worst = constant + rise * w
            slope = rise * use
    return time[gpus - 1], slope


def _limits(domain: Domain) -> tuple[FloatArray, FloatArray, float, float]:
    return (
        np.array(domain.least, dtype=np.float64),
        np.array(domain.most, dtype=np.float64),
        float(domain.low),
        float(domain.high),
    )


class Minorants:
    """Cuts of one problem's layers, kept by domain.

    Parameters
    ----------
    usage : float array, shape (C, L, E)
    charges : int array, shape (L, E)
        1 for each expert of which a replica is charged in every wave that decodes anything.
    known : callable
        Makes cuts (layer, slope, floor) for all waves of so many requests, from least to most.
    """

    def __init__(
        self,
        cost: Cost,
        usage: FloatArray,
        charges: IntArray,
        gpus: int,
        known: Callable[[int, int], list[TotalCut]] = lambda low, high: [],
    ) -> None:
        self.cost, self.charges, self.gpus = cost, charges, gpus
        self.layers, self.experts = charges.shape
        self.usage = [np.ascontiguousarray(usage[:, l]) for l in range(self.layers)]
        self.few = self.experts <= EXPERTS_LIMIT
        self._known: dict[Domain, Cuts] = {}
        self._totals = known

    def cuts(self, domain: Domain) -> Cuts:
        """Return the cuts known for a domain; the first time, those that need no slope."""
        if domain not in self._known:
            cuts = self._known[domain] = Cuts()
            for known in self._totals(domain.low, domain.high):
                cuts.add(*known)
            for l in range(self.layers):
                self._all_gpus(cuts, l, domain)
                if self.few:
                    self._add(cuts, l, domain, np.zeros(len(domain.most)))
        return self._known[domain]

    def _all_gpus(self, cuts: Cuts, l: int, domain: Domain) -> None:
        """All tokens on all GPUs, one replica of each expert charged: convex, so on any domain."""
        use = self.usage[l].sum(axis=1)
        points = [0.0, 1e300]
        if self.cost[0] == P2:
            limits = _limits(domain)
            ends = [_least(0.0, use, *limits), -_least(0.0, -use, *limits)]
            points = np.linspace(ends[0], ends[1], _TANGENTS).tolist()
        for w in points:
            constant, rise = tangent_of(self.cost, int(self.charges[l].sum()), self.gpus, w)
            cuts.add(l, rise * use, constant - _ROUNDING * abs(constant))

    def _add(self, cuts: Cuts, l: int, domain: Domain, slope: FloatArray) -> None:
        limits = _limits(domain)
        floor = _layer_floor(self.cost, self.usage[l], self.charges[l], self.gpus, *limits, slope)
        floor -= _ROUNDING * (abs(floor) + float(np.abs(slope) @ limits[1]))
        cuts.add(l, slope, floor)

    def cut_off(
        self, domain: Domain, requests: FloatArray, times: FloatArray, tolerance: float
    ) -> tuple[int, float]:
        """Add cuts where the times claimed for a wave are too short.

        Parameters
        ----------
        requests : float array, shape (C,)
            Of the wave; need not be whole.
        times : float array, shape (L,)
            Claimed for its layers.
        tolerance : float
            Relative; smaller excesses are left alone.

        Returns
        -------
        added : int
            Cuts that raise the claimed times.
        missing : float
            What the layer bounds of this wave exceed the claimed times by, in all.
        """
        cuts = self.cuts(domain)
        added, missing = 0, 0.0
        if not self.few:
            return added, missing
        for l in range(self.layers):
            time, slope = _deciding(self.cost, self.usage[l], self.charges[l], self.gpus, requests)
            short = time - times[l]
            missing += max(0.0, short)
            if short <= tolerance * time:
                continue
            self._add(cuts, l, domain, slope)
            if float(slope @ requests) + cuts.floor[-1] > times[l] + tolerance * time:
                added += 1
        return added, missing
