"""Data of the problem ``topology`` as arrays: servers, what a token pays on each, room, copies.

Servers are the nodes of the cluster. Tokens of a layer come in streams: those of stream ``i`` of
layer ``l`` start on the server ``dispatch[l, i]``, visit the expert and end on ``collect[l, i]``.
A plan is a bool array, shape (L, E, S): which server holds a copy of which expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeopt.errors import InputError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class TopologyData:
    """An instance of ``topology``.

    Attributes
    ----------
    hops : float array, shape (S, S)
        Hops from server to server, 0 on the diagonal.
    node_of_gpu : int array, shape (G,)
        Server of each GPU; the GPUs of a server are equal.
    dispatch, collect : int arrays, shape (L, I)
        Where the tokens of each stream start and end in each layer.
    share : float array, shape (I,)
        Share of the tokens that each stream has.
    weight : float array, shape (L, E)
        Ones, or the expected activations of each expert by one token.
    capacity : int array, shape (S,)
        Experts of all layers that a server may hold.
    capacity_per_layer : int array, shape (S,)
        Experts of one layer that a server may hold.
    replicas : int
        Copies allowed beyond one of each expert, over all layers. 0: one copy of each.

    Raises
    ------
    InputError
        The arrays do not fit each other.
    """

    hops: FloatArray
    node_of_gpu: IntArray
    dispatch: IntArray
    collect: IntArray
    share: FloatArray
    weight: FloatArray
    capacity: IntArray
    capacity_per_layer: IntArray
    replicas: int = 0

    def __post_init__(self) -> None:
        if lines := _problems(self):
            raise InputError(lines)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.weight.shape[0])

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return int(self.weight.shape[1])

    @property
    def servers(self) -> int:
        """Number of servers."""
        return len(self.capacity)

    @property
    def streams(self) -> int:
        """Streams of tokens of a layer."""
        return len(self.share)

    @property
    def copies(self) -> int:
        """Most copies of all experts of all layers together."""
        return min(self.layers * self.experts + self.replicas, int(self.capacity.sum()))

    @cached_property
    def way(self) -> FloatArray:
        """Hops of a token of each stream by way of each server, shape (L, I, S)."""
        return np.asarray(self.hops[self.dispatch] + self.hops.T[self.collect])

    @cached_property
    def cost(self) -> FloatArray:
        """Mean over the streams of ``way``, shape (L, S): what one token of one copy pays."""
        return np.asarray(np.einsum("i,lis->ls", self.share, self.way))


def _problems(data: TopologyData) -> list[str]:
    servers, streams = len(data.capacity), len(data.share)
    layers = len(data.weight)
    lines = []
    if data.hops.shape != (servers, servers):
        lines.append(f"hops: shape ({servers}, {servers}) is needed, not {data.hops.shape}")
    elif not np.isfinite(data.hops).all() or (data.hops < 0).any() or np.diag(data.hops).any():
        lines.append("hops: finite numbers, not below 0, and 0 on the diagonal are needed")
    for name, table in (("dispatch", data.dispatch), ("collect", data.collect)):
        if table.shape != (layers, streams):
            lines.append(f"{name}: shape ({layers}, {streams}) is needed, not {table.shape}")
        elif table.min() < 0 or table.max() >= servers:
            lines.append(f"{name}: servers are 0 to {servers - 1}")
    if data.capacity_per_layer.shape != (servers,):
        lines.append("capacity_per_layer: one number a server is needed")
    elif min(data.capacity.min(), data.capacity_per_layer.min()) < 0:
        lines.append("capacity, capacity_per_layer: must not be below 0")
    for name, array in (("weight", data.weight), ("share", data.share)):
        if not np.isfinite(array).all() or (array < 0).any():
            lines.append(f"{name}: finite numbers, not below 0, are needed")
    if (
        len(data.node_of_gpu)
        and not 0 <= data.node_of_gpu.min() <= data.node_of_gpu.max() < servers
    ):
        lines.append(f"node_of_gpu: servers are 0 to {servers - 1}")
    if data.replicas < 0:
        lines.append("replicas: must not be below 0")
    return lines
