"""Data of the problem ``balance`` as arrays: what its search, bounds and checker see.

Slots lie GPU by GPU: slot ``p`` belongs to the GPU ``g`` with ``first[g] <= p < first[g + 1]``.
With equal slots that is ``p // (P / G)``, the convention of the serving systems. A plan is an
integer array, shape (L, P): the expert in every slot of every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeopt.errors import InputError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

#: How the tokens of an expert are shared by its replicas.
RULES = ("even", "optimal")


@dataclass(frozen=True)
class BalanceData:
    """An instance of ``balance``.

    Attributes
    ----------
    loads : float array, shape (W, L, E)
        Tokens of each expert, in each window of time.
    slots : int array, shape (G,)
        Experts of one layer that a GPU holds: exactly so many.
    nodes : int
        GPUs are numbered node by node, equally many in each.
    groups : int
        Consecutive experts form groups of equal size; the groups of a layer are divided equally
        among the nodes, and an expert's replicas stay on its group's node. 1: no groups.
    rule : str
        ``even``: an expert's tokens are shared evenly by its replicas; ``optimal``: as a linear
        program of each window does.
    previous : int array, shape (L, P), or None
        The plan in use, in the same slots; -1 for an empty slot.
    most_moves : int or None
        Copies that a new plan may bring to GPUs that did not hold them, over all layers.

    Raises
    ------
    InputError
        The arrays do not fit each other, or no plan can exist.
    """

    loads: FloatArray
    slots: IntArray
    nodes: int = 1
    groups: int = 1
    rule: str = "even"
    previous: IntArray | None = None
    most_moves: int | None = None

    def __post_init__(self) -> None:
        if lines := _problems(self):
            raise InputError(lines)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return int(self.loads.shape[0])

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.loads.shape[1])

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return int(self.loads.shape[2])

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return len(self.slots)

    @property
    def replicas(self) -> int:
        """Slots of a layer: replicas of all experts together."""
        return int(self.slots.sum())

    @property
    def gpu_of_slot(self) -> IntArray:
        """GPU of each slot, shape (P,)."""
        return np.repeat(np.arange(self.gpus), self.slots)

    @property
    def parts(self) -> int:
        """Parts of a layer that are balanced apart: its nodes where there are groups, else 1."""
        return self.nodes if self.groups > 1 else 1


def balance_data(
    loads: Any,
    *,
    gpus: int,
    replicas: int | None = None,
    slots: Any = None,
    nodes: int = 1,
    groups: int = 1,
    rule: str = "even",
    previous: Any = None,
    most_moves: int | None = None,
) -> BalanceData:
    """Return the instance of these loads: (E,), (L, E) or (W, L, E).

    Parameters
    ----------
    loads : array_like of float
    gpus : int
    replicas : int, optional
        Slots of a layer, equally many on each GPU; or ``slots``.
    slots : array_like of int, shape (G,), optional
        Slots of each GPU.
    nodes, groups, rule, previous, most_moves
        See `BalanceData`.

    Raises
    ------
    InputError
        They do not fit each other.
    """
    array = np.asarray(loads, dtype=np.float64)
    if array.ndim not in (1, 2, 3) or array.size == 0:
        raise InputError("loads: an array of shape (E,), (L, E) or (W, L, E) is needed")
    array = array.reshape((1,) * (3 - array.ndim) + array.shape)
    if (replicas is None) == (slots is None):
        raise InputError("either replicas or slots is needed")
    if slots is None:
        assert replicas is not None
        if gpus < 1 or replicas % gpus:
            raise InputError(f"{replicas} slots cannot be divided equally among {gpus} GPUs")
        slots = np.full(gpus, replicas // gpus)
    slots = np.asarray(slots, dtype=np.int64)
    if slots.shape != (gpus,):
        raise InputError(f"slots: {gpus} numbers are needed, one for each GPU")
    if previous is not None:
        previous = np.asarray(previous, dtype=np.int64)
    return BalanceData(array, slots, nodes, groups, rule, previous, most_moves)


def _problems(data: BalanceData) -> list[str]:
    """Why these arrays are no instance, or have no plan."""
    lines = []
    if data.rule not in RULES:
        lines.append(f"rule {data.rule!r}: it is one of {', '.join(RULES)}")
    if not np.isfinite(data.loads).all() or (data.loads < 0).any():
        lines.append("loads: finite numbers, not below 0, are needed")
    if data.gpus == 0 or (data.slots < 1).any():
        lines.append("slots: every GPU needs at least one")
    if data.nodes < 1 or data.gpus % data.nodes:
        lines.append(f"{data.gpus} GPUs cannot be divided equally among {data.nodes} nodes")
    if data.groups < 1 or data.experts % data.groups:
        lines.append(f"{data.experts} experts cannot be divided into {data.groups} equal groups")
    elif data.groups > 1 and data.nodes >= 1 and data.groups % data.nodes:
        lines.append(f"{data.groups} groups cannot be divided equally among {data.nodes} nodes")
    if lines:
        return lines
    parts = data.parts
    experts = data.experts // parts
    where = "" if parts == 1 else " of a node"
    for slots in data.slots.reshape(parts, -1):
        if slots.sum() < experts:
            lines.append(f"{slots.sum()} slots{where} cannot hold {experts} experts")
        if slots.max() > experts:
            lines.append(
                f"{slots.max()} slots on a GPU, {experts} experts{where}: one would be there twice"
            )
    if data.previous is not None:
        shape = (data.layers, data.replicas)
        if data.previous.shape != shape:
            lines.append(f"previous: shape {shape} is needed, not {data.previous.shape}")
        elif data.previous.min() < -1 or data.previous.max() >= data.experts:
            lines.append(f"previous: experts are 0 to {data.experts - 1}, -1 for an empty slot")
    if data.most_moves is not None and (data.most_moves < 0 or data.previous is None):
        lines.append("a migration budget is not below 0 and needs the plan in use")
    return list(dict.fromkeys(lines))


def layer_of(data: BalanceData, l: int) -> FloatArray:
    """Return the loads of one layer, shape (W, E), contiguous."""
    return np.ascontiguousarray(data.loads[:, l])
