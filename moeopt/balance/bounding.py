"""The best lower bound of one layer of ``balance``, with the name of its proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.balance.bounds import component_bound, mean_bound, piece_bound
from moeopt.balance.data import BalanceData, FloatArray, IntArray, layer_of
from moeopt.balance.dual_function import DualLayer, dual_bound
from moeopt.balance.exact import float_below, whole_loads
from moeopt.balance.packing import (
    MOST_PACKINGS,
    Groups,
    Room,
    by_floor,
    experts_of,
    packing_count,
)

#: The dual function is tried only if the other bounds leave more than this.
WORTH = 2e-3


@dataclass(frozen=True)
class LayerBound:
    """A lower bound of a layer's objective in tokens, rounded down.

    ``method``: ``mean``, ``piece``, ``components`` or ``dual function``; ``packings: METHOD`` if
    the groups' packings were enumerated; with several windows, of the window with the largest load,
    or ``mean of windows: METHOD`` if the windows' mean load proves more.
    """

    value: float
    method: str


@dataclass(frozen=True)
class _Proved:
    """A bound in tokens and its name; ordered by the value."""

    value: Fraction
    method: str


def bound_layer(data: BalanceData, l: int, upper: FloatArray | None = None) -> LayerBound:
    """Return the best bound of a layer's objective.

    Parameters
    ----------
    data : BalanceData
    l : int
    upper : float array, shape (W,), optional
        Largest load of a plan in each window: where the bounds leave a gap to it, the dual function
        is tried. The bound holds whatever it is.

    Notes
    -----
    The objective is a mean over windows, so the mean of the windows' bounds is a bound; so is the
    bound of the mean load, as the largest of mean loads is not above the mean of the largest.
    """
    weight = layer_of(data, l)
    above = [None] * data.windows if upper is None else upper.tolist()
    each = [_vector(data, row, top) for row, top in zip(weight, above, strict=True)]
    total = sum((proved.value for proved in each), Fraction(0)) / data.windows
    heaviest = max(each, key=lambda proved: proved.value)
    best = _Proved(total, heaviest.method)
    if data.windows > 1:
        # The exact mean is not needed: rounded down, it is the mean of smaller loads.
        mean = np.nextafter(weight.mean(axis=0) * (1 - 1e-12), 0.0)
        together = _vector(data, mean, None)
        if together.value > best.value:
            best = _Proved(together.value, f"mean of windows: {together.method}")
    return LayerBound(float_below(best.value), best.method)


def _vector(data: BalanceData, loads: FloatArray, upper: float | None) -> _Proved:
    """Bound for one load vector (E,)."""
    whole, unit = whole_loads(loads)

    def of_part(groups: Groups, room: Room) -> _Proved:
        chosen = [whole[e] for e in experts_of(data, groups).tolist()]
        return _simple(chosen, np.array(room, dtype=np.int64))

    if data.parts > 1:
        if packing_count(data) <= MOST_PACKINGS:
            return _packed(data, of_part, unit)
        proved = _simple(whole, data.slots, most=data.gpus // data.parts)
        return _Proved(proved.value * unit, proved.method)
    proved = _simple(whole, data.slots)
    if data.rule == "even" and upper is not None and proved.value * unit < upper * (1 - WORTH):
        layer = DualLayer(whole, tuple(data.slots.tolist()))
        value = dual_bound(layer, proved.value, Fraction(upper) / unit)
        if value > proved.value:
            proved = _Proved(value, "dual function")
    return _Proved(proved.value * unit, proved.method)


def _packed(
    data: BalanceData, of_part: Callable[[Groups, Room], _Proved], unit: Fraction
) -> _Proved:
    """Least bound over all packings."""
    method: dict[Fraction, str] = {}

    def floor(groups: Groups, room: Room) -> Fraction:
        proved = of_part(groups, room)
        method[proved.value] = proved.method
        return proved.value

    value = by_floor(data, floor, Fraction(0))[0][0]
    return _Proved(value * unit, f"packings: {method.get(value, 'mean')}")


def _simple(whole: list[int], slots: IntArray, most: int | None = None) -> _Proved:
    """Best bound of a part from sums alone; no expert is on more than ``most`` GPUs."""
    most = len(slots) if most is None else most
    found = [
        _Proved(mean_bound(whole, len(slots)), "mean"),
        _Proved(piece_bound(whole, int(slots.sum()), most), "piece"),
        _Proved(component_bound(whole, slots), "components"),
    ]
    return max(found, key=lambda proved: proved.value)
