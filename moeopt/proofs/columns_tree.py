"""Branch and bound on pairs of experts (Ryan and Foster), for layers without replicas.

A pair shares a GPU or it does not: each answer forbids columns. The single-copy relaxation of a
plan without replicas is the plan itself, so the tree ends at the optimum.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moeopt.problem import FloatArray
from moeopt.proofs.columns_ascent import UNIT, Ascent, Node
from moeopt.proofs.columns_price import bound_units, whole

#: Steps of a child node, and the first one's length.
_STEPS, _STEP = 24, 0.4
#: A node this close to the best plan is done, in expert-time units.
_CLOSE = 1e-7
#: Far more than the rounding of a plan's time, in expert-time units.
_ROUNDING = 1e-12
#: Units of a node without plans.
_NO_PLAN = 2**62

BoolArray = npt.NDArray[np.bool_]


class Tree:
    """Best-first search below a root whose bound was raised.

    Attributes
    ----------
    nodes : int
        Nodes whose bound was computed.
    finished : bool
        Every node is done.
    """

    def __init__(self, ascent: Ascent, upper: float) -> None:
        self.ascent, self._upper = ascent, upper
        self.nodes, self.finished = 1, False
        self.done = math.inf  # least bound of a node that is done, in units
        lattice = ascent.lattice
        inside = np.zeros((len(lattice), lattice.experts), dtype=bool)
        for d in range(1, lattice.largest + 1):
            rows = np.arange(lattice.offset[d], lattice.offset[d + 1])
            inside[rows[:, None], lattice.members[d]] = True
        self._inside = inside
        self._weight = _pair_weights(ascent)

    @property
    def upper(self) -> float:
        """Excess time of the best plan known or found."""
        return min(self._upper, self.ascent.paid)

    @property
    def target(self) -> int:
        """Units at which a node is done."""
        if math.isinf(self.upper):
            return _NO_PLAN
        return math.floor((self.upper - _CLOSE) / UNIT)

    def search(self, root: Node, stop: Callable[[], bool], on_units: Callable[[int], None]) -> int:
        """Search until every node is done or ``stop``; return the bound that is proved."""
        proved = root.units
        count = 0
        queue: list[tuple[int, int, Node]] = [(root.units, count, root)]
        while queue:
            least = min(queue[0][0], self.done)
            if least > proved:
                proved = int(least)
                on_units(proved)
            if self.done <= queue[0][0]:
                break
            if stop():
                return proved
            node = heapq.heappop(queue)[2]
            if not self.is_done(node):
                self._drop_columns(node)
                both, either = self._relations(node)
                pair = self._pair(node, both & either)
                if pair is not None:
                    for child in self._children(node, pair):
                        self.ascent.raise_bound(
                            child, _STEPS, step=_STEP, target=self.target, stop=stop
                        )
                        self.nodes += 1
                        count += 1
                        heapq.heappush(queue, (child.units, count, child))
                    continue
                node.units = max(node.units, self._only_plan(both))
            self.done = min(self.done, node.units)
        self.finished = True
        return max(proved, int(self.done))

    def is_done(self, node: Node) -> bool:
        """Whether nothing below a node can be better than what is known."""
        return node.closed or node.units >= self.target

    def _drop_columns(self, node: Node) -> None:
        """Keep the columns that a plan below ``target`` may use.

        A plan of the node with column B costs at least ``units − min(0, r) + reduced(B)``, where
        r is the smallest reduced cost. Plans that are lost cost ``target`` or more.
        """
        ascent = self.ascent
        for group, price in zip(ascent.groups, node.multipliers.price, strict=True):
            group.price[...] = price
        dual = whole(node.multipliers.dual)
        reduced = (ascent.pricing.cost() - ascent.lattice.sums(dual))[node.allowed]
        units = bound_units(
            dual, int(reduced.min(initial=0)), ascent.pricing.excess(), ascent.gpus, 0
        )
        least = units - min(0, int(reduced.min(initial=0)))
        keep = least + reduced < self.target
        if not keep.all():
            self.done = min(self.done, self.target)
            node.allowed = node.allowed[keep]

    def _relations(self, node: Node) -> tuple[BoolArray, BoolArray]:
        """Pairs of which some column has both experts, and of which some has just one."""
        inside = self._inside[node.allowed].astype(np.float32)
        both = (inside.T @ inside) > 0
        first_only = (inside.T @ (1 - inside)) > 0
        return both, first_only | first_only.T

    def _pair(self, node: Node, open_pairs: BoolArray) -> tuple[int, int] | None:
        """The open pair whose togetherness is least clear."""
        if not open_pairs.any():
            return None
        z = np.clip(node.together, 0.0, 1.0)
        score = (np.minimum(z, 1.0 - z) + 1e-3 * z) * self._weight
        score[~np.triu(open_pairs, 1)] = -1.0
        i, j = divmod(int(score.argmax()), score.shape[1])
        return i, j

    def _only_plan(self, both: BoolArray) -> int:
        """Units of the one plan that is left where no pair is open; a lot if there is none."""
        sets = [list(s) for s in {tuple(np.flatnonzero(row).tolist()) for row in both}]
        experts = sorted(e for s in sets for e in s)
        if experts != list(range(len(both))) or len(sets) > self.ascent.gpus:
            return _NO_PLAN
        return math.floor((self.ascent.pay(sets) - _ROUNDING) / UNIT)

    def _children(self, node: Node, pair: tuple[int, int]) -> list[Node]:
        i, j = pair
        has_i, has_j = self._inside[node.allowed, i], self._inside[node.allowed, j]
        return [
            Node(node.allowed[keep], node.units, node.multipliers, node.together)
            for keep in (has_i == has_j, ~(has_i & has_j))
        ]


def _pair_weights(ascent: Ascent) -> FloatArray:
    """How often two experts occur together, shape (E, E), and a little more than never."""
    weight: npt.NDArray[np.float64] = np.full((ascent.experts, ascent.experts), 1e-9)
    for group in ascent.groups:
        for a in range(group.k):
            for b in range(group.k):
                np.add.at(weight, (group.members[:, a], group.members[:, b]), group.weight)
    return weight
