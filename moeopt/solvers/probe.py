"""The two-variable program that every solver must solve before it is believed."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from moeopt.linear import LinearModel
from moeopt.solvers.base import SolveResult

OPTIMUM = 9.0


def probe_model() -> LinearModel:
    """Return ``min 2x + 3z, x + z >= 4.5, z integer``: highspy 1.14.0 says 15, it is 9."""
    return LinearModel(
        matrix=sparse.csr_array(np.array([[1.0, 1.0]])),
        cost=np.array([2.0, 3.0]),
        lower=np.zeros(2),
        upper=np.full(2, np.inf),
        row_lower=np.array([4.5]),
        row_upper=np.array([np.inf]),
        integer=np.array([False, True]),
    )


def probe_problem(solver: str, result: SolveResult) -> str | None:
    """Return None, or what is wrong with a solver's answer to the probe."""
    for value in (result.primal_bound, result.dual_bound):
        if result.reason != "optimal" or value is None or abs(value - OPTIMUM) > 1e-6:
            return f"{solver} says {result.reason} {value} where the optimum is {OPTIMUM:g}"
    return None
