"""Lower bound of one layer under even split by a dual feasible function.

A function of the size of a replica, on a grid of ``n`` steps up to the tested load ``T``. If the
experts' least values together exceed what the GPUs can take, no plan's largest load is below or
at ``T``. The function comes from a linear program; it is rounded to whole numbers and everything
that the proof says of it is computed again, in whole numbers. So the solver is trusted for nothing.
Proof: docs/balance.md, "dual function".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from moeopt.balance.data import FloatArray, IntArray

#: The function's values are whole multiples of 1 / _UNIT.
_UNIT = 1 << 24
#: Rows for the contents of a GPU, at most: the grid is as fine as that allows.
_MOST_CONTENTS = 4_000
#: GPUs with more slots: the mean is as good, and contents are too many.
_MOST_SLOTS = 6
_MOST_STEPS = 240


@dataclass(frozen=True)
class DualLayer:
    """One layer for the proof.

    Attributes
    ----------
    whole : list of int
        Loads of the experts.
    slots : tuple of int
        Slots of each GPU.
    """

    whole: list[int]
    slots: tuple[int, ...]

    @property
    def most_copies(self) -> int:
        """Replicas that an expert can have."""
        return min(len(self.slots), sum(self.slots) - len(self.whole) + 1)


def proves_above(layer: DualLayer, function: IntArray, target: Fraction) -> bool:
    """Whether ``function`` proves every plan's largest load to be above ``target``; exact.

    Parameters
    ----------
    function : int array, shape (n + 1,)
        Values at the sizes 0, target/n, …, target.
    """
    steps = len(function) - 1
    phi = [int(value) for value in function]
    capacity = _capacities(phi, layer.slots)
    have = sum(capacity[q] for q in layer.slots)
    need = 0
    for load in layer.whole:
        values = []
        for r in range(1, layer.most_copies + 1):
            at = load * steps * target.denominator // (r * target.numerator)
            if at <= steps and load * target.denominator <= r * target.numerator:
                values.append(r * phi[at])
        if not values:
            return True  # the expert alone needs more
        need += min(values)
    return need > have


def _capacities(phi: list[int], slots: tuple[int, ...]) -> dict[int, int]:
    """Largest sum of the function over q sizes that together are within the grid, for each q."""
    steps = len(phi) - 1
    wanted, found = set(slots), {}
    # most[s]: largest sum over the sizes taken, which together are s steps at most.
    most = np.zeros(steps + 1, dtype=np.int64)
    values = np.array(phi, dtype=np.int64)
    for q in range(1, max(slots) + 1):
        following = np.full(steps + 1, np.iinfo(np.int64).min)
        for size in range(steps + 1):
            np.maximum(
                following[size:], most[: steps + 1 - size] + values[size], out=following[size:]
            )
        most = following
        if q in wanted:
            found[q] = int(most[steps])
    return found


def dual_bound(
    layer: DualLayer, lower: Fraction, upper: Fraction, *, tolerance: float = 1e-3
) -> Fraction:
    """Return the best bound found by bisection between a known bound and a known plan.

    Parameters
    ----------
    layer : DualLayer
    lower, upper : Fraction
        A lower bound, which is returned if nothing better is proved; a plan's largest load.
    tolerance : float
        The bisection ends at this share of ``upper``.

    Notes
    -----
    A load is a bound as soon as every load below it is excluded: what is proved for ``target``
    says that the largest load is above ``target``.
    """
    if max(layer.slots) > _MOST_SLOTS or upper <= lower:
        return lower
    steps = _grid(max(layer.slots))
    low, high = lower, upper
    # First whether anything can be proved at all: often the known bound is the best.
    part = min(0.5, tolerance * float(upper / (upper - lower)))
    while high - low > upper * Fraction(tolerance):
        # Whole numbers stay short: the target needs no more digits than this.
        share = float(low / upper) * (1 - part) + float(high / upper) * part
        target = Fraction(round(share * (1 << 30)), 1 << 30) * upper
        if not low < target < high:
            break
        function = _function(layer, target, steps)
        if function is not None and proves_above(layer, function, target):
            low = target
        elif low == lower and part < 0.5:
            break
        else:
            high = target
        part = 0.5
    return low


def _grid(slots: int) -> int:
    """Return the finest grid whose contents are few enough, _MOST_STEPS at most."""
    ways = np.zeros(_MOST_STEPS + 1)
    ways[0] = 1
    for part in range(1, slots + 1):
        for s in range(part, _MOST_STEPS + 1):
            ways[s] += ways[s - part]
    return int(np.flatnonzero(ways <= _MOST_CONTENTS)[-1])


def _contents(slots: int, steps: int) -> IntArray:
    """Sizes that fill the grid exactly: partitions of ``steps`` into ``slots`` parts, 0 allowed."""
    rows: list[list[int]] = []

    def extend(row: list[int], left: int, most: int) -> None:
        parts = slots - len(row)
        if parts == 1:
            rows.append([*row, left])
            return
        for size in range(min(most, left), -(-left // parts) - 1, -1):
            extend([*row, size], left - size, size)

    extend([], steps, steps)
    return np.array([row for row in rows if row == sorted(row, reverse=True)], dtype=np.int64)


def _function(layer: DualLayer, target: Fraction, steps: int) -> IntArray | None:
    """Solve the linear program for the best function; None if its solver gives up.

    Columns: φ(0) ≤ … ≤ φ(n), least value μ of each expert, capacity ψ of each number of slots.
    """
    size = np.array([float(load / target) for load in map(Fraction, layer.whole)])
    kinds = sorted(set(layer.slots))
    experts, grid = len(size), steps + 1
    columns = grid + experts + len(kinds)
    row: list[IntArray] = []
    column: list[IntArray] = []
    value: list[FloatArray] = []
    rows = 0

    def add(columns_of: list[IntArray], values: Sequence[FloatArray | float]) -> None:
        nonlocal rows
        number = len(columns_of[0])
        for where, what in zip(columns_of, values, strict=True):
            row.append(rows + np.arange(number))
            column.append(where)
            value.append(np.broadcast_to(np.asarray(what, dtype=np.float64), (number,)))
        rows += number

    below = np.arange(steps)
    add([below, below + 1], [1.0, -1.0])
    for kind, q in enumerate(kinds):
        contents = _contents(q, steps)
        psi = np.full(len(contents), grid + experts + kind)
        add([*contents.T, psi], [1.0] * q + [-1.0])
    copies = np.arange(1, layer.most_copies + 1)
    for e in range(experts):
        at = np.floor(size[e] * steps / copies).astype(np.int64)
        fits = at <= steps
        # Of the counts with one value of φ only the fewest and the most can be the least.
        _, first = np.unique(at[fits], return_index=True)
        last = len(at[fits]) - 1 - np.unique(at[fits][::-1], return_index=True)[1]
        few = np.unique(np.concatenate([first, last]))
        add(
            [np.full(len(few), grid + e), at[fits][few]],
            [1.0, -copies[fits][few].astype(np.float64)],
        )
    cost = np.zeros(columns)
    cost[grid : grid + experts] = -1.0
    for kind, q in enumerate(kinds):
        cost[grid + experts + kind] = layer.slots.count(q)
    matrix = sparse.csr_array(
        (np.concatenate(value), (np.concatenate(row), np.concatenate(column))), (rows, columns)
    )
    result = linprog(  # type: ignore[call-overload]
        cost,
        A_ub=matrix,
        b_ub=np.zeros(rows),
        bounds=[(-1.0, 1.0)] * grid + [(None, None)] * (experts + len(kinds)),
        method="highs-ds",
    )
    if result.x is None:
        return None
    rounded = np.round(np.asarray(result.x[:grid]) * _UNIT).astype(np.int64)
    return rounded if rounded.any() else None
