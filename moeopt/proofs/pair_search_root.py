"""What the pair search needs before its first node: whole weights and the tables of the root."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt

from moeopt.proofs.pair_search_terms import MEMBERS, PairTerms

Array = npt.NDArray[np.int64]

#: Bounds in floating point are lowered by this factor: more than the rounding of a few products.
SAFE = 1.0 - 2.0**-40


def typical_pairs(
    experts: int, gpus: int, slots: int, incumbent: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.float64]:
    """How often two experts have two masks, shape (2**G, 2**G).

    Half from the pairs of the incumbent, half as if masks were independent with its numbers of
    copies; without an incumbent only that, with copies as equal as possible.
    """
    masks = 1 << gpus
    size = np.bitwise_count(np.arange(masks)).astype(np.int64)
    if incumbent is None:
        copies = np.diff(np.arange(experts + 1) * gpus * slots // experts)
    else:
        copies = incumbent.sum(axis=1)
    number = np.bincount(np.clip(copies, 1, gpus), minlength=gpus + 1) / np.bincount(size)
    single = 0.98 * number[size] / number[size].sum() + 0.02 * (size > 0) / (masks - 1)
    pairs = np.outer(single, single)
    if incumbent is not None and experts > 1:
        plan = incumbent @ (1 << np.arange(gpus))
        found = np.zeros((masks, masks))
        np.add.at(found, (plan[:, None], plan[None, :]), 1.0)
        np.add.at(found, (plan, plan), -1.0)
        pairs = 0.5 * pairs + 0.5 * found / (experts * (experts - 1))
    return pairs


def whole_weights(weight: npt.NDArray[np.float64], limit: float) -> tuple[Array, float]:
    """Whole weights and a ratio with ``weight >= ratio * whole``, sum of whole at most ``limit``.

    Weights that are multiples of one number (counts in a file, normalised) come out in proportion.
    """
    least = float(weight[weight > 0].min())
    multiples = np.arange(1, min(int(limit * least) + 1, 20_000))
    for start in range(0, len(multiples), 256):
        scale = multiples[start : start + 256, None] / least
        near = np.abs(weight * scale - np.rint(weight * scale)).max(axis=1) < 1e-6
        if near.any():
            whole = np.rint(weight * scale[near.argmax()]).astype(np.int64)
            break
    else:
        whole = np.floor(weight * (limit * (1.0 - 1e-12))).astype(np.int64)
    used = whole > 0
    return whole, float((weight[used] / whole[used]).min()) * SAFE


def root_tables(
    members: Array, weight: Array, experts: int, terms: PairTerms
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Weights of sets of four (number E: absent); pair tables before any expert is placed."""
    weight4 = np.zeros((experts + 1,) * MEMBERS, dtype=np.int32)
    rows, which = np.unique(np.sort(members, axis=1), axis=0, return_inverse=True)
    total = np.bincount(which.ravel(), weight).astype(np.int64)
    for p in permutations(range(MEMBERS)):
        weight4[tuple(rows[:, p].T)] = total
    labels = len(terms.open4)
    pair = np.zeros((experts, experts, labels, labels), dtype=np.int64)
    full, one = terms.open4, terms.open4 + terms.gain3[0]
    two = one + terms.gain2[0, 0]
    for row, w in zip(rows.tolist(), total.tolist(), strict=True):
        there = [e for e in row if e < experts]
        term = {4: full, 3: one, 2: two}.get(len(there))
        if term is None or w == 0:
            continue
        for i, a in enumerate(there):
            for b in there[i + 1 :]:
                pair[a, b, 1:, 1:] += w * term[1:, 1:]
    return weight4, pair.astype(np.int32)
