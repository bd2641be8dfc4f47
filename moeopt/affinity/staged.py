"""Placements in stages: nodes and then GPUs, or halves of halves as ExFlow does.

Every stage divides the experts that a part of the GPUs hosts, in all layers at once, among smaller
parts: equal numbers, loads in proportion, fewest tokens that change part (each weighs 1). Later
stages never move an expert to another part.
"""

from __future__ import annotations

import numpy as np

from moeopt.affinity.anneal import anneal
from moeopt.affinity.data import AffinityData, IntArray, most_load
from moeopt.affinity.search import polish, sweep, temperatures, walk
from moeopt.affinity.start import even_row

#: Exchanges tried in each stage, for each pair of its experts of each layer.
_STEPS_A_PAIR = 400
#: Shares of the allowed imbalance that parts of several GPUs may use, tried in turn until the later
#: stages find loads even enough.
_SHARES = (1.0, 0.5, 0.25, 0.1)


def exflow_plan(data: AffinityData, *, seed: int = 0) -> IntArray | None:
    """ExFlow (arXiv 2401.08383): nodes first, then bipartition after bipartition inside them.

    The published code gives each stage to an integer program solver for at most 60 s and takes what
    it has; here each stage is annealed, on all tokens instead of 5,000. None if a stage finds no
    loads even enough.
    """
    return _first(data, seed, halves=True)


def hierarchical_plan(data: AffinityData, *, seed: int = 0) -> IntArray | None:
    """Nodes first, then the GPUs of each node at once; None if loads are not even enough."""
    return _first(data, seed, halves=False)


def _first(data: AffinityData, seed: int, *, halves: bool) -> IntArray | None:
    groups = [np.flatnonzero(data.node == n).tolist() for n in range(data.nodes)]
    for share in _SHARES:
        place = _divide(data, groups, seed, share, halves=halves)
        if place is not None or data.max_load is None:
            return place
    return None


def _divide(
    data: AffinityData, groups: list[list[int]], seed: int, share: float, *, halves: bool
) -> IntArray | None:
    """Divide all experts among groups of GPUs, then the experts of each group among its GPUs."""
    every = np.tile(np.arange(data.experts), (data.layers, 1))
    place = np.full((data.layers, data.experts), -1, dtype=np.int64)
    gpus = [g for group in groups for g in group]
    pending = [(every, gpus, groups if len(groups) > 1 else None)]
    while pending:
        members, held, parts = pending.pop()
        if len(held) == 1:
            np.put_along_axis(place, members, held[0], axis=1)
            continue
        if parts is None and halves:
            parts = [held[: len(held) // 2], held[len(held) // 2 :]]
        part = _stage(data, members, parts or [[g] for g in held], seed, share)
        if part is None:
            return None
        for i, inner in enumerate(parts or [[g] for g in held]):
            chosen = np.stack([m[p == i] for m, p in zip(members, part, strict=True)])
            pending.append((chosen, inner, None))
    return place


def _stage(
    data: AffinityData, members: IntArray, parts: list[list[int]], seed: int, share: float
) -> IntArray | None:
    """Part of each member, shape as ``members``; None if loads are not even enough."""
    # A part of several GPUs stands as so many places: all parts have the same number of experts
    # a place, and no token pays for going from one to another of the same part.
    sizes = [len(part) * data.size for part in parts]
    rows = np.arange(data.layers)[:, None]
    load = data.load[rows, members]
    flow = np.stack(
        [f[a][:, b] for f, a, b in zip(data.flow, members[:-1], members[1:], strict=True)]
    )
    most = data.most_load
    if data.max_load is not None and len(parts[0]) > 1:
        most = most_load(data.load, data.gpus, 1.0 + (np.asarray(data.max_load) - 1.0) * share)
    start = np.repeat(np.arange(len(parts)), sizes)
    place = np.tile(start, (data.layers, 1))
    limits = np.array([[len(p) for p in parts]]) * most[:, None]
    for l in range(data.layers):
        loads = np.bincount(place[l], weights=load[l], minlength=len(parts))
        if (loads > limits[l]).any():
            row = _even(load[l], parts, data.size, most[l])
            if row is None:
                return None
            place[l] = row
    if len(set(sizes)) > 1:
        raise ValueError("parts of different sizes")  # nodes are equal where this is called
    weight = 1.0 - np.eye(len(parts))
    hot, cold = temperatures(flow, 1.0, len(parts))
    return anneal(
        flow,
        place,
        weight,
        load,
        limits[:, 0],
        steps=_STEPS_A_PAIR * members.shape[1] ** 2 * data.layers,
        seed=seed,
        hot=hot,
        cold=cold,
    )


def _even(load: np.ndarray, parts: list[list[int]], size: int, most: float) -> IntArray | None:
    """Divide among single GPUs first, so that each part can be divided further."""
    gpus = sum(len(part) for part in parts)
    row = even_row(load, gpus, size, most)
    if row is None:
        return None
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.asarray(owner[row])


def refined(data: AffinityData, place: IntArray, *, seed: int = 0) -> IntArray:
    """Anneal a staged plan over all GPUs from a low temperature, then move layers as a whole."""
    return polish(data, walk(data, sweep(data, place), seed, 0.05))
