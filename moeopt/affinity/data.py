"""Data of the problem ``affinity`` as arrays: what its search, bounds and checker see.

A plan is an integer array, shape (L, E): the GPU of every expert of every layer, exactly E/G
experts of a layer on each GPU. GPUs are numbered node by node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moeopt.errors import InputError
from moeopt.problem import Scenarios

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class AffinityData:
    """An instance of ``affinity``.

    Attributes
    ----------
    kind : {"inter", "intra"}
        ``inter``: tokens that change GPU between consecutive layers; ``intra``: further GPUs and
        nodes that a token of the scenarios touches inside a layer.
    node : int array, shape (G,)
        Node of each GPU, ascending.
    load : float array, shape (L, E)
        Tokens of each expert.
    flow : float array, shape (L - 1, E, E)
        ``inter``: tokens that use e in layer l and f in layer l + 1; no layers for ``intra``.
    scenarios : tuple of Scenarios
        ``intra``: one a layer; empty for ``inter``.
    near, far : float
        Weight of a change of GPU inside a node, and between nodes (``intra``: of a further GPU in
        a node that is touched, and of a further node); ``0 <= near <= far``.
    max_load : float, or float array, shape (L,), or None
        Largest load of a GPU over the mean of a layer, one for all or each its own; None: any.

    Raises
    ------
    InputError
        The arrays do not fit each other, or no plan can exist.
    """

    kind: Literal["inter", "intra"]
    node: IntArray
    load: FloatArray
    flow: FloatArray
    scenarios: tuple[Scenarios, ...] = ()
    near: float = 1.0
    far: float = 1.0
    max_load: float | FloatArray | None = None

    def __post_init__(self) -> None:
        if lines := _problems(self):
            raise InputError(lines)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.load.shape[0])

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return int(self.load.shape[1])

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return len(self.node)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return int(self.node[-1]) + 1

    @property
    def size(self) -> int:
        """Experts of a layer on each GPU."""
        return self.experts // self.gpus

    @property
    def weight(self) -> FloatArray:
        """Weight of a token that goes from one GPU to another, shape (G, G)."""
        apart = np.where(self.node[:, None] == self.node, self.near, self.far)
        np.fill_diagonal(apart, 0.0)
        return apart

    @property
    def most_load(self) -> FloatArray:
        """Most tokens that a GPU may have in each layer, shape (L,); infinite where any."""
        if self.max_load is None:
            return np.full(self.layers, np.inf)
        return most_load(self.load, self.gpus, self.max_load)

    @property
    def even_nodes(self) -> bool:
        """Whether every node has equally many GPUs."""
        return len(set(np.bincount(self.node).tolist())) == 1


def most_load(load: FloatArray, gpus: int, ratio: float | FloatArray) -> FloatArray:
    """Most tokens of a GPU under a ratio to the mean; a rounding error above it is allowed."""
    return np.asarray(load.sum(axis=1) / gpus * ratio * (1 + 1e-12))


def hosts_of(place: IntArray, gpus: int) -> NDArray[np.bool_]:
    """Which GPU holds which expert, shape (L, E, G)."""
    return np.asarray(place[:, :, None] == np.arange(gpus))


def contiguous(data: AffinityData) -> IntArray:
    """Return the plan of serving systems: neighbouring experts on one GPU, in every layer."""
    row = np.arange(data.experts, dtype=np.int64) // data.size
    return np.tile(row, (data.layers, 1))


def pair_of(data: AffinityData, l: int) -> AffinityData:
    """Return layers l and l + 1 of ``inter`` alone."""
    layers = slice(l, l + 2)
    ratio = data.max_load[layers] if isinstance(data.max_load, np.ndarray) else data.max_load
    return replace(data, load=data.load[layers], flow=data.flow[l : l + 1], max_load=ratio)


def _problems(data: AffinityData) -> list[str]:
    """Why these arrays are no instance, or have no plan."""
    if data.load.ndim != 2 or data.load.size == 0 or data.gpus == 0:
        return ["affinity: loads of shape (L, E) and at least one GPU are needed"]
    layers, experts, gpus = data.layers, data.experts, data.gpus
    lines = []
    if experts % gpus:
        lines.append(f"{experts} experts cannot be divided equally among {gpus} GPUs")
    if data.node[0] != 0 or not np.isin(np.diff(data.node), (0, 1)).all():
        lines.append("affinity: GPUs are numbered node by node, from 0")
    inter = data.kind == "inter"
    if data.flow.shape != ((layers - 1 if inter else 0), experts, experts):
        lines.append(f"affinity: flow of shape {data.flow.shape} does not fit {layers} layers")
    if len(data.scenarios) != (0 if inter else layers):
        lines.append(f"affinity: {len(data.scenarios)} layers of scenarios do not fit {data.kind}")
    if not (np.isfinite(data.flow).all() and (data.flow >= 0).all()):
        lines.append("affinity: tokens are finite and not below 0")
    if not 0 <= data.near <= data.far < np.inf:
        lines.append(f"affinity: 0 <= near <= far is needed, not {data.near:g} and {data.far:g}")
    if data.max_load is not None and not (np.asarray(data.max_load) >= 1).all():
        lines.append(f"affinity: max_load is at least 1, not {np.min(data.max_load):g}")
    return lines
