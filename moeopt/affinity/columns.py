"""Column bound of two consecutive layers: what one GPU holds of both, priced exactly.

A column is a set A of experts of the first layer and a set B of the second, both of E/G experts;
it keeps ``R(A, B)`` tokens on its GPU. A plan is G columns that cover every expert once, so for any
prices u, v of the experts

    tokens kept  <=  Σ u + Σ v + G · max over (A, B) of [R(A, B) - u(A) - v(B)].

For a given A the best B takes the experts with the largest ``Σ_(a in A) R[a, b] - v[b]``: all sets
A are enumerated and the maximum is exact, in whole numbers. Prices come from the linear program
over the columns met so far, drawn towards the best prices known; nothing rests on its solver.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numba import njit
from scipy import sparse
from scipy.optimize import Bounds, linprog, milp

from moeopt.affinity.data import FloatArray, IntArray

#: More sets of experts of one GPU are not enumerated.
MOST_SETS = 200_000
#: New columns a round: the best ones, and the best one of each expert.
_BEST = 60
#: Weight of the best prices known against those of the linear program.
_SMOOTH = 0.8
#: Bits behind the point of prices and tokens.
BITS = 12
#: Seconds for the whole columns at the end, and how near the bound they need to be.
_WHOLE_S = 5.0


@dataclass(frozen=True)
class ColumnBound:
    """The most tokens that two layers can keep.

    Attributes
    ----------
    value : Fraction
        Proved by the prices alone (:func:`most_kept`).
    prices : int arrays (E,), (E,)
        Of the experts of both layers, in units of 2**-BITS.
    place : int array, shape (2, E), or None
        The best plan of the columns met, if whole columns cover all experts.
    """

    value: Fraction
    prices: tuple[IntArray, IntArray]
    place: IntArray | None
    rounds: int
    columns: int


def supports(experts: int, gpus: int) -> str | None:
    """Say why there are too many columns, or None."""
    sets = math.comb(experts, experts // gpus)
    return f"{sets:,} sets of experts a GPU; at most {MOST_SETS:,}" if sets > MOST_SETS else None


def sets_of(experts: int, size: int) -> IntArray:
    """All sets of experts of one GPU, shape (sets, size)."""
    return np.array(list(itertools.combinations(range(experts), size)), dtype=np.int64)


@njit(cache=True, nogil=True)
def _price(sets: Any, flow: Any, u: Any, v: Any, value: Any, mates: Any) -> None:
    """Best partners of every set, shape (sets, size), and what they are worth."""
    size, experts = sets.shape[1], len(u)
    row = np.empty(experts, dtype=np.int64)
    for k in range(len(sets)):
        total = np.int64(0)
        for b in range(experts):
            row[b] = -v[b]
        for i in range(size):
            a = sets[k, i]
            total -= u[a]
            for b in range(experts):
                row[b] += flow[a, b]
        for i in range(size):
            best = 0
            for b in range(1, experts):
                if row[b] > row[best]:
                    best = b
            total += row[best]
            row[best] = -(2**62)
            mates[k, i] = best
        value[k] = total


def whole(flow: FloatArray) -> IntArray:
    """Tokens in units of 2**-BITS, rounded up: more can be kept, not less."""
    return np.ceil(np.ldexp(flow, BITS)).astype(np.int64)


def most_kept(flow: IntArray, gpus: int, u: IntArray, v: IntArray, sets: IntArray) -> Fraction:
    """Return the bound that any prices prove, in tokens."""
    value, mates = np.empty(len(sets), dtype=np.int64), np.empty_like(sets)
    _price(sets, flow, u, v, value, mates)
    return Fraction(int(u.sum()) + int(v.sum()) + gpus * int(value.max()), 2**BITS)


def column_bound(
    flow: FloatArray,
    gpus: int,
    *,
    load: FloatArray | None = None,
    most: float = math.inf,
    rounds: int = 100,
    tolerance: float = 1e-4,
    stop: Callable[[], bool] = lambda: False,
) -> ColumnBound:
    """Bound the tokens that stay on their GPU from a layer to the next, from above.

    Parameters
    ----------
    flow : float array, shape (E, E)
    load : float array, shape (2, E), optional
        With ``most``, the most tokens of a GPU: fuller columns are left out of the plan, and fuller
        sets of the first layer out of the bound, too.
    tolerance : float
        Ends when the bound is so near to the linear program's value.
    """
    experts = len(flow)
    size = experts // gpus
    sets = sets_of(experts, size)
    if load is not None:
        sets = sets[load[0][sets].sum(axis=1) <= most]
    tokens = whole(flow)
    value, mates = np.empty(len(sets), dtype=np.int64), np.empty_like(sets)
    pool: dict[tuple[int, ...], float] = {}
    u = np.rint(tokens.sum(axis=1) / gpus).astype(np.int64)
    v = np.rint(tokens.sum(axis=0) / gpus).astype(np.int64)
    best: tuple[Fraction, IntArray, IntArray] | None = None
    holds = np.zeros((experts, len(sets)), dtype=bool)
    holds[sets.T, np.arange(len(sets))] = True
    taken = 0
    for _ in range(rounds):
        taken += 1
        _price(sets, tokens, u, v, value, mates)
        bound = Fraction(int(u.sum()) + int(v.sum()) + gpus * int(value.max()), 2**BITS)
        if best is None or bound < best[0]:
            best = bound, u, v
        chosen = np.argpartition(-value, min(_BEST, len(value) - 1))[:_BEST].tolist()
        chosen += [int(np.where(row, value, -(2**62)).argmax()) for row in holds]
        for k in chosen:
            column = (*sets[k].tolist(), *sorted(mates[k].tolist()))
            if column not in pool:
                pool[column] = float(flow[np.ix_(sets[k], mates[k])].sum())
        reached, lp_u, lp_v = _master(pool, experts, size, float(flow.max(initial=1.0)) * size**2)
        if stop() or float(best[0]) - reached <= tolerance * abs(reached):
            break
        u = np.rint(_SMOOTH * best[1] + (1 - _SMOOTH) * np.ldexp(lp_u, BITS)).astype(np.int64)
        v = np.rint(_SMOOTH * best[2] + (1 - _SMOOTH) * np.ldexp(lp_v, BITS)).astype(np.int64)
    assert best is not None
    if load is not None:
        pool = {c: w for c, w in pool.items() if load[1][list(c[size:])].sum() <= most}
    place = _whole_columns(pool, experts, size, gpus)
    return ColumnBound(best[0], (best[1], best[2]), place, taken, len(pool))


def _matrix(pool: dict[tuple[int, ...], float], experts: int, size: int) -> sparse.csc_array:
    columns = np.array(list(pool), dtype=np.int64)
    columns[:, size:] += experts
    count = len(columns)
    place = np.repeat(np.arange(count), 2 * size)
    ones = np.ones(columns.size)
    return sparse.csc_array((ones, (columns.ravel(), place)), shape=(2 * experts, count))


def _master(
    pool: dict[tuple[int, ...], float], experts: int, size: int, penalty: float
) -> tuple[float, FloatArray, FloatArray]:
    """Value and prices of the linear program over the pool; missing experts cost a penalty."""
    matrix = _matrix(pool, experts, size)
    rows = 2 * experts
    slack = sparse.hstack([matrix, sparse.eye_array(rows), -sparse.eye_array(rows)], format="csc")
    cost = np.concatenate([-np.array(list(pool.values())), np.full(2 * rows, penalty)])
    found = linprog(cost, A_eq=slack, b_eq=np.ones(rows), bounds=(0, None), method="highs")
    if found.status != 0 or found.fun is None:
        raise ArithmeticError(f"the column program was not solved: {found.message}")
    prices = -np.asarray(found.eqlin.marginals)
    return -float(found.fun), prices[:experts], prices[experts:]


def _whole_columns(
    pool: dict[tuple[int, ...], float], experts: int, size: int, gpus: int
) -> IntArray | None:
    """Choose whole columns of the pool; None if none were found in time."""
    if not pool:
        return None
    found = milp(
        -np.array(list(pool.values())),
        constraints=[(_matrix(pool, experts, size), np.ones(2 * experts), np.ones(2 * experts))],
        integrality=np.ones(len(pool), dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"time_limit": _WHOLE_S, "mip_rel_gap": 1e-6},
    )
    if found.x is None:
        return None
    columns = np.array(list(pool), dtype=np.int64)[found.x > 0.5]
    place = np.full((2, experts), -1, dtype=np.int64)
    for g, column in enumerate(columns):
        place[0, column[:size]] = g
        place[1, column[size:]] = g
    return place if len(columns) == gpus and (place >= 0).all() else None
