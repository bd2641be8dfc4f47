"""The pattern relaxation: what multipliers of its rows make pairs, triples and splits cost.

Every kernel runs on floats and, unchanged, on 64-bit integers. docs/bounds/psd.md has the rows by
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.problem import FloatArray, IntArray, Scenarios
from moeopt.proofs.psd_sets import SPLITS, Costs, joined, pair_at, pairs_of, quad_at, quads_of

#: Largest scenario whose time is exact in pairs, triples, quadruples and splits.
MOST_MEMBERS = 4


@dataclass(frozen=True)
class Patterns:
    """One layer, padded with experts that no scenario uses until all slots are full.

    Attributes
    ----------
    experts, gpus, size : int
        ``experts = gpus · size`` and every GPU hosts exactly ``size``.
    pairs, quads : int arrays, shapes (C(E,2), 2), (C(E,4), 4)
    others : int array, shape (C(E,2), E − 2)
        The experts outside each pair, ascending.
    """

    experts: int
    gpus: int
    size: int
    pairs: IntArray
    quads: IntArray
    others: IntArray

    @classmethod
    def of(cls, gpus: int, size: int) -> Patterns:
        """Index sets of ``gpus`` full GPUs of ``size`` experts."""
        experts = gpus * size
        pairs = pairs_of(experts)
        outside = np.ones((len(pairs), experts), dtype=np.bool_)
        outside[np.arange(len(pairs))[:, None], pairs] = False
        others = np.nonzero(outside)[1].reshape(len(pairs), experts - 2)
        return cls(experts, gpus, size, pairs, quads_of(experts), others)

    def objective(self, scenarios: Scenarios, weight: npt.NDArray[Any]) -> Costs:
        """Expected time minus Σ weight, for weights of any number type (equation 1)."""
        kind = weight.dtype
        costs = self.zeros(kind)
        for members in range(2, MOST_MEMBERS + 1):
            rows = np.nonzero(scenarios.sizes == members)[0]
            sets = scenarios.expert[scenarios.ptr[rows][:, None] + np.arange(members)]
            _add_scenarios(sets, weight[rows], *costs)
        return costs

    def zeros(self, kind: npt.DTypeLike) -> Costs:
        """Costs of nothing."""
        experts, quads = self.experts, len(self.quads)
        triples = experts * (experts - 1) * (experts - 2) // 6
        return Costs(
            np.zeros(len(self.pairs), kind),
            np.zeros(triples, kind),
            np.zeros(quads, kind),
            np.zeros((quads, 3), kind),
        )


@dataclass
class Multipliers:
    """Multipliers of the rows.

    Attributes
    ----------
    mates : array, shape (C(E,2), E)
        Of (2), any sign.
    apart : array, shape (C(E,4), 3, 2)
        Of (3), non-negative; the two pairs of a split one after the other.
    distinct : array, shape (C(E,4),)
        Of (4), non-negative.
    gram : array, shape (C(E,2), E, E)
        Of (5), symmetric and positive semidefinite; rows and columns of the pair itself are 0.
    """

    mates: npt.NDArray[Any]
    apart: npt.NDArray[Any]
    distinct: npt.NDArray[Any]
    gram: npt.NDArray[Any]

    @classmethod
    def start(cls, patterns: Patterns, objective: Costs) -> Multipliers:
        """Let both pairs of every split pay half of what it saves."""
        experts, pairs = patterns.experts, len(patterns.pairs)
        apart = np.zeros((len(patterns.quads), 3, 2))
        apart += -objective.split[:, :, None] / 2.0
        return cls(
            np.zeros((pairs, experts)),
            apart,
            np.zeros(len(patterns.quads)),
            np.zeros((pairs, experts, experts)),
        )


@njit(cache=True)
def _add_scenarios(sets, weight, pair, triple, quad, split):
    for s in range(len(sets)):
        members = len(sets[s])
        for d in range(members):
            for c in range(d):
                pair[pair_at(sets[s, c], sets[s, d])] += weight[s]
                for b in range(c):
                    triple[joined(sets[s, b], sets[s, c], sets[s, d])] -= weight[s]
        if members == 4:
            n = quad_at(sets[s, 0], sets[s, 1], sets[s, 2], sets[s, 3])
            quad[n] += weight[s]
            for h in range(3):
                split[n, h] -= weight[s]


def lagrangian(patterns: Patterns, objective: Costs, at: Multipliers) -> Costs:
    """Costs with all rows moved into the objective (the constant apart, equation 6)."""
    costs = Costs(*(part.copy() for part in objective))
    _add_rows(patterns.quads, SPLITS, at.mates, at.apart, at.distinct, patterns.size, *costs)
    _add_gram(patterns.quads, SPLITS, patterns.pairs, at.gram, patterns.gpus, *costs)
    return costs


@njit(cache=True)
def _add_rows(quads, splits, mates, apart, distinct, size, pair, triple, quad, split):
    experts = mates.shape[1]
    for j in range(experts):
        for i in range(j):
            p = pair_at(i, j)
            for k in range(experts):
                if k not in (i, j):
                    m = mates[p, k] * (size - 1)
                    pair[p] -= m
                    triple[joined(i, j, k)] += m
    for n in range(len(quads)):
        i, j, k, l = quads[n]
        y = distinct[n]
        quad[n] += 3 * y
        triple[joined(i, j, k)] -= 2 * y
        triple[joined(i, j, l)] -= 2 * y
        triple[joined(i, k, l)] -= 2 * y
        triple[joined(j, k, l)] -= 2 * y
        for h in range(3):
            a, b = quads[n, splits[h, 0]], quads[n, splits[h, 1]]
            e, f = quads[n, splits[h, 2]], quads[n, splits[h, 3]]
            ab, ef = pair_at(a, b), pair_at(e, f)
            r1, r2 = apart[n, h, 0], apart[n, h, 1]
            pair[ab] += y - r1
            pair[ef] += y - r2
            triple[joined(a, b, e)] += r1
            triple[joined(a, b, f)] += r1
            triple[joined(e, f, a)] += r2
            triple[joined(e, f, b)] += r2
            quad[n] -= r1 + r2
            split[n, h] += mates[ab, e] + mates[ab, f] + mates[ef, a] + mates[ef, b] + r1 + r2 - y


@njit(cache=True)
def _add_gram(quads, splits, pairs, gram, gpus, pair, triple, quad, split):
    experts = gram.shape[1]
    for p in range(len(pairs)):
        i, j = pairs[p]
        for k in range(experts):
            if k not in (i, j):
                row = -gram[p, k, k]
                for l in range(experts):
                    row += gram[p, k, l]
                trace = (gpus - 2) * gram[p, k, k]
                pair[p] += row - trace
                triple[joined(i, j, k)] += trace - 2 * row
    for n in range(len(quads)):
        for h in range(3):
            a, b = quads[n, splits[h, 0]], quads[n, splits[h, 1]]
            e, f = quads[n, splits[h, 2]], quads[n, splits[h, 3]]
            y = gram[pair_at(a, b), e, f] + gram[pair_at(e, f), a, b]
            quad[n] += 2 * y
            split[n, h] -= 2 * (gpus - 1) * y


@njit(cache=True)
def moments(sets, share, pair, triple, quad):
    """Overwrite pairs, triples and quadruples with those of a mixture of sets."""
    pair[:] = 0
    triple[:] = 0
    quad[:] = 0
    for s in range(len(sets)):
        x = share[s]
        if x != 0:
            for d in range(sets.shape[1]):
                for c in range(d):
                    pair[pair_at(sets[s, c], sets[s, d])] += x
                    for b in range(c):
                        triple[joined(sets[s, b], sets[s, c], sets[s, d])] += x
                        for a in range(b):
                            quad[quad_at(sets[s, a], sets[s, b], sets[s, c], sets[s, d])] += x


@njit(cache=True)
def set_costs(sets, pair, triple, quad):
    """Cost of each set (members ascending): the transpose of :func:`moments`."""
    out = np.zeros(len(sets), pair.dtype)
    for s in range(len(sets)):
        for d in range(sets.shape[1]):
            for c in range(d):
                out[s] += pair[pair_at(sets[s, c], sets[s, d])]
                for b in range(c):
                    out[s] += triple[joined(sets[s, b], sets[s, c], sets[s, d])]
                    for a in range(b):
                        out[s] += quad[quad_at(sets[s, a], sets[s, b], sets[s, c], sets[s, d])]
    return out


@njit(cache=True)
def step_rows(quads, splits, size, pair, triple, quad, split, mates, apart, distinct, steps):
    """Move the multipliers of (2), (3), (4) along the violation of their rows, in place."""
    experts = mates.shape[1]
    total = np.zeros(mates.shape)
    for n in range(len(quads)):
        slack = 1.0 - 3.0 * quad[n]
        for h in range(3):
            a, b = quads[n, splits[h, 0]], quads[n, splits[h, 1]]
            e, f = quads[n, splits[h, 2]], quads[n, splits[h, 3]]
            ab, ef = pair_at(a, b), pair_at(e, f)
            abe, abf = triple[joined(a, b, e)], triple[joined(a, b, f)]
            efa, efb = triple[joined(e, f, a)], triple[joined(e, f, b)]
            w = split[n, h]
            total[ab, e] += w
            total[ab, f] += w
            total[ef, a] += w
            total[ef, b] += w
            first = pair[ab] - abe - abf + quad[n] - w
            second = pair[ef] - efa - efb + quad[n] - w
            apart[n, h, 0] = max(0.0, apart[n, h, 0] - steps[1] * first)
            apart[n, h, 1] = max(0.0, apart[n, h, 1] - steps[1] * second)
            slack += w - pair[ab] - pair[ef]
            if h == 0:
                slack += 2.0 * (abe + abf + efa + efb)
        distinct[n] = max(0.0, distinct[n] - steps[2] * slack)
    for j in range(experts):
        for i in range(j):
            p = pair_at(i, j)
            for k in range(experts):
                if k not in (i, j):
                    room = (size - 1) * (pair[p] - triple[joined(i, j, k)])
                    mates[p, k] += steps[0] * (total[p, k] - room)


@njit(cache=True)
def gram_matrices(blocks, pairs, others, gpus, pair, triple, quad, split):
    """Matrices of (5) for some pairs, shape (blocks, E − 2, E − 2)."""
    size = others.shape[1]
    out = np.zeros((len(blocks), size, size))
    u = np.zeros(size)
    for r in range(len(blocks)):
        p = blocks[r]
        i, j = pairs[p]
        for a in range(size):
            u[a] = pair[p] - triple[joined(i, j, others[p, a])]
            out[r, a, a] = (gpus - 2) * u[a]
        for a in range(size):
            k = others[p, a]
            for b in range(a):
                l = others[p, b]  # l < k and i < j: find the quadruple and the split
                if j < l:
                    n, h = quad_at(i, j, l, k), 0
                elif k < i:
                    n, h = quad_at(l, k, i, j), 0
                elif i < l:
                    if k < j:
                        n, h = quad_at(i, l, k, j), 2
                    else:
                        n, h = quad_at(i, l, j, k), 1
                elif j < k:
                    n, h = quad_at(l, i, j, k), 2
                else:
                    n, h = quad_at(l, i, k, j), 1
                value = (gpus - 1) * split[n, h] - (u[a] + u[b] - pair[p] + quad[n])
                out[r, a, b] = value
                out[r, b, a] = value
    return out


def best_splits(
    patterns: Patterns, pair: FloatArray, triple: FloatArray, quad: FloatArray
) -> FloatArray:
    """Largest splits that (3) allows, shape (C(E,4), 3)."""
    out = np.zeros((len(patterns.quads), 3))
    _best_splits(patterns.quads, SPLITS, pair, triple, quad, out)
    return out


@njit(cache=True)
def _best_splits(quads, splits, pair, triple, quad, out):
    for n in range(len(quads)):
        for h in range(3):
            a, b = quads[n, splits[h, 0]], quads[n, splits[h, 1]]
            e, f = quads[n, splits[h, 2]], quads[n, splits[h, 3]]
            first = pair[pair_at(a, b)] - triple[joined(a, b, e)] - triple[joined(a, b, f)]
            second = pair[pair_at(e, f)] - triple[joined(e, f, a)] - triple[joined(e, f, b)]
            out[n, h] = max(0.0, min(first, second) + quad[n])
