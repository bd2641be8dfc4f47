"""The star relaxation: pairs on one GPU, for scenarios of any size.

``T_S >= 1 + Σ_i a_i (mates of i in S)`` for any ``a >= 0`` with sum 1: the cost of a GPU is a sum
over its pairs, and the sets of experts on the GPUs are priced by an exact pruned search. The
multipliers ``a`` come from a primal-dual hybrid gradient method; docs/bounds/psd.md, equation 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
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
_JOIN, _KEEP, _KEEP_BRANCH = 1500, 8_000, 3_000
_ROUNDS, _FIRST_ROUNDS = 4, 20
_PARTITIONS = 20
#: Cost of two experts on one GPU that are on different ones, in units of 2**-BITS.
_FORBIDDEN = 2 ** (BITS + 2)
#: Prices are cut to this many expert-time units.
_LARGEST_PRICE = 255.0
#: Nodes of one pricing search (about 15 million a second); above, that evaluation is given up.
_MOST_NODES = 100_000_000


@dataclass(frozen=True)
class Assumption:
    """What is assumed of a placement.

    Attributes
    ----------
    together : tuple of int
        Two experts on one GPU; empty: nothing is assumed.
    apart : bool array, shape (E, E), symmetric
        Pairs of experts on different GPUs.
    """

    together: tuple[int, ...]
    apart: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class StarCertificate:
    """Multipliers that prove a bound for the placements that agree with an assumption.

    Attributes
    ----------
    share : float array, shape (scenarios.ptr[-1],)
        ``a`` of each member of each scenario.
    price : float array, shape (E,)
        Of covering each expert once.
    given : Assumption
    """

    share: FloatArray
    price: FloatArray
    given: Assumption


class ExactStars:
    """Whole-number costs of pairs for one choice of ``a``; see :class:`ExactLagrangian`."""

    def __init__(
        self, scenarios: Scenarios, gpus: int, share: FloatArray, given: Assumption
    ) -> None:
        experts = len(given.apart)
        weight = whole_weights(scenarios)
        each = np.repeat(weight, scenarios.sizes)
        share = np.clip(share, 0.0, 1.0)
        total = np.repeat(np.add.reduceat(share, scenarios.ptr[:-1]), scenarios.sizes)
        part = np.floor(share / np.maximum(total * (1.0 + 2.0**-40), 1.0) * each).astype(np.int64)
        assert (np.add.reduceat(part, scenarios.ptr[:-1]) <= weight).all()
        self.pair = np.zeros((experts, experts), dtype=np.int64)
        add_stars(scenarios.ptr, scenarios.expert, part, self.pair)
        self.pair[given.apart] += _FORBIDDEN
        self.given = given
        self.constant = int(weight.sum())
        self.size = experts // gpus
        self.gpus = gpus

    def bound(self, price: FloatArray, keep: int) -> tuple[float, IntArray]:
        """Evaluate the bound for given prices.

        Returns
        -------
        bound : float
            Rounded down; minus infinity where the search was given up.
        sets : int array, shape (found, c)
            Sets that cost less than their prices.
        """
        # Costs of a set are at most c² / 2 times (1 + 4) · 2**BITS: 64 bits hold all but prices.
        # Any prices prove a bound: larger ones, duals of a mixture with few sets, are cut.
        if len(price) >= 2**9:
            raise OverflowError("there are too many experts for exact evaluation")
        exact = whole(np.clip(price, -_LARGEST_PRICE, _LARGEST_PRICE))
        total, both = self.constant + int(exact.sum()), self.given.together
        # The GPU of the two experts and the others are priced apart: each hosts what it may.
        kinds = [((), self.gpus - 1), (both, 1)] if both else [((), self.gpus)]
        free = np.setdiff1d(np.arange(len(exact)), both)
        found = []
        for begin, gpus in kinds:
            least, sets = self._cheapest(exact, np.array(begin, dtype=np.int64), free, keep)
            found.append(sets)
            if least is None:
                return -math.inf, np.concatenate(found)
            total += gpus * least
        return as_float(total), np.concatenate(found)

    def _cheapest(
        self, price: IntArray, begin: IntArray, free: IntArray, keep: int
    ) -> tuple[int | None, IntArray]:
        """Complete ``begin`` by ``free`` experts: the least cost, at most 0; sets below 0."""
        base = int(self.pair[np.ix_(begin, begin)].sum()) // 2 - int(price[begin].sum())
        if len(begin) == self.size:
            return min(0, base), begin[None, :][: int(base < 0)]
        single = self.pair[free][:, begin].sum(axis=1) - price[free]
        order = np.argsort(single, kind="stable")  # cheap experts first: more is pruned
        least, _, sets, nodes = cheapest_sets_of_pairs(
            self.size - len(begin),
            single[order],
            np.ascontiguousarray(self.pair[np.ix_(free[order], free[order])]),
            keep,
            np.int64(-base),
            _MOST_NODES,
        )
        chosen = np.concatenate([np.tile(begin, (len(sets), 1)), free[order][sets]], axis=1)
        return (None if nodes > _MOST_NODES else base + int(least)), np.sort(chosen, axis=1)


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
def together(sets, share, experts):
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
        self.given = Assumption((), np.zeros((self.experts, self.experts), dtype=np.bool_))
        self.keep = _KEEP
        self.value = -math.inf
        self.certificate: StarCertificate | None = None
        sizes = scenarios.sizes
        self.star = 1.0 / np.repeat(sizes, sizes)
        self.sets = random_sets(self.experts, size, np.random.default_rng(seed), _PARTITIONS)
        self.share = np.zeros(0)
        self.newton = np.zeros(self.experts)
        self.steps_done = 0
        self.share = self.certify(_FIRST_ROUNDS)

    def forbid(self, i: int, j: int) -> None:
        """From now on the two experts are on different GPUs."""
        apart = self.given.apart.copy()
        apart[i, j] = apart[j, i] = True
        self.given = Assumption(self.given.together, apart)

    def assuming(self, i: int, j: int) -> StarAscent:
        """Copy for the placements with two experts on one GPU, with fewer sets."""
        child = copy(self)
        child.given = Assumption((i, j), self.given.apart)
        child.value, child.certificate, child.steps_done = -math.inf, None, 0
        child.keep, child.newton = _KEEP_BRANCH, self.newton.copy()
        # Every scenario with both takes at least 2: let its stars be at these two.
        rows, members = self.scenarios, self.scenarios.expert
        both = np.add.reduceat((members == i) | (members == j), rows.ptr[:-1], dtype=int) == 2
        child.star = np.where(
            np.repeat(both, rows.sizes), ((members == i) | (members == j)) / 2.0, self.star
        )
        allowed = self.sets[(self.sets == i).any(axis=1) == (self.sets == j).any(axis=1)]
        share = carried_over(self.sets, self.share, allowed)
        random = np.random.default_rng([i, j])
        orders = np.array([random.permutation(self.experts) for _ in range(_PARTITIONS)])
        orders = orders[(orders != i) & (orders != j)].reshape(_PARTITIONS, -1)
        first = np.tile([i, j], (_PARTITIONS, 1))
        made = np.sort(np.hstack([first, orders]).reshape(-1, self.size), axis=1)
        child.sets = np.unique(np.concatenate([allowed[share > 0.0], made]), axis=0)
        child.share = carried_over(allowed, share, child.sets)
        return child

    def certify(self, rounds: int = _ROUNDS) -> FloatArray:
        """Evaluate the present multipliers exactly; let sets join that were too cheap."""
        star = self.star.copy()
        exact = ExactStars(self.scenarios, self.gpus, star, self.given)
        cost = np.ldexp(exact.pair.astype(np.float64), -BITS)
        best, best_price = -math.inf, np.zeros(self.experts)
        sets = self.sets
        share = np.zeros(len(sets))
        for done in range(rounds):
            share, price = cheapest_mixture(sets, _pair_costs(sets, cost), self.experts)
            ceiling = math.ldexp(exact.constant, -BITS) + float(price.sum())
            if done % 2 and best > -math.inf:  # smoothed prices give better bounds between
                price = (price + best_price) / 2.0
            bound, found = exact.bound(price, _JOIN)
            if bound > best:
                best, best_price = bound, price
            if bound > self.value:
                self.value = bound
                self.certificate = StarCertificate(star, price, self.given)
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
            if len(sets) > self.keep:
                reduced = _pair_costs(sets, cost) - price[sets].sum(axis=1)
                keep = (share > 1e-7) | (reduced < np.partition(reduced, self.keep)[self.keep])
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
            pair: npt.NDArray[Any] = np.where(self.given.apart, math.ldexp(_FORBIDDEN, -BITS), 0.0)
            add_stars(rows.ptr, rows.expert, part, pair)
            slope = _pair_costs(self.sets, pair)
            share = project(
                self.sets, self.share - length * slope, self.experts, self.newton, 1e-9, 50
            )
            ahead = together(self.sets, 2.0 * share - self.share, self.experts)
            self.share = share
            _step_stars(rows.ptr, rows.expert, ahead, _DUAL_WEIGHT * _STAR_STEP, self.star)
            self.steps_done += 1
