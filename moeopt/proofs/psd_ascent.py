"""First-order method for the pattern relaxation with Gram rows and whole-GPU columns.

A primal-dual hybrid gradient method (Chambolle & Pock 2011) on a mixture of sets (what is on one
GPU) and splits against the multipliers of the rows. The Gram multipliers are projected onto the
positive semidefinite cone in turns, a part of the pairs each step. Every so often the multipliers
are turned into an exact bound, and the sets that its evaluation finds too cheap join the mixture.
Nothing here needs to be trusted: steps only choose multipliers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeopt.problem import FloatArray, IntArray, Scenarios
from moeopt.proofs.psd_certificate import BITS, Certificate, ExactLagrangian
from moeopt.proofs.psd_master import carried_over, cheapest_mixture, project, random_sets
from moeopt.proofs.psd_patterns import (
    Multipliers,
    Patterns,
    best_splits,
    gram_matrices,
    lagrangian,
    moments,
    set_costs,
    step_rows,
)
from moeopt.proofs.psd_sets import SPLITS, Costs

#: Ratio of dual to primal steps, and length of the Gram steps beside the others'.
_DUAL_WEIGHT, _GRAM_STEP = 30.0, 0.2
#: Each pair's Gram multipliers are moved once in so many steps.
_TURNS = 8
#: Sets that may join at a time; sets that are kept.
_JOIN, _KEEP = 300, 2500
#: Rounds of pricing for one bound, and for the first.
_ROUNDS, _FIRST_ROUNDS = 2, 40


@dataclass
class Mixture:
    """Sets of experts, each with the share of a GPU that it takes."""

    sets: IntArray
    share: FloatArray


class Ascent:
    """State of the method for one layer.

    Attributes
    ----------
    value : float
        Best bound so far, exact.
    certificate : Certificate or None
        What proves it.
    """

    def __init__(
        self, patterns: Patterns, scenarios: Scenarios, stop: Callable[[], bool], seed: int = 0
    ) -> None:
        self.patterns = patterns
        self.scenarios = scenarios
        self.stop = stop
        # Multipliers and costs are scaled so that splits of average weight cost about 1.
        self.scale = max(1.0, 0.28 * len(patterns.quads))
        self.objective = patterns.objective(scenarios, scenarios.weight * self.scale)
        self.at = Multipliers.start(patterns, self.objective)
        self.value = -math.inf
        self.certificate: Certificate | None = None
        self.gram_step = _GRAM_STEP * _DUAL_WEIGHT / max(1, patterns.gpus - 1) ** 2
        rng = np.random.default_rng(seed)
        self.turn_of = rng.permutation(len(patterns.pairs))
        self.price = np.zeros(patterns.experts)
        self.mix = Mixture(random_sets(patterns.experts, patterns.size, rng, 20), np.empty(0))
        self.mix.share = self.certify(_FIRST_ROUNDS)
        self.point = self._moments(self.mix.share)
        self.point.split[:] = best_splits(patterns, *self.point[:3])
        self.newton = np.zeros(patterns.experts)
        self.steps_done = 0

    def _moments(self, share: FloatArray) -> Costs:
        point = self.patterns.zeros(np.float64)
        moments(self.mix.sets, share, *point[:3])
        return point

    def certify(self, rounds: int = _ROUNDS) -> FloatArray:
        """Evaluate the present multipliers exactly; let sets join that were too cheap.

        Returns
        -------
        share : float array
            Cheapest mixture of all sets, as a start.
        """
        patterns = self.patterns
        at, factor = self._unscaled()
        exact = ExactLagrangian(patterns, self.scenarios, at, factor)
        costs = [np.ldexp(part.astype(np.float64), -BITS) for part in exact.costs[:3]]
        best, best_price = -math.inf, self.price
        sets = self.mix.sets
        share = np.zeros(len(sets))
        for done in range(rounds):
            share, price = cheapest_mixture(sets, set_costs(sets, *costs), patterns.experts)
            ceiling = as_value(exact) + float(price.sum())
            if done % 2 and best > -math.inf:  # smoothed prices give better bounds between
                price = (price + best_price) / 2.0
            bound, _, found = exact.bound(price, _JOIN)
            if bound > best:
                best, best_price = bound, price
            if bound > self.value:
                self.value = bound
                self.certificate = Certificate(at.mates, at.apart, at.distinct, factor, price)
            new = np.unique(np.concatenate([sets, found]), axis=0)
            closed = len(new) == len(sets) or ceiling - best < 1e-6
            if closed or done == rounds - 1 or self.stop():
                break
            sets, share = new, carried_over(sets, share, new)
        if best < self.value:  # a step back: the Gram multipliers move too fast
            self.gram_step *= 0.7
        self.price = best_price
        self._merge(np.unique(np.concatenate([sets, found]), axis=0), costs, best_price)
        return carried_over(sets, share, self.mix.sets)

    def _merge(self, sets: IntArray, costs: list[FloatArray], price: FloatArray) -> None:
        """Take up new sets; drop those that are out of use and far from it."""
        old = self.mix
        share = carried_over(old.sets, old.share, sets) if len(old.share) else np.zeros(len(sets))
        if len(sets) > _KEEP and len(old.share):
            reduced = set_costs(sets, *costs) - price[sets].sum(axis=1)
            bar = np.partition(reduced, _KEEP)[_KEEP]
            keep = (share > 1e-7) | (reduced < bar)
            sets, share = sets[keep], share[keep]
        self.mix = Mixture(sets, share)

    def _unscaled(self) -> tuple[Multipliers, FloatArray]:
        """Multipliers in expert-time units with splits balanced, and the Gram factors."""
        patterns, at = self.patterns, self.at
        block = np.arange(len(patterns.pairs))[:, None, None]
        gram = at.gram[block, patterns.others[:, :, None], patterns.others[:, None, :]]
        values, vectors = np.linalg.eigh(gram / self.scale)
        factor = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        costs = lagrangian(patterns, self.objective, at)
        # What a split costs too much is taken off its rows: they weaken the bound.
        total = at.apart.sum(axis=2)
        off = np.minimum(np.maximum(costs.split, 0.0), total)
        kept = np.where(total > 0.0, 1.0 - off / np.where(total > 0.0, total, 1.0), 1.0)
        unscaled = Multipliers(
            at.mates / self.scale,
            at.apart * kept[:, :, None] / self.scale,
            at.distinct / self.scale,
            gram,
        )
        return unscaled, factor

    def run(self, steps: int) -> None:
        """Take some steps (fewer if told to stop)."""
        patterns, at, point, sets = self.patterns, self.at, self.point, self.mix.sets
        lengths, set_step, split_step = self._step_lengths(len(sets))
        for _ in range(steps):
            if self.stop():
                return
            costs = lagrangian(patterns, self.objective, at)
            slope = set_costs(sets, *costs[:3])
            share = project(
                sets, self.mix.share - set_step * slope, patterns.experts, self.newton, 1e-9, 50
            )
            split = np.maximum(0.0, point.split - split_step * costs.split)
            moments(sets, 2.0 * share - self.mix.share, *point[:3])
            ahead = 2.0 * split - point.split
            point.split[:] = split
            self.mix.share = share
            step_rows(
                patterns.quads,
                SPLITS,
                patterns.size,
                *point[:3],
                ahead,
                at.mates,
                at.apart,
                at.distinct,
                lengths,
            )
            self._step_gram(point._replace(split=ahead))
            self.steps_done += 1

    def _step_gram(self, point: Costs) -> None:
        patterns, gram = self.patterns, self.at.gram
        turn = self.turn_of[self.steps_done % _TURNS :: _TURNS]
        if not len(turn):
            return
        others = patterns.others[turn]
        at = turn[:, None, None], others[:, :, None], others[:, None, :]
        rows = gram_matrices(turn, patterns.pairs, patterns.others, patterns.gpus, *point)
        values, vectors = np.linalg.eigh(gram[at] - self.gram_step * rows)
        positive = vectors * np.maximum(values, 0.0)[:, None, :]
        gram[at] = positive @ vectors.transpose(0, 2, 1)

    def _step_lengths(self, sets: int) -> tuple[FloatArray, float, float]:
        """Diagonal preconditioning (Pock & Chambolle 2011), one length for each family of rows."""
        e, c = self.patterns.experts, self.patterns.size
        quads = math.comb(e, 4)
        inside = math.comb(c, 2) * math.comb(e - c, 2)  # rows (3) of a set
        lone = math.comb(e - c, 4) + c * math.comb(e - c, 3)
        among_mates = math.comb(c, 2) * (e - c) / max(1, len(self.patterns.pairs) * (e - 2))
        mates = (c - 1) * sets * among_mates + e - 3
        apart = sets * inside / max(1, 6 * quads) + 1.0
        distinct = sets * (quads - lone) / max(1, quads) + 3.0
        of_set = c + (c - 1) * math.comb(c, 2) * (e - c) + inside + quads - lone
        rows = _DUAL_WEIGHT / np.array([mates, apart, distinct])
        return rows, 1.0 / (_DUAL_WEIGHT * of_set), 1.0 / (_DUAL_WEIGHT * 7.0)


def as_value(exact: ExactLagrangian) -> float:
    """Constant of the Lagrangian, in expert-time units."""
    return math.ldexp(exact.constant, -BITS)
