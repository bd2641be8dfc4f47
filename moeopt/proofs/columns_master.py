"""The column LP over a growing pool of columns.

    min Σ_B cost(B) x_B    Σ_(B∋i) x_B + u_i ≥ 1,  Σ_i u_i ≤ X,  Σ_B x_B ≤ G,  x, u ≥ 0

Its solver (HiGHS, as it comes with scipy) is trusted for nothing: the bound holds for any duals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from moeopt.problem import FloatArray, IntArray

#: An expert without a column costs so much.
UNCOVERED = 10.0


@dataclass(frozen=True)
class MasterSolution:
    """A solution of the column LP: of the pool's columns, the dropped experts, and the duals.

    ``x``: shape (pool,); ``u`` and ``dual``: shape (E,).
    """

    x: FloatArray
    u: FloatArray
    dual: FloatArray


class Master:
    """Pool of columns, by their numbers in the lattice.

    Attributes
    ----------
    dual : float array, shape (E,)
        Duals of the last solution.
    """

    def __init__(self, gpus: int, surplus: int, dual: FloatArray) -> None:
        self.gpus, self.surplus = gpus, surplus
        self.numbers: IntArray = np.zeros(0, dtype=np.int64)
        self.sets: list[list[int]] = []
        self.dual = dual

    def add(self, numbers: IntArray, sets: list[list[int]]) -> None:
        """Add columns that are not in the pool."""
        self.numbers = np.concatenate([self.numbers, numbers])
        self.sets += sets

    def keep(self, rows: IntArray) -> None:
        """Forget all columns but these."""
        self.numbers = self.numbers[rows]
        self.sets = [self.sets[r] for r in rows.tolist()]

    def solve(self, cost: FloatArray) -> MasterSolution | None:
        """Solve for these costs of the pool's columns; None if the solver gives up."""
        experts, count = len(self.dual), len(self.numbers)
        sizes = np.array([len(s) for s in self.sets], dtype=np.int64)
        one = np.arange(experts)
        # Columns: the pool, u, artificial ones. Rows: experts, copies, GPUs.
        row = [np.array([e for s in self.sets for e in s], dtype=np.int64), one, one]
        column = [np.repeat(np.arange(count), sizes), count + one, count + experts + one]
        value = [np.full(len(r), -1.0) for r in row]
        row += [np.full(experts, experts), np.full(count, experts + 1)]
        column += [count + one, np.arange(count)]
        value += [np.ones(experts), np.ones(count)]
        matrix = sparse.csc_array(
            (np.concatenate(value), (np.concatenate(row), np.concatenate(column))),
            shape=(experts + 2, count + 2 * experts),
        )
        # scipy-stubs knows dense matrices only.
        result = linprog(  # type: ignore[call-overload]
            np.concatenate([cost, np.zeros(experts), np.full(experts, UNCOVERED)]),
            A_ub=matrix,
            b_ub=np.concatenate([np.full(experts, -1.0), [self.surplus, self.gpus]]),
            method="highs-ds",
        )
        if result.x is None:
            return None
        self.dual = -np.asarray(result.ineqlin.marginals, dtype=np.float64)[:experts]
        x = np.asarray(result.x, dtype=np.float64)
        return MasterSolution(x[:count], x[count : count + experts], self.dual)
