"""What a plan of ``affinity`` costs, layer by layer, and how even its loads are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.affinity.data import AffinityData, FloatArray, IntArray
from moeopt.balance.exact import float_above


@dataclass(frozen=True)
class AffinityReport:
    """Cost and loads of a plan.

    Attributes
    ----------
    objective : float
        In tokens (``inter``) or transfers of a token (``intra``), weighted; rounded up.
    near, far, total : float arrays, shape (L - 1,) or (L,)
        ``inter``: tokens from a layer to the next that change GPU inside a node, that change
        node, and all tokens (a token with k experts in each layer counts k² times, once for each
        pair). ``intra``: expected further GPUs in nodes that are touched, further nodes, and
        expected experts less one.
    costs : float array
        Weighted sum of near and far.
    imbalance : float array, shape (L,)
        Largest load of a GPU over the mean.
    """

    objective: float
    near: FloatArray
    far: FloatArray
    total: FloatArray
    costs: FloatArray
    imbalance: FloatArray

    @property
    def crossing_gpus(self) -> float:
        """Share of the tokens that change GPU."""
        return float((self.near.sum() + self.far.sum()) / self.total.sum())

    @property
    def crossing_nodes(self) -> float:
        """Share of the tokens that change node."""
        return float(self.far.sum() / self.total.sum())


def evaluate(data: AffinityData, place: IntArray) -> AffinityReport:
    """Evaluate a plan, shape (L, E)."""
    near, far, total = _inter(data, place) if data.kind == "inter" else _intra(data, place)
    exact = [
        Fraction(data.near) * Fraction(n) + Fraction(data.far) * Fraction(f)
        for n, f in zip(near.tolist(), far.tolist(), strict=True)
    ]
    loads = gpu_loads(data, place)
    mean = np.maximum(loads.mean(axis=1), np.finfo(float).tiny)
    return AffinityReport(
        objective=float_above(sum(exact, Fraction(0))),
        near=near,
        far=far,
        total=total,
        costs=np.array([float_above(value) for value in exact]),
        imbalance=loads.max(axis=1) / mean,
    )


def gpu_loads(data: AffinityData, place: IntArray) -> FloatArray:
    """Tokens of each GPU in each layer, shape (L, G)."""
    return np.stack(
        [
            np.bincount(row, weights=load, minlength=data.gpus)
            for row, load in zip(place, data.load, strict=True)
        ]
    )


def _inter(data: AffinityData, place: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    near, far, total = [], [], []
    for flow, here, there in zip(data.flow, place[:-1], place[1:], strict=True):
        same_node = data.node[here][:, None] == data.node[there]
        same_gpu = here[:, None] == there
        near.append(math.fsum(flow[same_node & ~same_gpu].tolist()))
        far.append(math.fsum(flow[~same_node].tolist()))
        total.append(math.fsum(flow.ravel().tolist()))
    return np.array(near), np.array(far), np.array(total)


def _intra(data: AffinityData, place: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    near, far, total = [], [], []
    for scenarios, row in zip(data.scenarios, place, strict=True):
        gpus, nodes = touched(data, scenarios.ptr, scenarios.expert, row)
        weight = scenarios.weight
        near.append(math.fsum((weight * (gpus - nodes)).tolist()))
        far.append(math.fsum((weight * (nodes - 1)).tolist()))
        total.append(math.fsum((weight * (scenarios.sizes - 1)).tolist()))
    return np.array(near), np.array(far), np.array(total)


def touched(
    data: AffinityData, ptr: IntArray, expert: IntArray, row: IntArray
) -> tuple[IntArray, IntArray]:
    """Return GPUs and nodes that each scenario touches, shapes (S,)."""
    scenario = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    on_gpu = np.zeros((len(ptr) - 1, data.gpus), dtype=bool)
    on_gpu[scenario, row[expert]] = True
    on_node = np.zeros((len(ptr) - 1, data.nodes), dtype=bool)
    on_node[scenario, data.node[row[expert]]] = True
    return on_gpu.sum(axis=1), on_node.sum(axis=1)
