"""Raises the column bound: column generation and multiplier steps by turns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeopt.problem import FloatArray, IntArray
from moeopt.proofs.columns_master import Master, MasterSolution
from moeopt.proofs.columns_patterns import crowding, improve, traces
from moeopt.proofs.columns_price import BITS, Pricing, bound_units, whole

UNIT = 2.0**-BITS
#: Columns added after a solve of the column LP: at first, and later.
_FIRST, _LATER = 400, 150
#: Most solves of the column LP before the first step, and between two steps.
_FIRST_ROUNDS, _ROUNDS = 12, 1
#: Size at which the pool is cut, and what is kept of it.
_POOL, _KEPT = 900, 400
#: Reduced costs this close to zero count as zero; values this close are equal.
_ZERO = 1e-9
#: Weight of the older masses in the mean that a step follows.
_MEMORY = 0.8


@dataclass(frozen=True)
class Multipliers:
    """What proves a bound: dual π of every expert, prices f_S of every group of scenarios.

    With shares (of every group, see :func:`moeopt.proofs.columns_edges.charges`) replicas are
    charged, too.
    """

    dual: FloatArray
    price: tuple[FloatArray, ...]
    share: tuple[FloatArray, ...] = ()


@dataclass
class Node:
    """A set of allowed columns, and what is known of the plans made of them.

    Attributes
    ----------
    allowed : int array
        Numbers of the columns.
    units : int
        Proved bound on the excess time, in units of 2**-BITS, by ``multipliers``.
    together : float array, shape (E, E)
        How far the last solution puts pairs of experts on one GPU, Σ_(B∋i,j) x_B.
    closed : bool
        Some plan of the single-copy relaxation costs what is proved.
    """

    allowed: IntArray
    units: int
    multipliers: Multipliers
    together: FloatArray
    closed: bool = False


class Ascent:
    """The multiplier loop over one layer.

    Parameters
    ----------
    surplus : int
        X, the most experts that are replicated.

    Attributes
    ----------
    paid, sets
        Least excess time, in the single-copy relaxation, of a whole solution of the column LP, and
        its sets; ``inf`` and empty before the first.
    iterations : int
        Steps made so far, in all nodes.
    """

    def __init__(self, pricing: Pricing, gpus: int, surplus: int) -> None:
        self.pricing, self.gpus, self.surplus = pricing, gpus, surplus
        self.lattice, self.groups = pricing.lattice, pricing.groups
        self.experts = self.lattice.experts
        self.paid, self.sets = math.inf, list[list[int]]()
        self.iterations = 0

    def root(self) -> Node:
        """All columns; nothing is proved but that times are no less than the least."""
        every = np.arange(1, len(self.lattice), dtype=np.int64)
        prices = tuple(group.price.copy() for group in self.groups)
        nothing = np.zeros((self.experts, self.experts))
        return Node(every, 0, Multipliers(np.zeros(self.experts), prices), nothing)

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
        """Raise ``node.units`` by so many steps, or until it reaches ``target``.

        Ends early where a whole solution of the column LP costs no more than is proved.
        """
        for group, price in zip(self.groups, node.multipliers.price, strict=True):
            group.price[...] = price
        master = Master(self.gpus, self.surplus, node.multipliers.dual)
        means = [np.zeros_like(group.price) for group in self.groups]
        for o in range(iterations):
            solution = self._solve(master, node, o == 0, stop, on_units)
            self.iterations += 1
            if solution is None:
                return  # what is proved stays proved
            used = np.flatnonzero(solution.x > _ZERO)
            sets = [master.sets[b] for b in used.tolist()]
            x = solution.x[used]
            masses = [traces(group, sets, x, self.experts) for group in self.groups]
            node.together = _together(sets, x, self.experts)
            if (x > 1.0 - _ZERO).all() and (np.abs(solution.u - 0.5) > 0.5 - _ZERO).all():
                node.closed = self.pay(sets) <= node.units * UNIT + _ZERO
            if node.closed or stop() or (target is not None and node.units >= target):
                return
            length = step * (0.5 + 0.5 * math.cos(math.pi * (o + 1) / (iterations + 1)))
            for group, mean, mass in zip(self.groups, means, masses, strict=True):
                if o == 0:
                    mean += mass
                else:
                    mean *= _MEMORY
                    mean += (1.0 - _MEMORY) * mass
                improve(group, mean, length)

    def _solve(
        self,
        master: Master,
        node: Node,
        first: bool,
        stop: Callable[[], bool],
        on_units: Callable[[int], None],
    ) -> MasterSolution | None:
        """Column generation for the present prices; keeps the best bound in the node."""
        cost, excess = self.pricing.cost(), self.pricing.excess()
        before = cost - self.lattice.sums(whole(master.dual))
        if first:
            self._add(master, node, before, _FIRST)
        elif len(master.numbers) > _POOL:
            master.keep(np.argsort(before[master.numbers], kind="stable")[:_KEPT])
        solution = None
        for _ in range(_FIRST_ROUNDS if first else _ROUNDS):
            solution = master.solve(np.asarray(cost[master.numbers] * UNIT))
            if solution is None:
                return None
            dual = whole(solution.dual)
            reduced = cost - self.lattice.sums(dual)
            smallest = int(reduced[node.allowed].min(initial=0))
            units = bound_units(dual, smallest, excess, self.gpus, self.surplus)
            if units > node.units:
                prices = tuple(group.price.copy() for group in self.groups)
                node.units, node.multipliers = units, Multipliers(np.asarray(dual * UNIT), prices)
                on_units(units)
            if smallest >= -_ZERO / UNIT or stop():
                break
            self._add(master, node, reduced, _FIRST if first else _LATER)
        return solution

    def pay(self, sets: list[list[int]]) -> float:
        """Excess time of a whole solution, ``inf`` if experts are missing; keeps the best one."""
        covered: set[int] = set()
        disjoint = []
        for members in sets:
            # An expert covered twice needs one place only.
            disjoint.append([e for e in members if e not in covered])
            covered.update(members)
        if self.experts - len(covered) > self.surplus:
            return math.inf  # only the artificial columns cover them
        disjoint = [members for members in disjoint if members]
        paid = 0.0
        for group in self.groups:
            mass = traces(group, disjoint, np.ones(len(disjoint)), self.experts)
            paid += float(group.weight @ crowding(group, mass))
        if paid < self.paid:
            self.paid, self.sets = paid, disjoint
        return paid

    def _add(self, master: Master, node: Node, reduced: IntArray, most: int) -> None:
        """Add the columns of least reduced cost (at first: whatever its sign)."""
        price = reduced[node.allowed]
        order = np.arange(len(price))
        if len(price) > most:
            order = np.argpartition(price, most)[:most]
        if len(master.numbers):
            order = order[price[order] < 0]
        numbers = np.setdiff1d(node.allowed[order], master.numbers)
        master.add(numbers, self.lattice.sets(numbers))


def _together(sets: list[list[int]], x: FloatArray, experts: int) -> FloatArray:
    inside = np.zeros((len(sets), experts))
    for row, members in zip(inside, sets, strict=True):
        row[members] = 1.0
    return np.asarray(inside.T @ (inside * x[:, None]))
