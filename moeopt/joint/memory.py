"""Memory of ``joint`` in whole bytes: what experts and KV caches leave for replicas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.problem import IntArray, ProblemData, RequestClasses
from moeopt.units import BYTES_PER_MIB


def request_classes(data: ProblemData) -> RequestClasses:
    """Return the request classes, which every ``joint`` has."""
    assert data.requests is not None
    return data.requests


@dataclass(frozen=True)
class Memory:
    """Sizes in bytes.

    Attributes
    ----------
    expert : int
        One expert of one layer.
    free : int array, shape (G,)
        Each GPU's memory for experts and KV cache.
    kv : int array, shape (C,)
        KV cache of one request of each class.
    copies : int
        Experts of all layers: replicas that every plan has.
    """

    expert: int
    free: IntArray
    kv: IntArray
    copies: int
    layers: int
    uniform: bool

    def additional(self, kv: int) -> int:
        """Most additional replicas in all layers beside ``kv`` bytes of cache; may be < 0.

        With uniform slots: the replicas beyond one copy of all experts that this many equal slots
        hold.
        """
        if not self.uniform:
            return (int(self.free.sum()) - kv) // self.expert - self.copies
        return self.uniform_slots(kv) * len(self.free) * self.layers - self.copies

    def uniform_slots(self, kv: int) -> int:
        """Most slots of every GPU in every layer beside ``kv`` bytes of cache on all GPUs."""
        a_slot = self.expert * self.layers
        together = (int(self.free.sum()) - kv) // (a_slot * len(self.free))
        return min(together, int(self.free.min()) // a_slot, self.copies // self.layers)


def memory_of(data: ProblemData) -> Memory:
    """Return the sizes of a problem."""
    assert data.free_mib is not None
    requests = request_classes(data)
    return Memory(
        expert=round(data.expert_mib * BYTES_PER_MIB),
        free=np.rint(data.free_mib * BYTES_PER_MIB).astype(np.int64),
        kv=np.rint(requests.kv_mib * BYTES_PER_MIB).astype(np.int64),
        copies=data.layers * data.experts,
        layers=data.layers,
        uniform=data.uniform_slots,
    )
