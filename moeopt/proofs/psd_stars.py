"""The star relaxation: pairs on one GPU, for scenarios of any size.

``T_S >= 1 + Σ_i a_i (mates of i in S)`` for any ``a >= 0`` with sum 1: the cost of a GPU is a sum
over its pairs, and the sets of experts on the GPUs are priced by an exact pruned search. The
multipliers ``a`` come from a primal-dual hybrid gradient method; docs/bounds/psd.md, equation 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.problem import FloatArray, IntArray, Scenarios
from moeopt.proofs.psd_certificate import BITS, as_float, whole, whole_weights
from moeopt.proofs.psd_master import carried_over, cheapest_mixture, project, random_sets
from moeopt.proofs.psd_sets import cheapest_sets_of_pairs

_DUAL_WEIGHT, _STAR_STEP = 10.0, 0.05
_JOIN, _KEEP = 1500, 20_000
_ROUNDS, _FIRST_ROUNDS = 6, 20
#: Nodes of one pricing search (about 15 million a second); above, that evaluation is given up.
_MOST_NODES = 100_000_000


@dataclass(frozen=True)
class StarCertificate:
    """Multipliers that prove a bound.

    Attributes
    ----------
    share : float array, shape (scenarios.ptr[-1],)
        ``a`` of each member of each scenario.
    price : float array, shape (E,)
        Of covering each expert once.
    """

    share: FloatArray
    price: FloatArray


class ExactStars:
    """Whole-number costs of pairs for one choice of ``a``; see :class:`ExactLagrangian`."""

    def __init__(self, scenarios: Scenarios, experts: int, gpus: int, share: FloatArray) -> None:
        weight = whole_weights(scenarios)
        each = np.repeat(weight, scenarios.sizes)
        share = np.clip(share, 0.0, 1.0)
        total = np.repeat(np.add.reduceat(share, scenarios.ptr[:-1]), scenarios.sizes)
        part = np.floor(share / np.maximum(total * (1.0 + 2.0**-40), 1.0) * each).astype(np.int64)
        assert (np.add.reduceat(part, scenarios.ptr[:-1]) <= weight).all()
        self.pair = np.zeros((experts, experts), dtype=np.int64)
        add_stars(scenarios.ptr, scenarios.expert, part, self.pair)
        self.constant = int(weight.sum())
        self.size = experts // gpus
        self.gpus = gpus

    def bound(self, price: FloatArray, keep: int) -> tuple[float, IntArray, IntArray]:
        """Evaluate the bound for given prices: bound, reduced costs, sets."""
        exact = whole(price)
        # Costs of pairs sum to at most E · 2**BITS, so that 64 bits hold everything but prices.
        if np.abs(exact).max(initial=0) >= 2**52 or len(exact) >= 2**9:
            raise OverflowError("prices are too large for exact evaluation")
        order = np.argsort(-exact, kind="stable")  # dear experts first: more is pruned
        least, reduced, sets, nodes = cheapest_sets_of_pairs(
            self.size,
            -exact[order],
            np.ascontiguousarray(self.pair[np.ix_(order, order)]),
            keep,
            np.int64(0),
            _MOST_NODES,
        )
        if nodes > _MOST_NODES:
            return -math.inf, reduced, np.sort(order[sets], axis=1)
        total = self.constant + int(exact.sum()) + self.gpus * int(least)
        return as_float(total), reduced, np.sort(order[sets], axis=1)


@njit(cache=True)
def add_stars(ptr, expert, part, pair):
    """Add to each ordered pair what its scenarios charge for it (symmetric)."""
    for s in range(len(ptr) - 1):
        for i in range(ptr[s], ptr[s + 1]):
            for j in range(ptr[s], i):
                cost = part[i] + part[j]
                pair[expert[i], expert[j]] += cost
                pair[expert[j], expert[i]] += cost


@njit(cache=True)
def _together(sets, share, experts):
    """Share of each pair on one GPU, (E, E), diagonal 0."""
    out = np.zeros((experts, experts))
    for p in range(len(sets)):
        if share[p] != 0.0:
            for a in range(sets.shape[1]):
                for b in range(a):
                    out[sets[p, a], sets[p, b]] += share[p]
                    out[sets[p, b], sets[p, a]] += share[p]
    return out


@njit(cache=True)
def _pair_costs(sets, pair):
    out = np.zeros(len(sets), pair.dtype)
    for p in range(len(sets)):
        for a in range(sets.shape[1]):
            for b in range(a):
                out[p] += pair[sets[p, a], sets[p, b]]
    return out


@njit(cache=True)
def _step_stars(ptr, expert, together, length, share):
    """Move ``a`` of each scenario towards its largest stars; project onto the simplex."""
    for s in range(len(ptr) - 1):
        begin, end = ptr[s], ptr[s + 1]
        for i in range(begin, end):
            star = 0.0
            for j in range(begin, end):
                star += together[expert[i], expert[j]]
            share[i] += length * star
        descending = -np.sort(-share[begin:end])
        total, shift = 0.0, 0.0
        for r in range(end - begin):
            total += descending[r]
            if descending[r] * (r + 1) > total - 1.0:
                shift = (total - 1.0) / (r + 1)
        for i in range(begin, end):
            share[i] = max(0.0, share[i] - shift)


class StarAscent:
    """State of the method for one layer; the same interface as :class:`Ascent`."""

    def __init__(
        self,
        gpus: int,
        size: int,
        scenarios: Scenarios,
        stop: Callable[[], bool],
        seed: int = 0,
    ) -> None:
        self.gpus, self.size, self.experts = gpus, size, gpus * size
        self.scenarios = scenarios
        self.stop = stop
        self.value = -math.inf
        self.certificate: StarCertificate | None = None
        sizes = scenarios.sizes
        self.star = 1.0 / np.repeat(sizes, sizes)
        self.sets = random_sets(self.experts, size, np.random.default_rng(seed), 20)
        self.share = np.zeros(0)
        self.newton = np.zeros(self.experts)
        self.steps_done = 0
        self.share = self.certify(_FIRST_ROUNDS)

    def certify(self, rounds: int = _ROUNDS) -> FloatArray:
        """Evaluate the present multipliers exactly; let sets join that were too cheap."""
        star = self.star.copy()
        exact = ExactStars(self.scenarios, self.experts, self.gpus, star)
        cost = np.ldexp(exact.pair.astype(np.float64), -BITS)
        best, best_price = -math.inf, np.zeros(self.experts)
        sets = self.sets
        share = np.zeros(len(sets))
        for done in range(rounds):
            share, price = cheapest_mixture(sets, _pair_costs(sets, cost), self.experts)
            ceiling = math.ldexp(exact.constant, -BITS) + float(price.sum())
            if done % 2 and best > -math.inf:  # smoothed prices give better bounds between
                price = (price + best_price) / 2.0
            bound, _, found = exact.bound(price, _JOIN)
            if bound > best:
                best, best_price = bound, price
            if bound > self.value:
                self.value = bound
                self.certificate = StarCertificate(star, price)
            new = np.unique(np.concatenate([sets, found]), axis=0)
            closed = len(new) == len(sets) or ceiling - best < 1e-6
            sets, share = new, carried_over(sets, share, new)
            if closed or self.stop():
                break
        self._take_up(sets, cost, best_price)
        return carried_over(sets, share, self.sets)

    def _take_up(self, sets: IntArray, cost: FloatArray, price: FloatArray) -> None:
        share = np.zeros(len(sets))
        if len(self.share):
            share = carried_over(self.sets, self.share, sets)
            if len(sets) > _KEEP:
                reduced = _pair_costs(sets, cost) - price[sets].sum(axis=1)
                keep = (share > 1e-7) | (reduced < np.partition(reduced, _KEEP)[_KEEP])
                sets, share = sets[keep], share[keep]
        self.sets, self.share = sets, share

    def run(self, steps: int) -> None:
        """Take some steps (fewer if told to stop)."""
        rows = self.scenarios
        sizes = rows.sizes
        reach = float(rows.weight @ (sizes * (sizes - 1.0)))
        reach *= self.size * (self.size - 1) / (self.experts * max(1, self.experts - 1))
        length = 1.0 / (_DUAL_WEIGHT * max(reach, 1e-9))
        for _ in range(steps):
            if self.stop():
                return
            part = np.repeat(rows.weight, sizes) * self.star
            pair: npt.NDArray[Any] = np.zeros((self.experts, self.experts))
            add_stars(rows.ptr, rows.expert, part, pair)
            slope = _pair_costs(self.sets, pair)
            share = project(
                self.sets, self.share - length * slope, self.experts, self.newton, 1e-9, 50
            )
            together = _together(self.sets, 2.0 * share - self.share, self.experts)
            self.share = share
            _step_stars(rows.ptr, rows.expert, together, _DUAL_WEIGHT * _STAR_STEP, self.star)
            self.steps_done += 1
