"""The checker of ``balance``: a plan, its violations, and its loads in exact arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.balance.data import BalanceData, FloatArray, IntArray
from moeopt.balance.exact import float_above, whole_loads
from moeopt.words import counted


@dataclass(frozen=True)
class BalanceReport:
    """What the checker found.

    Attributes
    ----------
    violations : list of str
        Empty: the plan is feasible.
    largest : float array, shape (W, L)
        Largest load of a GPU in tokens, rounded up.
    balancedness : float array, shape (W, L)
        Mean load of the GPUs over the largest; 1 where nothing is loaded.
    moves : int or None
        Copies on GPUs that did not hold them before; None if nothing was there before.
    """

    violations: list[str]
    largest: FloatArray
    balancedness: FloatArray
    moves: int | None

    @property
    def per_layer(self) -> FloatArray:
        """Objective of each layer: mean over windows of the largest load, shape (L,)."""
        return np.array([_mean_above(column) for column in self.largest.T.tolist()])

    @property
    def objective(self) -> float:
        """Sum over layers of the mean over windows of the largest load, in tokens, rounded up."""
        layers = self.per_layer.tolist()
        return math.inf if math.inf in layers else float_above(_exact_sum(layers))


def check_balance(
    data: BalanceData, plan: IntArray, shares: FloatArray | None = None
) -> BalanceReport:
    """Check a plan and compute its loads.

    Parameters
    ----------
    data : BalanceData
    plan : int array, shape (L, P)
        Expert in every slot.
    shares : float array, shape (W, L, P), optional
        Part of its expert's tokens that each slot computes, in any positive unit: they are scaled
        to sum to 1 over the slots of an expert. Needed by the rule ``optimal``; without them, and
        under the rule ``even``, the slots of an expert have equal parts.
    """
    plan = np.asarray(plan)
    shape = (data.layers, data.replicas)
    if plan.shape != shape:
        return _refused(data, f"shape of the plan: {plan.shape}, not {shape}")
    if not np.issubdtype(plan.dtype, np.integer):
        return _refused(data, f"the plan holds {plan.dtype}, not whole numbers")
    if plan.min() < 0 or plan.max() >= data.experts:
        return _refused(data, f"experts of the plan are not all 0 to {data.experts - 1}")
    if shares is not None:
        shares = np.asarray(shares, dtype=np.float64)
        if shares.shape != (data.windows, *shape):
            return _refused(data, f"shape of the shares: {shares.shape}")
        if not np.isfinite(shares).all() or (shares < 0).any():
            return _refused(data, "shares: finite numbers, not below 0, are needed")
        if data.rule == "even":
            return _refused(data, "the rule even leaves no choice of shares")
    violations = [line for l in range(data.layers) for line in _violations(data, l, plan[l])]
    moves = None if data.previous is None else count_moves(data, data.previous, plan)
    if data.most_moves is not None and moves is not None and moves > data.most_moves:
        violations.append(f"{counted(moves, 'copy', 'copies')} moved, {data.most_moves} allowed")
    largest = np.zeros((data.windows, data.layers))
    balancedness = np.ones((data.windows, data.layers))
    for w in range(data.windows):
        for l in range(data.layers):
            parts = None if shares is None else shares[w, l]
            top, total = _largest(data, data.loads[w, l], plan[l], parts)
            largest[w, l] = float_above(top)
            if top:
                balancedness[w, l] = float(total / data.gpus / top)
            elif total:
                balancedness[w, l] = 0.0
    return BalanceReport(violations, largest, balancedness, moves)


def count_moves(data: BalanceData, previous: IntArray, plan: IntArray) -> int:
    """Copies of a plan on GPUs that did not hold their expert before; plans of shape (L, P)."""
    gpu = data.gpu_of_slot
    moved = 0
    for before, after in zip(previous, plan, strict=True):
        held = Counter(zip(before.tolist(), gpu.tolist(), strict=True))
        moved += (Counter(zip(after.tolist(), gpu.tolist(), strict=True)) - held).total()
    return moved


def _exact_sum(values: list[float]) -> Fraction:
    return sum((Fraction(value) for value in values), Fraction(0))


def _mean_above(values: list[float]) -> float:
    if math.inf in values:  # of a refused plan
        return math.inf
    return float_above(_exact_sum(values) / len(values))


def _refused(data: BalanceData, line: str) -> BalanceReport:
    nothing = np.full((data.windows, data.layers), np.inf)
    return BalanceReport([line], nothing, np.zeros_like(nothing), None)


def _violations(data: BalanceData, l: int, plan: IntArray) -> list[str]:
    lines = []
    gpu = data.gpu_of_slot
    missing = np.flatnonzero(np.bincount(plan, minlength=data.experts) == 0)
    lines += [f"layer {l}: expert {e} is nowhere" for e in missing.tolist()]
    pairs = Counter(zip(plan.tolist(), gpu.tolist(), strict=True))
    lines += [
        f"layer {l}: expert {e} is {times} times on GPU {g}"
        for (e, g), times in sorted(pairs.items())
        if times > 1
    ]
    if data.parts > 1:
        group = plan // (data.experts // data.groups)
        node = gpu // (data.gpus // data.nodes)
        of_group: dict[int, set[int]] = {}
        for one, at in zip(group.tolist(), node.tolist(), strict=True):
            of_group.setdefault(one, set()).add(at)
        lines += [
            f"layer {l}: group {one} is on {len(nodes)} nodes"
            for one, nodes in sorted(of_group.items())
            if len(nodes) > 1
        ]
        held = Counter(next(iter(nodes)) for nodes in of_group.values() if len(nodes) == 1)
        each = data.groups // data.nodes
        lines += [
            f"layer {l}: node {at} holds {number} groups, not {each}"
            for at, number in sorted(held.items())
            if number != each
        ]
    return lines


def _largest(
    data: BalanceData, loads: FloatArray, plan: IntArray, shares: FloatArray | None
) -> tuple[Fraction, Fraction]:
    """Largest load of a GPU and the load of all, exactly; infinite load is not possible."""
    whole, unit = whole_loads(loads)
    slots: dict[int, list[int]] = {}
    for p, e in enumerate(plan.tolist()):
        slots.setdefault(e, []).append(p)
    part = [1] * len(plan) if shares is None else whole_loads(shares)[0]
    total_part = {e: sum(part[p] for p in at) for e, at in slots.items()}
    for e, at in slots.items():
        if total_part[e] == 0:  # nobody was given anything: equal parts
            total_part[e] = len(at)
            for p in at:
                part[p] = 1
    gpu = data.gpu_of_slot.tolist()
    if shares is None:
        # A common multiple of the counts keeps everything whole.
        multiple = math.lcm(*total_part.values())
        load = [0] * data.gpus
        for e, at in slots.items():
            piece = whole[e] * (multiple // total_part[e])
            for p in at:
                load[gpu[p]] += piece
        top = Fraction(max(load), multiple)
    else:
        fractions = [Fraction(0)] * data.gpus
        for e, at in slots.items():
            for p in at:
                fractions[gpu[p]] += Fraction(whole[e] * part[p], total_part[e])
        top = max(fractions)
    return top * unit, sum(whole) * unit
