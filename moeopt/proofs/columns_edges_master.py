"""The column LP with edges, over growing pools of columns and edges.

An edge y of r has two ends; it pays for each of them by one of the q(B) = c − |B| free slots.

    min Σ_B cost(B) x_B + Σ_(r,B,B') [cost(B)/q(B) + cost(B')/q(B') + W_r(B,B')] y
    Σ_(B∋i) x_B + Σ_(r,B,B') ([i∈B]/q(B) + [i∈B']/q(B')) y + u_i + v_i ≥ 1
    u_r ≤ Σ_(B,B') y_(r,B,B'),   Σ_i (u_i + 2 v_i) ≤ X,   Σ_B x_B + Σ (1/q(B) + 1/q(B')) y ≤ G

Its solver (HiGHS, as it comes with scipy) is trusted for nothing: the bound holds for any duals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from moeopt.problem import FloatArray, IntArray
from moeopt.proofs.columns_edges import BoolArray, Edges
from moeopt.proofs.columns_lattice import Lattice
from moeopt.proofs.columns_master import UNCOVERED


@dataclass(frozen=True)
class EdgeSolution:
    """A solution over the pools as they were.

    Attributes
    ----------
    columns, x : arrays, shape (n,)
        Columns (numbers in the lattice) and their weights.
    expert, ends, share, y : arrays, shape (m,), (m, 2), (m, 2) and (m,)
        Edges: expert, ends (numbers in the lattice), 1/q of the ends, and their weights.
    dual : float array, shape (E,)
    value : float
    """

    columns: IntArray
    x: FloatArray
    expert: IntArray
    ends: IntArray
    share: FloatArray
    y: FloatArray
    dual: FloatArray
    value: float


class EdgeMaster:
    """Pools of columns and of edges.

    Attributes
    ----------
    columns : int array, shape (n,)
        Numbers in the lattice.
    expert, ends : int arrays, shape (m,) and (m, 2)
        Edges; ends are numbers in the lattice.
    """

    def __init__(self, lattice: Lattice, gpus: int, slots: int, surplus: int) -> None:
        self.lattice, self.gpus, self.slots, self.surplus = lattice, gpus, slots, surplus
        self.columns: IntArray = np.zeros(0, dtype=np.int64)
        self.expert: IntArray = np.zeros(0, dtype=np.int64)
        self.ends: IntArray = np.zeros((0, 2), dtype=np.int64)

    def add_columns(self, numbers: IntArray) -> None:
        """Add columns that are not in the pool."""
        self.columns = np.union1d(self.columns, numbers)

    def add_edges(self, edges: Edges) -> None:
        """Add edges that are not in the pool."""
        size = len(self.lattice)
        old = (self.expert * size + self.ends[:, 0]) * size + self.ends[:, 1]
        first, second = edges.ends.min(axis=1), edges.ends.max(axis=1)
        new = np.setdiff1d((edges.expert * size + first) * size + second, old)
        self.expert = np.concatenate([self.expert, new // size**2])
        both = np.stack([new // size % size, new % size], axis=1)
        self.ends = np.concatenate([self.ends, both])

    def keep(self, columns: IntArray, edges: IntArray) -> None:
        """Forget all but these rows."""
        self.columns = self.columns[columns]
        self.expert, self.ends = self.expert[edges], self.ends[edges]

    def inside(self, numbers: IntArray) -> BoolArray:
        """Which experts the sets with these numbers have: shape (..., E)."""
        flat = numbers.ravel()
        found = np.zeros((len(flat), self.lattice.experts), dtype=bool)
        for d in range(1, self.lattice.largest + 1):
            first, last = self.lattice.offset[d], self.lattice.offset[d + 1]
            rows = np.flatnonzero((flat >= first) & (flat < last))
            found[rows[:, None], self.lattice.members[d][flat[rows] - first]] = True
        return found.reshape(*numbers.shape, self.lattice.experts)

    def share(self) -> FloatArray:
        """1/q of the ends of the edges: shape (m, 2)."""
        size = np.searchsorted(self.lattice.offset, self.ends, side="right") - 1
        return np.asarray(1.0 / (self.slots - size))

    def solve(self, cost: FloatArray, charge: FloatArray) -> EdgeSolution | None:
        """Solve for these costs of all columns and charges of the edges; None if it fails."""
        experts, n, m = self.lattice.experts, len(self.columns), len(self.expert)
        share = self.share()
        inside, ends = self.inside(self.columns), self.inside(self.ends)
        halves = (ends * share[:, :, None]).sum(axis=1)
        one, all_x, all_y = np.arange(experts), np.arange(n), np.arange(m)
        # Columns: columns, edges, u, v, artificial. Rows: experts, edges of experts, copies, GPUs.
        at_u, at_v, at_more = n + m, n + m + experts, n + m + 2 * experts
        copies, count = 2 * experts, 2 * experts + 1
        in_x, in_y = np.nonzero(inside), np.nonzero(halves)
        entries = [
            (in_x[1], in_x[0], np.full(len(in_x[0]), -1.0)),
            (in_y[1], n + in_y[0], -halves[in_y]),
            *((one, at + one, np.full(experts, -1.0)) for at in (at_u, at_v, at_more)),
            (experts + self.expert, n + all_y, np.full(m, -1.0)),
            (experts + one, at_u + one, np.ones(experts)),
            (np.full(experts, copies), at_u + one, np.ones(experts)),
            (np.full(experts, copies), at_v + one, np.full(experts, 2.0)),
            (np.full(n, count), all_x, np.ones(n)),
            (np.full(m, count), n + all_y, share.sum(axis=1)),
        ]
        row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
        matrix = sparse.csc_array(
            (value, (row, column)), shape=(2 * experts + 2, n + m + 3 * experts)
        )
        price = np.concatenate(
            [
                cost[self.columns],
                (cost[self.ends] * share).sum(axis=1) + charge,
                np.zeros(2 * experts),
                np.full(experts, UNCOVERED),
            ]
        )
        limit = np.concatenate(
            [np.full(experts, -1.0), np.zeros(experts), [self.surplus, self.gpus]]
        )
        # scipy-stubs knows dense matrices only.
        result = linprog(  # type: ignore[call-overload]
            price, A_ub=matrix, b_ub=limit, method="highs-ds"
        )
        if result.x is None:
            return None
        x = np.asarray(result.x, dtype=np.float64)
        dual = -np.asarray(result.ineqlin.marginals, dtype=np.float64)[:experts]
        return EdgeSolution(
            self.columns,
            x[:n],
            self.expert,
            self.ends,
            share,
            x[n : n + m],
            dual,
            float(price @ x),
        )
