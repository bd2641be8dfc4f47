"""Branch and bound that gives each expert its mask of GPUs: the tree of the pair search.

Every node bounds the expected time by unary and pair terms of the open experts
(:mod:`.pair_search_terms`), improved by message passing and by prices of GPUs
(:mod:`.pair_search_kernel`). Derivation and proof: docs/bounds/pair_search.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moeopt.problem import Scenarios
from moeopt.proofs.pair_search_kernel import LIMIT
from moeopt.proofs.pair_search_queue import Best, Limits, Outcome, share_out
from moeopt.proofs.pair_search_root import root_tables, typical_pairs, whole_weights
from moeopt.proofs.pair_search_terms import GRID, MEMBERS, pair_terms
from moeopt.proofs.pair_search_tree import ERROR, NODES, OVERFLOW, STOP, search

Array = npt.NDArray[np.int64]

# Targets stay below 2**27.5, under the cap of table entries.
_TARGET_LIMIT = 2**27.5
# Experts are equally popular where the most popular is at most so many times the least.
_EVEN = 1.5


class MaskTree:
    """One layer's tables before any expert is placed.

    Parameters
    ----------
    upper : float
        Expected time of a known plan: targets must not exceed it.
    incumbent : bool array, shape (E, G), optional
        That plan; its masks shape the terms (any plan gives a valid bound).
    """

    def __init__(
        self,
        scenarios: Scenarios,
        experts: int,
        gpus: int,
        slots: int,
        upper: float,
        incumbent: npt.NDArray[np.bool_] | None,
        threads: int,
    ) -> None:
        self.experts, self.gpus, self.slots, self.threads = experts, gpus, slots, threads
        # Expert number n of the search is ``order[n]``: popular ones first.
        load = np.bincount(
            scenarios.expert, np.repeat(scenarios.weight, scenarios.sizes), minlength=experts
        )
        self.order = np.argsort(-load, kind="stable")
        # Popularity is the better order by far where it differs much (measured).
        self.dynamic = bool(load.max() < _EVEN * load.min())
        number = np.empty(experts + 1, dtype=np.int64)
        number[self.order] = np.arange(experts)
        number[experts] = experts
        self.members = np.full((len(scenarios), MEMBERS), experts, dtype=np.int64)
        row = np.repeat(np.arange(len(scenarios)), scenarios.sizes)
        column = np.arange(len(scenarios.expert)) - scenarios.ptr[row]
        self.members[row, column] = number[scenarios.expert]
        self.base = int((-(-scenarios.sizes // gpus)).min(initial=1))
        self.terms = pair_terms(gpus, self.base, typical_pairs(experts, gpus, slots, incumbent))
        added = (self.terms.open4, self.terms.gain3, self.terms.gain2[:, 1:])
        largest = max(int(np.abs(term).max()) for term in added)
        excess = max(upper - self.base, 1e-9)
        unit = min(LIMIT / largest, _TARGET_LIMIT / GRID / excess)
        self.weight, self.ratio = whole_weights(scenarios.weight, unit)
        self.size = np.bitwise_count(np.arange(1 << gpus)).astype(np.int64)
        self.weight4, self.root_pair = root_tables(self.members, self.weight, experts, self.terms)
        self.tables32 = self.terms.gain3.astype(np.int32), self.terms.gain2.astype(np.int32)

    def search(self, goal: float, limits: Limits) -> Outcome:
        """Search with a target, at most ``upper``.

        Raises
        ------
        ArithmeticError
            A check in whole numbers failed (no bound would be safe).
        """
        begin = limits.clock()
        best = Best(int(np.ceil((goal - self.base) / self.ratio * GRID)))
        control = np.zeros(4, dtype=np.int64)
        tables = [MaskTables(self) for _ in range(self.threads)]
        empty = np.zeros((0, 2), dtype=np.int64)
        frontier = np.zeros((200_000, 6, 2), dtype=np.int64)
        nowhere = np.zeros((0, 6, 2), dtype=np.int64)
        written, depth, done = 0, 0, 0
        # Deeper until there is enough to share out.
        for depth in range(min(3, self.experts - 1), min(6, self.experts - 1) + 1):
            written = self._run(tables[0], empty, depth, best, control, frontier)
            if written < 0 or written > 500 * self.threads or limits.over():
                break

        def part(own: MaskTables) -> Callable[[int], bool]:
            def run(at: int) -> bool:
                prefix = frontier[at, :depth].copy()
                return self._run(own, prefix, self.experts + 1, best, control, nowhere) >= 0

            return run

        def halt() -> None:
            control[STOP] = 1

        if written > 0 and not limits.over():
            done = share_out(written, [part(own) for own in tables], limits, halt, begin=begin)
        if control[ERROR]:
            raise ArithmeticError("a node's bound exceeds the value of its only plan")
        if control[OVERFLOW]:
            raise ArithmeticError("a table entry does not fit into 32 bits")
        hosts = None
        if best.plan is not None:
            hosts = np.zeros((self.experts, self.gpus), dtype=np.bool_)
            hosts[self.order] = best.plan[:, None] >> np.arange(self.gpus) & 1
        return Outcome(
            finished=written == 0 or (done == written > 0),
            bound=self.base + best.value / GRID * self.ratio,
            hosts=hosts,
            share=done / max(written, 1),
            nodes=int(control[NODES]),
        )

    def _run(
        self,
        own: MaskTables,
        prefix: Array,
        limit: int,
        best: Best,
        control: Array,
        frontier: Array,
    ) -> int:
        own.reset(self.root_pair)
        gain3, gain2 = self.tables32
        own.target[0] = best.value
        result: int = search(
            self.slots, self.gpus, prefix, limit, own.allowed, own.const, own.unary, own.pair,
            self.weight4, self.members, self.weight, self.terms.excess, gain3, gain2, self.size,
            own.target, own.plan, control, frontier, self.dynamic,
        )  # fmt: skip
        best.offer(int(own.target[0]), own.plan)
        return result


class MaskTables:
    """Tables of one thread."""

    def __init__(self, tree: MaskTree) -> None:
        experts, labels = tree.experts, 1 << tree.gpus
        self.const = np.zeros(experts + 1, dtype=np.int64)
        self.unary = np.zeros((experts + 1, experts, labels), dtype=np.int32)
        self.pair = np.zeros((experts + 1, experts, experts, labels, labels), dtype=np.int32)
        self.allowed = np.full(experts, (1 << labels) - 2, dtype=np.int64)
        self.target = np.zeros(1, dtype=np.int64)
        self.plan = np.zeros(experts, dtype=np.int64)

    def reset(self, root_pair: npt.NDArray[np.int32]) -> None:
        """Make depth 0 the root again."""
        self.const[0] = 0
        self.unary[0] = 0
        self.pair[0] = root_pair
