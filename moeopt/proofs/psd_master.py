"""Mixtures of sets that cover every expert once: projection, cheapest mixture, its duals."""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy import sparse
from scipy.optimize import linprog

from moeopt.problem import FloatArray, IntArray


def cheapest_mixture(
    sets: IntArray, costs: FloatArray, experts: int
) -> tuple[FloatArray, FloatArray]:
    """Solve ``min costs·x`` over ``x >= 0`` with every expert covered once.

    Parameters
    ----------
    sets : int array, shape (P, c)
        Some mixture of them must cover every expert once.

    Returns
    -------
    share : float array, shape (P,)
    price : float array, shape (E,)
        Duals. They need no trust: a bound is evaluated from whatever they are.
    """
    pointers = np.arange(0, sets.size + 1, sets.shape[1])
    rows = sparse.csc_array(
        (np.ones(sets.size), sets.ravel(), pointers), shape=(experts, len(sets))
    )
    # The solver's tolerances are absolute.
    scale = float(np.abs(costs).max()) or 1.0
    result = linprog(  # type: ignore[call-overload]  # its stubs know no sparse rows
        costs / scale, A_eq=rows, b_eq=np.ones(experts), method="highs-ds"
    )
    if result.x is None:
        raise RuntimeError(f"the restricted master problem was not solved: {result.message}")
    return np.maximum(result.x, 0.0), result.eqlin.marginals * scale


@njit(cache=True)
def project(sets, point, experts, price, tolerance, most):
    """Nearest mixture of ``sets`` to ``point`` that covers every expert once.

    Semismooth Newton method with step halving on the dual, ``x = max(0, point + price(set))``;
    ``price`` (E,) is where it starts and is overwritten.
    """
    count, size = sets.shape
    hessian = np.zeros((experts, experts))
    gradient = np.zeros(experts)
    share = np.zeros(count)
    trial = price.copy()
    direction = np.zeros(experts)
    before, step = np.inf, 1.0
    for _ in range(most):
        value = -trial.sum()
        gradient[:] = -1.0
        for p in range(count):
            x = point[p]
            for r in range(size):
                x += trial[sets[p, r]]
            share[p] = max(0.0, x)
            if x > 0.0:
                value += 0.5 * x * x
                for r in range(size):
                    gradient[sets[p, r]] += x
        if value > before + 1e-13 * abs(before) and step > 1e-6:
            step *= 0.5
            trial = price + step * direction
            continue
        price[:] = trial
        before = value
        if np.abs(gradient).max() < tolerance:
            break
        hessian[:] = 0.0
        for p in range(count):
            if share[p] > 0.0:
                for r in range(size):
                    for s in range(size):
                        hessian[sets[p, r], sets[p, s]] += 1.0
        for i in range(experts):
            hessian[i, i] += 1e-4  # experts in no active set
        direction = -np.linalg.solve(hessian, gradient)
        step = 1.0
        trial = price + direction
    return share


def random_sets(experts: int, size: int, rng: np.random.Generator, partitions: int) -> IntArray:
    """Sets of random partitions: some mixture of them covers every expert once."""
    orders = np.array([rng.permutation(experts) for _ in range(partitions)])
    return np.unique(np.sort(orders.reshape(-1, size), axis=1), axis=0)


def carried_over(old: IntArray, share: FloatArray, new: IntArray) -> FloatArray:
    """Shares of ``old`` sets for the same sets in ``new`` (0 for new ones)."""
    known = {row.tobytes(): x for row, x in zip(old, share, strict=True)}
    return np.array([known.get(row.tobytes(), 0.0) for row in new])
