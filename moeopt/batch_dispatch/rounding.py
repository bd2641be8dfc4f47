"""From shares to whole tokens: as they are, or every expert whole on one replica.

Whole experts are found by the rounding of Shmoys and Tardos (*An approximation algorithm for the
generalized assignment problem*, Mathematical Programming 62, 1993): on each GPU pour the shares of
the experts that have a choice, most tokens first, into slots of size 1. Shares are then a
fractional matching of experts to slots, so there is a whole one, on the same replicas. A GPU with
shares that sum to at most K has at most K slots, and whatever the matching puts into a slot has no
more tokens than the mean of the slot before: compared with the shares, a GPU gains at most the
tokens of its largest expert with a choice, and activates at most its sum of shares, rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.batch_dispatch.data import LayerBatch
from moeopt.batch_dispatch.flow import level
from moeopt.problem import FloatArray, IntArray

#: Shares below this, and overfull slots by less, are rounding.
_DUST = 1e-6


def split_tokens(batch: LayerBatch, share: FloatArray) -> IntArray:
    """Whole tokens of each replica (R,), by largest remainder within each expert."""
    kept = np.where(share > _DUST, share, 0.0)
    exact = kept / np.add.reduceat(kept, batch.first[:-1])[batch.owner] * batch.tokens[batch.owner]
    sent = np.floor(exact).astype(np.int64)
    missing = batch.tokens - np.add.reduceat(sent, batch.first[:-1])
    # Largest remainder first within each expert; the i-th of them gets one if i < missing.
    by_rest = np.lexsort((sent - exact, batch.owner))
    place = np.arange(len(sent)) - batch.first[batch.owner]
    sent[by_rest] += place < missing[batch.owner]
    return sent


def whole_experts(batch: LayerBatch, poured: Poured) -> IntArray:
    """Tokens of each replica (R,) with every expert on one replica that has a share of it."""
    slot_gpu, edges = poured.slot_gpu, poured.edges
    sent = np.zeros(len(batch.gpu), dtype=np.int64)
    if len(edges):
        replicas, slots = edges[:, 0], edges[:, 1]
        members, row = np.unique(batch.owner[replicas], return_inverse=True)
        first = np.concatenate([[0], np.cumsum(np.bincount(row))]).astype(np.int64)
        ones = np.ones(len(members), dtype=np.int64)
        matched = LayerBatch(batch.layer_time, len(slot_gpu), members, ones, first, slots)
        # Shares that do not quite sum to 1 may leave a slot with two experts: still a dispatch.
        _, placed, _ = level(matched, ones)
        sent[replicas[placed > 0]] = batch.tokens[batch.owner[replicas[placed > 0]]]
    alone = (batch.copies == 1)[batch.owner]
    sent[alone] = batch.tokens[batch.owner[alone]]
    return sent


def rounding_guarantee(batch: LayerBatch, poured: Poured) -> float:
    """Time in us that :func:`whole_experts` of the same shares does not exceed.

    ``f`` of each GPU's whole activations, and of its tokens plus its largest expert with a choice.
    """
    gpu, owner = batch.gpu, batch.owner
    alone = (batch.copies == 1)[owner]
    activated = np.bincount(gpu[alone], minlength=batch.gpus).astype(np.float64)
    tokens = np.bincount(gpu[alone], batch.tokens[owner[alone]], batch.gpus)
    used = np.unique(poured.edges[:, 0])
    activated += np.bincount(poured.slot_gpu, minlength=batch.gpus)
    shared = poured.share[used] * batch.tokens[owner[used]]
    # Slots are full but for dust.
    tokens = tokens + np.bincount(gpu[used], shared, batch.gpus) * (1.0 + 4.0 * _DUST)
    largest = np.zeros(batch.gpus)
    np.maximum.at(largest, gpu[used], batch.tokens[owner[used]].astype(np.float64))
    return float(batch.layer_time.of(activated, tokens + largest).max())


@dataclass(frozen=True)
class Poured:
    """Shares (R,) in slots of size 1.

    Attributes
    ----------
    share : float array, shape (R,)
    slot_gpu : int array, shape (S,)
        GPU of each slot.
    edges : int array, shape (n, 2)
        Pairs (replica, slot), ordered by replica.
    """

    share: FloatArray
    slot_gpu: IntArray
    edges: IntArray


def pour(batch: LayerBatch, share: FloatArray) -> Poured:
    """Pour the shares (R,) of experts with a choice into slots, GPU by GPU, most tokens first."""
    choice = (batch.copies > 1)[batch.owner] & (share > _DUST)
    replicas = np.flatnonzero(choice)
    replicas = replicas[np.lexsort((-batch.tokens[batch.owner[replicas]], batch.gpu[replicas]))]
    pairs: list[tuple[int, int]] = []
    slot_gpu: list[int] = []
    filled = 1.0
    for r, g, part in zip(
        replicas.tolist(), batch.gpu[replicas].tolist(), share[replicas].tolist(), strict=True
    ):
        left = part
        while left > _DUST:
            if filled > 1.0 - _DUST or slot_gpu[-1] != g:
                slot_gpu.append(g)
                filled = 0.0
            pairs.append((r, len(slot_gpu) - 1))
            poured = min(left, 1.0 - filled)
            filled += poured
            left -= poured
    edges = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return Poured(share, np.array(slot_gpu, dtype=np.int64), edges)
