"""Raises the bound with edges: generation of columns and edges, and multiplier steps, by turns."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from moeopt.problem import FloatArray, IntArray
from moeopt.proofs.columns_ascent import UNIT, Ascent, Multipliers, Node
from moeopt.proofs.columns_edges import (
    MOST_EXPERTS,
    charged,
    charges,
    cheapest,
    edge_units,
    ends,
    even_shares,
    masses,
    takes,
)
from moeopt.proofs.columns_edges_master import EdgeMaster, EdgeSolution
from moeopt.proofs.columns_patterns import improve, traces
from moeopt.proofs.columns_price import whole

#: Columns of least reduced cost that the pool starts with, and that are added later.
_FIRST, _LATER = 600, 100
#: Sizes at which the pools are cut, and what is kept.
_COLUMNS, _COLUMNS_KEPT = 2_000, 800
_EDGES, _EDGES_KEPT = 8_000, 2_500
#: Most solves of the LP between two steps; one is enough where it proves so much of its value.
_ROUNDS, _ENOUGH = 3, 5e-5
#: Weight of the best duals in the mean that is tried beside those of the LP.
_STAY = 0.5
#: Weight of the older masses in the mean that a step follows.
_MEMORY = 0.8
#: A loop ends where so many steps together gain less than this share of the bound.
_PATIENCE, _LEAST_GAIN = 6, 2e-4
_ZERO = 1e-9


def worth_it(ascent: Ascent) -> bool:
    """Whether replicas can be charged in this layer."""
    return (
        ascent.surplus > 0
        and ascent.experts <= MOST_EXPERTS
        and any(takes(group) for group in ascent.groups)
    )


class EdgeAscent:
    """The loop over one layer with replicas, from multipliers of the column bound on.

    Parameters
    ----------
    ascent : Ascent
        Brings the layer's prices and columns.
    slots : int
    """

    def __init__(self, ascent: Ascent, slots: int) -> None:
        self.ascent, self.slots = ascent, slots
        self.groups, self.lattice = ascent.groups, ascent.lattice
        self.shares = even_shares(self.groups)
        self.master = EdgeMaster(self.lattice, ascent.gpus, slots, ascent.surplus)
        self._reprice()

    def _reprice(self) -> None:
        self.cost, self.excess = self.ascent.pricing.cost(), self.ascent.pricing.excess()
        self.charge = charges(self.ascent.experts, self.groups, self.shares)

    def raise_bound(
        self,
        node: Node,
        iterations: int,
        *,
        step: float = 1.0,
        target: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        on_units: Callable[[int], None] = lambda units: None,
    ) -> None:
        """Raise ``node.units`` by so many steps, or until it reaches ``target``."""
        for group, price in zip(self.groups, node.multipliers.price, strict=True):
            group.price[...] = price
        if node.multipliers.share:
            self.shares = [share.copy() for share in node.multipliers.share]
        self._reprice()
        reduced = self._evaluate(node, node.multipliers.dual, on_units)
        if not len(self.master.columns):
            self.master.add_columns(_cheapest_columns(reduced, _FIRST))
        means = [np.zeros_like(group.price) for group in self.groups]
        apart = [np.zeros_like(share) for share in self.shares]
        history: list[int] = []
        for o in range(iterations):
            solution = self._solve(node, stop, on_units)
            self.ascent.iterations += 1
            if solution is None or stop() or (target is not None and node.units >= target):
                return
            history.append(node.units)
            if o >= _PATIENCE and history[o] - history[o - _PATIENCE] < _LEAST_GAIN * node.units:
                return
            length = step * (0.5 + 0.5 * math.cos(math.pi * (o + 1) / (iterations + 1)))
            self._step(solution, means, apart, o == 0, length)
            self._reprice()

    def _solve(
        self, node: Node, stop: Callable[[], bool], on_units: Callable[[int], None]
    ) -> EdgeSolution | None:
        """Generate columns and edges for the present prices; keep the best bound in the node."""
        solution = None
        for _ in range(_ROUNDS):
            self._cut(node.multipliers.dual)
            master = self.master
            paid = charged(self.charge, master.expert, master.inside(master.ends))
            solution = master.solve(np.asarray(self.cost * UNIT), np.asarray(paid * UNIT))
            if solution is None:
                return None
            best = node.multipliers.dual
            before = node.units
            self._evaluate(node, solution.dual, on_units)
            if stop() or node.units * UNIT >= solution.value - _ENOUGH * abs(solution.value):
                break
            if node.units == before:
                self._evaluate(node, _STAY * best + (1.0 - _STAY) * solution.dual, on_units)
        return solution

    def _evaluate(self, node: Node, dual: FloatArray, on_units: Callable[[int], None]) -> IntArray:
        """Bound that these duals prove; fill the pools with what is cheap; return reduced costs."""
        duals = whole(dual)
        reduced = self.cost - self.lattice.sums(duals)
        chosen = ends(self.lattice, self.slots, reduced)
        edge, found = cheapest(self.charge, chosen, duals)
        units = edge_units(duals, reduced, edge, self.excess, self.ascent.gpus, self.ascent.surplus)
        if units > node.units:
            node.units = units
            node.multipliers = Multipliers(
                np.asarray(duals * UNIT),
                tuple(group.price.copy() for group in self.groups),
                tuple(share.copy() for share in self.shares),
            )
            on_units(units)
        self.master.add_columns(_cheapest_columns(reduced, _LATER))
        self.master.add_edges(found)
        return np.asarray(reduced)

    def _step(
        self,
        solution: EdgeSolution,
        means: list[FloatArray],
        apart: list[FloatArray],
        first: bool,
        length: float,
    ) -> None:
        """Move prices and shares along the masses of a solution."""
        x, y = solution.x > _ZERO, solution.y > _ZERO
        columns = np.concatenate([solution.columns[x], solution.ends[y].ravel()])
        weight = np.concatenate([solution.x[x], (solution.y[y, None] * solution.share[y]).ravel()])
        sets, inside = self.lattice.sets(columns), self.master.inside(solution.ends[y])
        old = 0.0 if first else _MEMORY
        for k, group in enumerate(self.groups):
            mass = traces(group, sets, weight, self.ascent.experts)
            if takes(group):
                alone, beside = masses(group, solution.expert[y], inside, solution.y[y])
                mass -= beside
                apart[k] = old * apart[k] + (1.0 - old) * alone
                self.shares[k] += length * (apart[k] - apart[k].swapaxes(1, 2))
                np.clip(self.shares[k], 0.0, 1.0, out=self.shares[k])
            means[k] = old * means[k] + (1.0 - old) * mass
            improve(group, means[k], length)

    def _cut(self, dual: FloatArray) -> None:
        """Forget the dearest columns and edges of pools that are too large."""
        master = self.master
        if len(master.columns) <= _COLUMNS and len(master.expert) <= _EDGES:
            return
        reduced = (self.cost - self.lattice.sums(whole(dual))) * UNIT
        paid = charged(self.charge, master.expert, master.inside(master.ends)) * UNIT
        total = ((reduced[master.ends] - reduced.min()) * master.share()).sum(axis=1) + paid
        order = np.argsort(reduced[master.columns], kind="stable")
        master.keep(order[:_COLUMNS_KEPT], np.argsort(total, kind="stable")[:_EDGES_KEPT])


def _cheapest_columns(reduced: IntArray, count: int) -> IntArray:
    """Numbers of about so many columns of least reduced cost, without the empty set."""
    if len(reduced) <= count:
        return np.arange(1, len(reduced), dtype=np.int64)
    order = np.argpartition(reduced, count)[:count]
    return np.asarray(order[order > 0])
