"""Column bound of ``intra``: the sets of experts that one GPU can hold, all enumerated.

A token of scenario S touches a GPU with the set A if S and A meet. A plan is G sets that cover
every expert once, so for any prices u of the experts the expected GPUs of a token are at least

    Σ u + G · min over A of [P(S meets A) - u(A)].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numba import njit
from scipy import sparse
from scipy.optimize import Bounds, linprog, milp

from moeopt.affinity.columns import sets_of
from moeopt.affinity.data import FloatArray, IntArray
from moeopt.problem import Scenarios

#: Bits behind the point of probabilities and prices.
BITS = 44
_ROUNDS, _NEW, _WHOLE_S = 60, 300, 5.0
#: Ends when the bound is so near to the linear program's value.
_NEAR = 1e-6


@dataclass(frozen=True)
class TouchBound:
    """``value``: expected GPUs that a token touches, at least; ``row``: a plan, shape (E,)."""

    value: Fraction
    prices: IntArray
    row: IntArray | None


@njit(cache=True, nogil=True)
def _touching(sets: Any, scenario: Any, weight: Any) -> Any:
    """Weight of the scenarios that meet each set; scenarios are bit masks of experts."""
    found = np.zeros(len(sets), dtype=np.int64)
    for k in range(len(sets)):
        mask = np.uint64(0)
        for e in sets[k]:
            mask |= np.uint64(1) << np.uint64(e)
        total = np.int64(0)
        for s in range(len(scenario)):
            if scenario[s] & mask != 0:
                total += weight[s]
        found[k] = total
    return found


def touching(scenarios: Scenarios, sets: IntArray) -> IntArray:
    """Probability of touching each set, in units of 2**-BITS, rounded down."""
    bit = np.uint64(1) << scenarios.expert.astype(np.uint64)
    masks = np.bitwise_or.reduceat(bit, scenarios.ptr[:-1])
    weight = np.floor(np.ldexp(scenarios.weight, BITS)).astype(np.int64)
    return np.asarray(_touching(sets, masks, weight))


def touch_bound(
    scenarios: Scenarios,
    experts: int,
    gpus: int,
    *,
    load: FloatArray,
    most: float,
    stop: Callable[[], bool] = lambda: False,
) -> TouchBound:
    """Bound the GPUs that a token touches in one layer from below.

    Parameters
    ----------
    load : float array, shape (E,)
    most : float
        Most tokens of a GPU; sets with more are left out.
    """
    size = experts // gpus
    sets = sets_of(experts, size)
    sets = sets[load[sets].sum(axis=1) <= most]
    cost = touching(scenarios, sets)
    prices = np.zeros(experts, dtype=np.int64)
    pool = np.zeros(0, dtype=np.int64)
    best: tuple[Fraction, IntArray] | None = None
    for _ in range(_ROUNDS):
        reduced = cost - prices[sets].sum(axis=1)
        bound = Fraction(int(prices.sum()) + gpus * int(reduced.min()), 2**BITS)
        if best is None or bound > best[0]:
            best = bound, prices
        new = np.argpartition(reduced, min(_NEW, len(sets) - 1))[:_NEW]
        pool = np.union1d(pool, new)
        value, dual = _master(np.ldexp(cost[pool].astype(float), -BITS), sets[pool], experts)
        if stop() or value - float(best[0]) <= _NEAR:
            break
        prices = np.rint(np.ldexp(dual, BITS)).astype(np.int64)
        prices = (prices + best[1]) // 2
    assert best is not None
    row = _whole_sets(np.ldexp(cost[pool].astype(float), -BITS), sets[pool], experts)
    return TouchBound(best[0], best[1], row)


def _matrix(sets: IntArray, experts: int) -> sparse.csc_array:
    place = np.repeat(np.arange(len(sets)), sets.shape[1])
    return sparse.csc_array((np.ones(sets.size), (sets.ravel(), place)), (experts, len(sets)))


def _master(cost: FloatArray, sets: IntArray, experts: int) -> tuple[float, FloatArray]:
    """Value and prices of the linear program over the pool; a missing expert costs 2."""
    matrix = sparse.hstack([_matrix(sets, experts), sparse.eye_array(experts)], format="csc")
    costs = np.concatenate([cost, np.full(experts, 2.0)])
    found = linprog(costs, A_eq=matrix, b_eq=np.ones(experts), bounds=(0, None), method="highs")
    if found.status != 0 or found.fun is None:
        raise ArithmeticError(f"the column program was not solved: {found.message}")
    return float(found.fun), np.asarray(found.eqlin.marginals)


def _whole_sets(cost: FloatArray, sets: IntArray, experts: int) -> IntArray | None:
    ones = np.ones(experts)
    found = milp(
        cost,
        constraints=[(_matrix(sets, experts), ones, ones)],
        integrality=np.ones(len(cost), dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"time_limit": _WHOLE_S, "mip_rel_gap": 1e-7},
    )
    if found.x is None:
        return None
    row = np.full(experts, -1, dtype=np.int64)
    for g, members in enumerate(sets[found.x > 0.5]):
        row[members] = g
    return row if (row >= 0).all() else None
