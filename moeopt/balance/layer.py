"""One part of a layer: a plan for some experts on some GPUs under even split.

A part is a whole layer, or the experts and the GPUs of one node where groups stay on nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.balance.anneal import anneal
from moeopt.balance.crowding import make_room
from moeopt.balance.data import BoolArray, FloatArray, IntArray
from moeopt.balance.greedy import greedy_counts, pack
from moeopt.balance.pairs import anneal_counts, pair_up
from moeopt.balance.state import State, fill, new_state, value

#: Temperatures at the beginning and the end of a round, in excesses over the floor.
_HOT, _COLD = 1.0, 0.01
#: Every third round without success begins so much hotter: few pieces take long strides.
_HOTTER = 10.0
#: The next target lies this share of the way from the floor to the best value; after a round
#: without success it is that much higher.
_FIRST, _RISE, _MOST = 0.5, 0.15, 0.95
#: One proposal about pairs costs as much as so many others.
_PAIR_PRICE = 2


@dataclass(frozen=True)
class Effort:
    """How long to search.

    Attributes
    ----------
    rounds : int
        Targets tried, at most.
    steps : int
        Proposals for each of them.
    tolerance : float
        The search ends when the largest load is within this share of the floor.
    seed : int
    """

    rounds: int = 12
    steps: int = 100_000
    tolerance: float = 5e-4
    seed: int = 0


#: For a server that waits: 256 experts in 288 slots take less than 10 ms.
FAST = Effort(rounds=4, steps=10_000, tolerance=1e-3)


@dataclass(frozen=True)
class Part:
    """Experts and GPUs that are balanced together.

    Attributes
    ----------
    weight : float array, shape (W, E)
        Tokens of each expert in each window; contiguous.
    slots : int array, shape (G,)
    held : bool array, shape (E, G)
        Which GPU held which expert; all True where moves cost nothing.
    most_moves : int
        Copies that may be brought to GPUs that did not hold them.
    """

    weight: FloatArray
    slots: IntArray
    held: BoolArray
    most_moves: int

    @property
    def experts(self) -> int:
        """Number of experts."""
        return self.weight.shape[1]

    @property
    def replicas(self) -> int:
        """Number of slots."""
        return int(self.slots.sum())

    @property
    def floor(self) -> FloatArray:
        """What no largest load is below, shape (W,), up to rounding: a guide of the search."""
        gpus = len(self.slots)
        mean = self.weight.sum(axis=1) / gpus
        piece = [(row / self.counts(row)).max() for row in self.weight]
        return np.maximum(mean, piece)

    def counts(self, row: FloatArray) -> IntArray:
        """Return the replica counts with the smallest largest piece for one load vector (E,)."""
        return np.asarray(greedy_counts(row, self.replicas, len(self.slots)), dtype=np.int64)


def free_part(weight: FloatArray, slots: IntArray) -> Part:
    """Return a part where moves cost nothing."""
    held = np.ones((weight.shape[1], len(slots)), dtype=bool)
    return Part(np.ascontiguousarray(weight), slots, held, 0)


def first_plans(part: Part) -> list[IntArray]:
    """Return greedy plans of the mean load, shape (P,) each.

    The second one has room beside its large pieces, where the first has too little.
    """
    row = part.weight.mean(axis=0)
    count = part.counts(row)
    roomy = count.copy()
    make_room(row, roomy, np.cumsum(np.sort(part.slots)))
    plans = []
    for counts in (count,) if (roomy == count).all() else (count, roomy):
        content = np.zeros(part.replicas, dtype=np.int64)
        pack(row, counts, part.slots, content)
        plans.append(content)
    return plans


def search(part: Part, plan: IntArray, effort: Effort) -> tuple[float, IntArray]:
    """Improve a plan without duplicates that is within the budget of moves.

    Returns
    -------
    float
        Mean over windows of the largest load, up to rounding.
    int array, shape (P,)
    """
    state = new_state(len(part.weight), part.experts, part.slots)
    fill(state, part.weight, part.held, plan)
    best, best_value = plan.copy(), value(state)
    floor = part.floor
    if _pairs_only(part):
        best_value, best = _search_counts(part, best, best_value, float(floor[0]), effort)
    share, failed = _FIRST, 0
    for turn in range(effort.rounds):
        excess = best_value - float(floor.mean())
        if excess <= effort.tolerance * float(floor.mean()) or excess <= 0.0:
            break
        target = _target(state, part, best, floor, share)
        heat = _HOTTER if failed % 3 == 2 else 1.0
        best_value, made = anneal(
            state,
            part.weight,
            part.held,
            part.most_moves,
            target,
            effort.steps,
            (_HOT * heat * excess) ** 2,
            (_COLD * excess) ** 2,
            best,
            best_value,
            np.random.default_rng([effort.seed, turn]),
        )
        if made < effort.steps:
            share, failed = _FIRST, 0
        else:
            share, failed = min(_MOST, share + _RISE), failed + 1
    return best_value, best


def _target(
    state: State, part: Part, best: IntArray, floor: FloatArray, share: float
) -> FloatArray:
    """Load the best plan; return targets between the floors and its largest loads, shape (W,)."""
    fill(state, part.weight, part.held, best)
    return np.asarray(floor + share * (state.load.max(axis=1) - floor), dtype=np.float64)


def _pairs_only(part: Part) -> bool:
    return len(part.weight) == 1 and bool((part.slots == 2).all()) and bool(part.held.all())


def _search_counts(
    part: Part, plan: IntArray, plan_value: float, floor: float, effort: Effort
) -> tuple[float, IntArray]:
    """Search over replica counts, where GPUs have two slots each."""
    row, gpus = part.weight[0], len(part.slots)
    best, best_plan = np.bincount(plan, minlength=part.experts), plan
    pair_value, share = np.inf, _FIRST
    for turn in range(effort.rounds):
        excess = min(plan_value, pair_value) - floor
        if excess <= effort.tolerance * floor or excess <= 0.0:
            break
        target, count = floor + share * excess, best.copy()
        found, _ = anneal_counts(
            row,
            count,
            gpus,
            target,
            effort.steps // _PAIR_PRICE,
            (_HOT * excess) ** 2,
            (_COLD * excess) ** 2,
            np.random.default_rng([effort.seed, turn]),
        )
        if found < pair_value:
            pair_value, best = found, count
        share = _FIRST if found <= target else min(_MOST, share + _RISE)
    content = np.zeros(part.replicas, dtype=np.int64)
    if pair_up(row, best, content):
        loads = (row / np.bincount(content, minlength=part.experts))[content].reshape(gpus, 2)
        if (largest := float(loads.sum(axis=1).max())) < plan_value:
            return largest, content
    return plan_value, best_plan
