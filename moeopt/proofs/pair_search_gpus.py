"""Branch and bound that gives each of four GPUs its experts: for scenarios of four experts each.

Complements the tree over masks: it sees a scenario's time as a function of what one GPU lacks, so
its bounds need no popular experts. Two GPUs are enumerated, the other two bounded by a sum of one
function of each, exact but for pairs, which are corrected. Derivation and proof:
docs/bounds/pair_search.md, "GPU by GPU".
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from moeopt.problem import Scenarios
from moeopt.proofs.pair_search_gpus_kernel import (
    ERROR,
    NODES,
    STOP,
    charge,
    fill_losses,
    fill_reduced,
    search_below,
)
from moeopt.proofs.pair_search_queue import Best, Limits, Outcome, share_out
from moeopt.proofs.pair_search_root import whole_weights
from moeopt.proofs.pair_search_terms import MEMBERS, excess_table

Array = npt.NDArray[np.int64]

GPUS = 4
EXPERTS_LIMIT = 16
# Sum of the weights: tables hold at most nine times that, in 32 bits.
_WEIGHT_LIMIT = 2.0**26
_ROOT_STEPS = 400


def supports(scenarios: Scenarios, experts: int, gpus: int, slots: int) -> str | None:
    """Return why this tree cannot take the layer; None if it can."""
    if gpus != GPUS:
        return f"{gpus} GPUs: exactly {GPUS} needed"
    if not (scenarios.sizes == MEMBERS).all():
        return f"a scenario has not exactly {MEMBERS} experts"
    if experts > EXPERTS_LIMIT:
        return f"{experts} experts: at most {EXPERTS_LIMIT}"
    if slots >= experts:
        return "every GPU can host every expert"
    return None


def lack_excess() -> Array:
    """T - 1 of four experts by which of them each GPU lacks (four bits); -1: one is nowhere."""
    members = np.indices((1 << MEMBERS,) * GPUS).reshape(GPUS, -1)
    masks = [sum((~members[g] >> e & 1) << g for g in range(GPUS)) for e in range(MEMBERS)]
    excess = excess_table(GPUS, 1)[tuple(masks)]
    lost = np.min(masks, axis=0) == 0
    return np.where(lost, -1, excess).reshape((1 << MEMBERS,) * GPUS)


def shared_patterns() -> npt.NDArray[np.bool_]:
    """Which sets two further GPUs can overcharge, by what GPUs 1 and 2 lack of them."""
    size = np.bitwise_count(np.arange(1 << MEMBERS))
    disjoint = (np.arange(1 << MEMBERS)[:, None] & np.arange(1 << MEMBERS)) == 0
    return disjoint & (size[:, None] <= 2) & (size <= 2)


def check_inequalities(excess: Array, shared: npt.NDArray[np.bool_]) -> None:
    """Check, for all patterns, that the sums the search uses never exceed the excess.

    Raises
    ------
    ArithmeticError
        One does.
    """
    size = np.bitwise_count(np.arange(1 << MEMBERS))
    everything = (1 << MEMBERS) - 1
    alone = excess[:, :, :, 0] - excess[:, :, 0, 0][:, :, None]
    lacks = np.array(list(product(range(1 << MEMBERS), repeat=GPUS)))
    lacks = lacks[excess[tuple(lacks.T)] >= 0]
    for fixed, thirds in ((0, 2), (1, 2), (2, 3)):
        first = lacks[:, 0] if fixed > 0 else np.zeros(len(lacks), dtype=np.int64)
        second = lacks[:, 1] if fixed > 1 else np.zeros(len(lacks), dtype=np.int64)
        total = 3 * excess[first, second, 0, 0]
        for g in range(fixed, GPUS):
            total = total + 3 * alone[first, second, lacks[:, g]]
        for g, h in combinations(range(fixed, GPUS), 2):
            same = shared[first, second] & (lacks[:, g] == lacks[:, h])
            total = total - 3 * (same & (lacks[:, g] == everything))
            total = total + thirds * (same & (size[lacks[:, g]] == MEMBERS - 1))
        if (total > 3 * excess[tuple(lacks.T)]).any():
            raise ArithmeticError(f"charges of GPUs exceed the excess with {fixed} GPUs fixed")


class GpuTree:
    """One layer's sets and tables before any GPU is fixed.

    Every GPU hosts exactly ``slots`` experts, fewer than there are: there is such an optimal plan.
    """

    def __init__(self, scenarios: Scenarios, experts: int, slots: int, threads: int) -> None:
        self.experts, self.lacked, self.threads = experts, experts - slots, threads
        members = np.sort(scenarios.expert.reshape(-1, MEMBERS), axis=1)
        members, which = np.unique(members, axis=0, return_inverse=True)
        whole, self.ratio = whole_weights(scenarios.weight, _WEIGHT_LIMIT)
        weight = np.bincount(which.ravel(), whole).astype(np.int32)
        bits = np.arange(1 << MEMBERS)[:, None] >> np.arange(MEMBERS) & 1
        excess = lack_excess()
        shared = shared_patterns()
        check_inequalities(excess, shared)
        excess = np.maximum(excess, 0)
        moebius = excess[:, :, :, 0] - excess[:, :, 0, 0][:, :, None]
        for e in range(MEMBERS):
            with_e = [r for r in range(1 << MEMBERS) if r >> e & 1]
            moebius[:, :, with_e] -= moebius[:, :, [r ^ 1 << e for r in with_e]]
        self.size = np.bitwise_count(np.arange(1 << experts)).astype(np.int64)
        self.columns = np.flatnonzero(self.size == self.lacked)
        self.row = np.zeros(1 << experts, dtype=np.int64)
        self.row[self.columns] = np.arange(1, len(self.columns) + 1)
        patterns = np.zeros((len(self.columns) + 1, len(members)), dtype=np.uint8)
        for e in range(MEMBERS):
            patterns[1:] |= ((self.columns[:, None] >> members[:, e] & 1) << e).astype(np.uint8)
        sets = (1 << members) @ bits.T
        self.patterns = patterns
        self.charges = (sets, weight, excess, moebius.astype(np.int32), shared)

    def root(self, target: int) -> tuple[Array, int]:
        """Columns by reduced cost, and how many can be the first one of a plan below the target."""
        cost, over, loss = np.zeros((3, len(self.size)), dtype=np.int32)
        nothing = self.patterns[0]
        charge(nothing, nothing, len(self.size) - 1, *self.charges, cost, over)
        fill_losses(over, len(self.size) - 1, self.lacked, self.size, 2, loss)
        # Four columns have six pairs: half of a pair's loss, three times. Doubled to stay whole.
        reduced = np.zeros(len(self.columns), dtype=np.int64)
        back = fill_reduced(
            2 * cost - 3 * loss, self.columns, len(self.size) - 1, GPUS, 2 * target, _ROOT_STEPS,
            reduced,
        )  # fmt: skip
        order = np.argsort(reduced, kind="stable")
        first = np.searchsorted(GPUS * reduced[order], 2 * target + back)
        return self.columns[order], int(first)

    def search(self, goal: float, limits: Limits) -> Outcome:
        """Search with a target.

        Raises
        ------
        ArithmeticError
            A bound exceeds the value of its plan (no bound would be safe).
        """
        begin = limits.clock()
        best = Best(int(np.ceil((goal - 1.0) / self.ratio)))
        columns, parts = self.root(best.value)
        control = np.zeros(3, dtype=np.int64)

        def part() -> Callable[[int], bool]:
            target, found = np.zeros(1, dtype=np.int64), np.zeros(GPUS, dtype=np.int64)

            def run(at: int) -> bool:
                target[0] = best.value
                finished: bool = search_below(
                    at, columns, self.row, self.patterns, *self.charges, self.size, self.lacked,
                    target, found, control,
                )  # fmt: skip
                best.offer(int(target[0]), found)
                return finished

            return run

        def halt() -> None:
            control[STOP] = 1

        runs = [part() for _ in range(self.threads)]
        done = share_out(parts, runs, limits, halt, begin=begin)
        if control[ERROR]:
            raise ArithmeticError("a pair's bound exceeds the value of its plan")
        hosts = None
        if best.plan is not None:
            hosts = (best.plan >> np.arange(self.experts)[:, None] & 1) == 0
        return Outcome(
            finished=done == parts,
            bound=1.0 + best.value * self.ratio,
            hosts=hosts,
            share=done / max(parts, 1),
            nodes=int(control[NODES]),
        )
