"""Lower bounds of ``affinity``, each with its proof: docs/affinity.md derives them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.affinity import columns, columns_touch
from moeopt.affinity.data import AffinityData, FloatArray, IntArray
from moeopt.affinity.pair_lines import best_lines, pair_worth
from moeopt.affinity.psd import Level, Limit, psd_bound
from moeopt.balance.exact import float_below

Stop = Callable[[], bool]


@dataclass(frozen=True)
class AffinityBound:
    """A lower bound and, perhaps, plans met on the way.

    Attributes
    ----------
    method : str
        ``partners``, ``psd`` or ``columns``.
    value : float
        In the unit of the objective, rounded down.
    by_part : float array, shape (L - 1,) or (L,), or None
        Bounds of the pairs of layers (``inter``) or layers, where they were bounded one by one.
    rows : list of int arrays or None
        A plan of each part: shape (2, E) for a pair, (E,) for a layer.
    """

    method: str
    value: float
    seconds: float
    by_part: FloatArray | None = None
    rows: list[IntArray | None] | None = None


def finish(data: AffinityData, value: Fraction) -> float:
    """Round a proved value down; up to the next whole number first where all plans cost one."""
    whole = (
        data.kind == "inter"
        and float(data.near).is_integer()
        and float(data.far).is_integer()
        and bool((data.flow == np.rint(data.flow)).all())
    )
    return float_below(Fraction(math.ceil(value)) if whole else value)


def partners_bound(data: AffinityData) -> float:
    """Bound without work: no expert keeps more than its E/G best partners of the next layer.

    ``intra``: a token of k experts touches at least ⌈k G/E⌉ GPUs, and as many nodes as those need.
    """
    total = Fraction(0)
    if data.kind == "intra":
        most = int(np.bincount(data.node).max()) * data.size
        for scenarios in data.scenarios:
            gpus, nodes = -(-scenarios.sizes // data.size), -(-scenarios.sizes // most)
            near = float(scenarios.weight @ (gpus - nodes))
            far = float(scenarios.weight @ (nodes - 1))
            # M nodes more for M GPUs less is never cheaper: near <= far.
            total += Fraction(data.near) * Fraction(near) + Fraction(data.far) * Fraction(far)
        return float_below(total * (1 - Fraction(1, 2**40)))
    for weight, size in _level_sizes(data):
        for flow in data.flow:
            kept = min(
                math.fsum(np.sort(side, axis=1)[:, -size:].ravel().tolist())
                for side in (flow, flow.T)
            )
            total += weight * (Fraction(math.fsum(flow.ravel().tolist())) - Fraction(kept))
    return finish(data, total * (1 - Fraction(1, 2**40)))


def _level_sizes(data: AffinityData) -> list[tuple[Fraction, int]]:
    """Weight and group size of each level (:func:`level_weights`)."""
    return [(Fraction(w), data.experts // parts) for w, parts in level_weights(data)]


def level_weights(data: AffinityData) -> list[tuple[float, int]]:
    """(weight, parts): nodes first, then GPUs; their sum is at most what any token costs.

    A token that changes node costs ``(far − near)`` for its node and ``near`` for its GPU. Where
    nodes differ in size only the GPU is counted.
    """
    if data.nodes == 1:
        return [(data.near, data.gpus)]
    if not data.even_nodes:
        return [(data.near, data.gpus)]
    if data.gpus == data.nodes:
        return [(data.far, data.gpus)]
    levels = [(data.far - data.near, data.nodes), (data.near, data.gpus)]
    return [(w, parts) for w, parts in levels if w > 0] or [(0.0, data.gpus)]


def psd_value(data: AffinityData, *, steps: int = 600, stop: Stop = lambda: False) -> AffinityBound:
    """Semidefinite bound of the whole chain (``inter``) or of all layers (``intra``)."""
    begin = time.process_time()
    weights = level_weights(data)
    if data.kind == "intra":
        parts = [_psd_layer(data, l, steps, stop) for l in range(data.layers)]
        by_part = np.array([float_below(max(part, Fraction(0))) for part in parts])
        value = float_below(sum((max(part, Fraction(0)) for part in parts), Fraction(0)))
        return AffinityBound("psd", value, time.process_time() - begin, by_part)
    inside = np.zeros((data.layers, data.experts, data.experts))
    levels = [Level(parts, weight * data.flow, inside) for weight, parts in weights]
    limit = None if data.max_load is None else Limit(data.load, data.most_load)
    if limit is not None and weights[-1][1] != data.gpus:
        limit = None  # only nodes pay: they have no limit of their own
    found = psd_bound(levels, steps=steps, limit=limit, stop=stop)
    # The same products as in the levels: their rounding cancels.
    total = sum((_exact_sum(level.cross) for level in levels), Fraction(0))
    value = finish(data, _lowered(total - found.value, levels))
    return AffinityBound("psd", value, time.process_time() - begin)


def _lowered(value: Fraction, levels: list[Level]) -> Fraction:
    """Products weight · flow are rounded to doubles: less than 2**-52 of their sum."""
    total = sum((_exact_sum(np.abs(level.cross)) for level in levels), Fraction(0))
    whole = all((level.cross == np.rint(level.cross)).all() for level in levels)
    return value if whole else value - total / 2**50


def _exact_sum(values: FloatArray) -> Fraction:
    if (values == np.rint(values)).all() and np.abs(values).sum() < 2**62:
        return Fraction(int(values.astype(np.int64).sum()))
    return sum((Fraction(v) for v in values.ravel().tolist()), Fraction(0))


def _psd_layer(data: AffinityData, l: int, steps: int, stop: Stop) -> Fraction:
    """Layer l of ``intra``: parts that a scenario touches, from pairs of its experts."""
    scenarios = data.scenarios[l]
    total = Fraction(0)
    for weight, parts in level_weights(data):
        if weight == 0:
            continue
        together = np.full((data.experts, data.experts), 1.0 / parts)
        limit = None
        if data.max_load is not None and parts == data.gpus:
            limit = Limit(data.load[l : l + 1], data.most_load[l : l + 1])
        best = Fraction(0)
        for _ in range(2):  # lines for the mean plan first, then for the relaxed one
            slope, constant = best_lines(scenarios, together, parts)
            worth = pair_worth(scenarios, slope, data.experts)
            empty = np.zeros((0, data.experts, data.experts))
            found = psd_bound(
                [Level(parts, empty, worth[None] / 2)], steps=steps, limit=limit, stop=stop
            )
            safe = Fraction(constant) - found.value - 1
            best = max(best, safe - Fraction(1, 2**30))
            together = found.kept[0, 0]
        total += Fraction(weight) * best
    return total


def column_value(data: AffinityData, *, stop: Stop = lambda: False) -> AffinityBound:
    """Column bound, pair by pair of layers or layer by layer; with nodes, GPUs and nodes apart.

    Raises
    ------
    ValueError
        There are too many sets: :func:`moeopt.affinity.columns.supports` says so.
    """
    if (reason := columns.supports(data.experts, data.gpus)) is not None:
        raise ValueError(reason)
    begin = time.process_time()
    *nodes, (weight, gpus) = level_weights(data)
    values: list[Fraction] = []
    rows: list[IntArray | None] = []
    count = len(data.flow) if data.kind == "inter" else data.layers
    for l in range(count):
        if stop():
            values.append(Fraction(0))
            rows.append(None)
            continue
        if data.kind == "inter":
            pair = columns.column_bound(
                data.flow[l], gpus, load=data.load[l : l + 2], most=_looser(data, l), stop=stop
            )
            value = Fraction(weight) * (_exact_sum(data.flow[l]) - pair.value)
            rows.append(pair.place)
        else:
            layer = columns_touch.touch_bound(
                data.scenarios[l],
                data.experts,
                gpus,
                load=data.load[l],
                most=float(data.most_load[l]),
                stop=stop,
            )
            value = Fraction(weight) * (layer.value - 1)
            rows.append(layer.row)
        values.append(max(value, Fraction(0)))
    for node_weight, parts in nodes:
        values = [
            value + Fraction(node_weight) * max(_node_part(data, l, parts, stop), Fraction(0))
            for l, value in enumerate(values)
        ]
    by_part = np.array([float_below(value) for value in values])
    total = finish(data, sum(values, Fraction(0)))
    return AffinityBound("columns", total, time.process_time() - begin, by_part, rows)


def _looser(data: AffinityData, l: int) -> float:
    """One limit for both layers of a pair: the larger, which leaves out too few columns."""
    return float(data.most_load[l : l + 2].max())


def _node_part(data: AffinityData, l: int, parts: int, stop: Stop) -> Fraction:
    """Tokens that change node, or further nodes that are touched, of one part, unweighted."""
    if data.kind == "inter":
        level = Level(parts, data.flow[l : l + 1], np.zeros((2, data.experts, data.experts)))
        return _exact_sum(level.cross) - psd_bound([level], stop=stop).value
    one = AffinityData(
        "intra",
        np.arange(parts),
        data.load[l : l + 1],
        data.flow,
        data.scenarios[l : l + 1],
    )
    return _psd_layer(one, 0, 600, stop)
