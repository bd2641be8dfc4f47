"""Closed formulas over sets of experts or GPUs, for many scenarios at once.

``unit``: T = max over sets Q of experts of ``ceil(|Q| / |N(Q)|)``, N(Q) the GPUs hosting any of Q
(Hall 1935; Beaumont et al., Euro-Par 2025). Tokens only: the least largest load is the maximum of
``load(Q) / |N(Q)|``; over sets U of GPUs it reads ``load{e : H_e ⊆ U} / |U|`` with H_e the GPUs
hosting e, the same number because the best Q for its N(Q) = U is every expert hosted inside U.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from moeopt.problem import FloatArray, IntArray

#: Largest number of experts of a scenario for the formula over sets of experts.
EXPERTS_LIMIT = 12
#: Largest number of GPUs for the formula over sets of GPUs.
GPUS_LIMIT = 12
# Entries of one work array: 32 MiB of doubles.
_CHUNK = 2**22


def unit_times(masks: IntArray) -> IntArray:
    """Layer time of the ``unit`` form: the least largest number of experts that a GPU activates.

    Parameters
    ----------
    masks : int array, shape (S, k)
        Bit g of an expert's mask is set iff GPU g (< 63) hosts it; rows are padded with -1.

    Returns
    -------
    int array, shape (S,)

    Raises
    ------
    ValueError
        An expert has no GPU.

    Notes
    -----
    Hall's formula over sets of experts for up to ``EXPERTS_LIMIT`` experts a scenario, over sets
    of GPUs where that is fewer sets, and bipartite matching where both are too many.
    """
    scenarios, size = masks.shape
    if (masks == 0).any():
        raise ValueError("an expert of a scenario is hosted nowhere")
    gpus = int(masks.max(initial=0)).bit_length()
    if gpus <= GPUS_LIMIT and gpus < size:
        row, column = np.nonzero(masks >= 0)
        loads = least_loads(row, masks[row, column], np.ones(len(row)), scenarios, gpus)
        return np.ceil(loads).astype(np.int64)
    if size <= EXPERTS_LIMIT:
        return _unit_times_by_experts(masks)
    bits = np.arange(gpus, dtype=np.int64)
    return np.array(
        [
            matching_time([tuple(np.flatnonzero(m >> bits & 1).tolist()) for m in row if m >= 0])
            for row in masks
        ],
        dtype=np.int64,
    )


def _unit_times_by_experts(masks: IntArray) -> IntArray:
    scenarios, size = masks.shape
    times = np.zeros(scenarios, dtype=np.int64)
    step = max(1, _CHUNK >> size)
    for start in range(0, scenarios, step):
        block = masks[start : start + step]
        # Subset i of the first j experts is row i; expert j doubles the table.
        cover = np.zeros((1, len(block)), dtype=np.int64)
        count = np.zeros((1, len(block)), dtype=np.int64)
        for column in block.T:
            there = column >= 0
            cover = np.concatenate([cover, cover | np.where(there, column, 0)])
            count = np.concatenate([count, count + there])
        gpus = np.maximum(np.bitwise_count(cover).astype(np.int64), 1)
        times[start : start + step] = (-(-count // gpus)).max(axis=0)
    return times


def least_loads(
    rows: IntArray, masks: IntArray, loads: FloatArray, scenarios: int, gpus: int
) -> FloatArray:
    """Least largest GPU load of each scenario by the formula over sets of GPUs.

    Parameters
    ----------
    rows, masks, loads : arrays, shape (n,)
        Expert i of scenario ``rows[i]`` has ``loads[i]`` tokens and replicas on ``masks[i]``.
    gpus : int
        At most ``GPUS_LIMIT``.

    Returns
    -------
    float array, shape (scenarios,)
        Not rounded: with whole tokens the least largest load is its ceiling. Whole loads below
        2**53 / gpus give the nearest double of the exact fraction, so the ceiling is exact.
    """
    if gpus > GPUS_LIMIT:
        raise ValueError(f"{gpus} GPUs: at most {GPUS_LIMIT} by sets of GPUs")
    if (masks == 0).any():
        raise ValueError("an expert of a scenario is hosted nowhere")
    sets = 1 << gpus
    size = np.bitwise_count(np.arange(sets)).astype(np.float64)
    size[0] = np.inf
    result = np.zeros(scenarios)
    step = max(1, _CHUNK >> gpus)
    for start in range(0, scenarios, step):
        stop = min(start + step, scenarios)
        here = (rows >= start) & (rows < stop)
        flat = (rows[here] - start) * sets + masks[here]
        inside = np.bincount(flat, loads[here], (stop - start) * sets)
        # Sum over subsets: after bit g, entry U holds the loads of all masks that differ from U
        # only by leaving out bits 0..g.
        for g in range(gpus):
            pairs = inside.reshape(-1, 2, 1 << g)
            pairs[:, 1] += pairs[:, 0]
        result[start:stop] = (inside.reshape(-1, sets) / size).max(axis=1)
    return result


def matching_time(hosts: list[tuple[int, ...]]) -> int:
    """Layer time of the ``unit`` form for any size: bipartite matching, GPUs duplicated t times.

    The least t for which every expert finds a place. Independent of :func:`unit_times`.
    """
    if not hosts:
        return 0
    gpus = 1 + max(max(h) for h in hosts)
    columns = np.array([g for h in hosts for g in h])
    pointers = np.cumsum([0] + [len(h) for h in hosts])
    graph = sparse.csr_array((np.ones(len(columns)), columns, pointers), (len(hosts), gpus))
    low, high = 1, len(hosts)
    while low < high:
        t = (low + high) // 2
        copies = sparse.csr_array(sparse.hstack([graph] * t))
        matched = maximum_bipartite_matching(copies, perm_type="column")
        low, high = (low, t) if (matched >= 0).all() else (t + 1, high)
    return low
