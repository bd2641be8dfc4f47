"""The table that every serving system shares: which expert stands in which physical slot.

Slot p of a layer lies on GPU ``p // S``, with S slots on every GPU and in every layer: SGLang,
TensorRT-LLM, vLLM and vllm-ascend all number them so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeopt.balance.hosts import hosts_of, plan_of
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.problem import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]
#: Problems listed before the rest is only counted.
_MOST_LINES = 8


@dataclass(frozen=True)
class Layout:
    """Experts of the physical slots.

    Attributes
    ----------
    experts_of_slots : int array, shape (L, P)
    experts : int
        Experts of a layer.
    gpus : int
    layers : tuple of int
        Number of each layer in the LLM.
    layers_total : int or None
        Hidden layers of the LLM, dense ones included.
    """

    experts_of_slots: IntArray
    experts: int
    gpus: int
    layers: tuple[int, ...]
    layers_total: int | None

    @property
    def slots(self) -> int:
        """Physical slots of a layer, P."""
        return int(self.experts_of_slots.shape[1])

    @property
    def slots_per_gpu(self) -> int:
        """Slots of one GPU and layer, S."""
        return self.slots // self.gpus

    @property
    def hosts(self) -> BoolArray:
        """GPUs that hold each expert, shape (L, E, G)."""
        slots = np.full(self.gpus, self.slots_per_gpu)
        return hosts_of(self.experts_of_slots, slots, self.experts)

    def duplicates(self) -> list[str]:
        """Say where a GPU holds two copies of one expert."""
        rows = self.experts_of_slots.reshape(len(self.layers), self.gpus, self.slots_per_gpu)
        gaps = np.diff(np.sort(rows, axis=2), axis=2).min(axis=2, initial=1)
        return [
            f"layer {self.layers[l]}: GPU {g} holds two copies of an expert"
            for l, g in np.argwhere(gaps == 0).tolist()
        ]


def layout_of(instance: Instance, hosts: BoolArray) -> Layout:
    """Number the slots of a plan: experts ascending on each GPU.

    Parameters
    ----------
    hosts : bool array, shape (L, E, G)

    Raises
    ------
    InputError
        GPUs or layers with different numbers of replicas: no serving system loads such a plan.
    """
    counts = hosts.sum(axis=1)
    slots = int(counts.max())
    uneven = [
        f"layer {instance.routing[l].layer}: GPU {g} holds {counts[l, g]} experts, others {slots}"
        for l, g in np.argwhere(counts != slots).tolist()
    ]
    if uneven:
        hint = "serving systems load equally many on every GPU and layer; --fill adds replicas"
        raise InputError([*_shortened(uneven), hint])
    return _layout(instance, plan_of(hosts, np.full(hosts.shape[2], slots)))


def layout_from_rows(instance: Instance, rows: Sequence[Sequence[int]], place: str) -> Layout:
    """Validate the slots of a file against an instance.

    Parameters
    ----------
    rows : sequence of sequences of int
        Experts of the slots of each layer of the instance.
    place : str
        Name of the file, for messages.

    Raises
    ------
    InputError
    """
    moe, gpus = instance.moe, instance.cluster.gpus
    problems: list[str] = []
    if len(rows) != moe.layers:
        problems.append(f"{place}: {len(rows)} layers, the instance has {moe.layers}")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        problems.append(f"{place}: layers with {lengths[0]} to {lengths[-1]} slots")
    problems += [
        f"{place}: {length} slots do not divide among {gpus} GPUs"
        for length in lengths
        if length == 0 or length % gpus
    ]
    for layer, row in zip(instance.routing, rows, strict=False):
        strange = sorted({e for e in row if not 0 <= e < moe.experts})
        absent = sorted(set(range(moe.experts)) - set(row))
        if strange:
            problems.append(f"{place}: layer {layer.layer}: there is no expert {strange[0]}")
        if absent:
            problems.append(f"{place}: layer {layer.layer}: expert {absent[0]} has no slot")
    if problems:
        raise InputError(_shortened(problems))
    return _layout(instance, np.array(rows, dtype=np.int64))


def _layout(instance: Instance, rows: IntArray) -> Layout:
    return Layout(
        rows,
        instance.moe.experts,
        instance.cluster.gpus,
        tuple(layer.layer for layer in instance.routing),
        instance.moe.layers_total,
    )


def fill(hosts: BoolArray, load: FloatArray, slots: int | None = None) -> BoolArray:
    """Add replicas until every GPU holds equally many experts in every layer.

    On the GPU with the fewest first, the expert with the largest load a replica that is not there.

    Parameters
    ----------
    hosts : bool array, shape (L, E, G)
    load : float array, shape (L, E)
    slots : int, optional
        Experts of a layer on each GPU; default: as many as the fullest GPU has.

    Raises
    ------
    InputError
        A GPU holds more than ``slots`` already, or there are fewer experts than slots.
    """
    hosts = hosts.copy()
    most = int(hosts.sum(axis=1).max())
    slots = most if slots is None else slots
    if slots < most or slots > hosts.shape[1]:
        raise InputError(
            f"{slots} slots: between {most} (the fullest GPU) and {hosts.shape[1]} (all experts)"
        )
    for layer, weights in zip(hosts, load, strict=True):
        while (counts := layer.sum(axis=0)).min() < slots:
            g = int(counts.argmin())
            share = np.where(layer[:, g], -1.0, weights / layer.sum(axis=1))
            layer[int(share.argmax()), g] = True
    return hosts


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], f"… and {more} more like these"]
