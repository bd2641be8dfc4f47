"""Prescribed waves where every GPU has equal slots in every layer.

There is one number to choose: q slots, ``r = qG − E`` additional replicas in every layer. All of
them are hosted, so hosts that were found with fewer are filled up, with the experts that have the
most tokens for a host. Where nobody is split, the GPU of the heaviest expert has q − 1 whole
experts beside it (:mod:`moeopt.joint.step_function`).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from moeopt.joint.memory import memory_of
from moeopt.joint.prescribed_layers import PrescribedLayers
from moeopt.joint.wave_hosts import BoolArray
from moeopt.problem import FloatArray, IntArray, ProblemData


def uniform_numbers(data: ProblemData) -> IntArray:
    """Additional replicas of a layer for every number of slots that fits; may be empty."""
    assert data.wave_requests is not None
    memory = memory_of(data)
    cache = int((data.wave_requests * memory.kv[:, None]).sum(axis=0).max())
    most = min(memory.uniform_slots(cache), data.experts if data.slots is None else data.slots)
    return np.arange(-(-data.experts // data.gpus), most + 1) * data.gpus - data.experts


class UniformLayers(PrescribedLayers):
    """Both sides of ``F_l(qG − E)`` of every layer, for every q that fits (there must be one)."""

    def _numbers(self) -> tuple[IntArray, int]:
        numbers = uniform_numbers(self.data)
        # The last number that is counted stands for more, too, which makes it weak.
        return numbers, int(numbers[-1]) + 1

    def _slots(self, r: int) -> int:
        return (self.data.experts + r) // self.data.gpus

    def _share_out(self, times: FloatArray, replicas: int) -> tuple[float, IntArray]:
        numbers = self.numbers[self.numbers * self.data.layers <= replicas]
        if not len(numbers):
            return np.inf, np.zeros(self.data.layers, dtype=np.int64)
        totals = times[:, numbers].sum(axis=0)
        best = int(totals.argmin())
        chosen = np.full(self.data.layers, numbers[best])
        return float(totals[best] + self.attention[0]), chosen

    # --- from below

    @cached_property
    def _whole(self) -> FloatArray:
        """Bound each wave of each layer where nobody is split, shape (L, W)."""
        slots = self.data.experts // self.data.gpus
        tokens = np.stack(self.tokens, axis=1)
        return np.stack([self.step.full_gpus(w, slots, 0, False) for w in tokens], axis=1)

    def _shared(self, l: int, alone: FloatArray) -> FloatArray:
        if self.numbers[0] == 0:
            alone = alone.copy()
            alone[:, 0] = np.maximum(alone[:, 0], self._whole[l])
        return super()._shared(l, alone)

    # --- from above

    def _keep(self, l: int, r: int, hosts: BoolArray, total: float, shares: FloatArray) -> None:
        """Keep hosts for r and for the next number, filled up, where they are better."""
        for n, number in enumerate(self.numbers[self.numbers >= r].tolist()):
            if n > 1 and (l, number) in self.hosts:
                break
            filled = self._filled(l, hosts, self._slots(number))
            filled_us, split = self._dispatch(l, filled, shares)
            if filled_us < self.upper[l, number]:
                self.upper[l, number] = filled_us
                self.hosts[l, number], self.splits[l, number] = filled, split[:, filled]

    def _filled(self, l: int, hosts: BoolArray, slots: int) -> BoolArray:
        """Host further experts until every GPU has so many."""
        filled: BoolArray = hosts.copy()
        weight = self.steps @ self.tokens[l]
        for g in range(self.data.gpus):
            for _ in range(slots - int(filled[:, g].sum())):
                each = weight / filled.sum(axis=1)
                e = int(np.where(filled[:, g], -1.0, each).argmax())
                filled[e, g] = True
        return filled
