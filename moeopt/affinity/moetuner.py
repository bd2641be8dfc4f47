"""MoETuner's two stages (arXiv 2502.06643) as a baseline.

1. Clusters of each layer, one a GPU: least ``Σ_c |T_c − mean|`` of their tokens, whatever the
   affinity. The paper asks for at least one expert a cluster and equally many on each GPU overall;
   here every cluster has E/G, which all methods have to obey.
2. Clusters to GPUs: least ``Σ_l max over pairs of clusters of (tokens / bandwidth)``, where a pair
   on one GPU costs nothing and links count with their weights.

The paper solves both as integer programs to 2.5 %. Stage 1 is searched by exchanges from several
starts; stage 2 by exchanges of two clusters of a layer until none helps, also from several.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moeopt.affinity.data import AffinityData, FloatArray, IntArray

_STARTS = 8


@njit(cache=True, nogil=True)
def _even(load: Any, row: Any, gpus: int) -> Any:
    """Exchange experts while Σ |T − mean| falls; returns that sum, changes ``row``."""
    experts = len(load)
    loads = np.zeros(gpus)
    for e in range(experts):
        loads[row[e]] += load[e]
    mean = loads.mean()
    gained = True
    while gained:
        gained = False
        for e in range(experts):
            for f in range(e):
                a, b = row[e], row[f]
                moved = load[f] - load[e]
                before = abs(loads[a] - mean) + abs(loads[b] - mean)
                after = abs(loads[a] + moved - mean) + abs(loads[b] - moved - mean)
                if a != b and after < before - 1e-9 * mean:
                    loads[a] += moved
                    loads[b] -= moved
                    row[e], row[f] = b, a
                    gained = True
    return np.abs(loads - mean).sum()


@njit(cache=True, nogil=True)
def _slowest(tokens: Any, weight: Any, here: Any, there: Any) -> float:
    worst = 0.0
    for a in range(len(here)):
        for b in range(len(there)):
            worst = max(worst, tokens[a, b] * weight[here[a], there[b]])
    return worst


@njit(cache=True, nogil=True)
def _assign(tokens: Any, weight: Any, name: Any) -> float:
    """Exchange the GPUs of two clusters of a layer while the sum of the slowest pairs falls."""
    layers, gpus = name.shape
    slow = np.empty(layers - 1)
    for l in range(layers - 1):
        slow[l] = _slowest(tokens[l], weight, name[l], name[l + 1])
    gained = True
    while gained:
        gained = False
        for l in range(layers):
            for a in range(gpus):
                for b in range(a):
                    name[l, a], name[l, b] = name[l, b], name[l, a]
                    left = _slowest(tokens[l - 1], weight, name[l - 1], name[l]) if l > 0 else 0.0
                    right = (
                        _slowest(tokens[l], weight, name[l], name[l + 1]) if l + 1 < layers else 0.0
                    )
                    before = (slow[l - 1] if l > 0 else 0.0) + (slow[l] if l + 1 < layers else 0.0)
                    if left + right < before * (1 - 1e-12):
                        gained = True
                        if l > 0:
                            slow[l - 1] = left
                        if l + 1 < layers:
                            slow[l] = right
                    else:
                        name[l, a], name[l, b] = name[l, b], name[l, a]
    return slow.sum()


def moetuner_plan(data: AffinityData, *, seed: int = 0) -> IntArray:
    """Return the two-stage plan, shape (L, E); ``max_load`` is not looked at, it is even anyway."""
    rng = np.random.default_rng(seed)
    cluster = np.stack([_clusters(load, data, rng) for load in data.load])
    tokens: FloatArray = np.zeros((data.layers - 1, data.gpus, data.gpus))
    for l, flow in enumerate(data.flow):
        np.add.at(tokens[l], (cluster[l][:, None], cluster[l + 1]), flow)
    best: tuple[float, IntArray] | None = None
    for _ in range(_STARTS):
        name = np.stack([rng.permutation(data.gpus) for _ in range(data.layers)])
        value = float(_assign(tokens, data.weight, name))
        if best is None or value < best[0]:
            best = value, name
    assert best is not None
    return np.take_along_axis(best[1], cluster, axis=1)


def _clusters(load: FloatArray, data: AffinityData, rng: np.random.Generator) -> IntArray:
    found: list[tuple[float, list[int]]] = []
    for _ in range(_STARTS):
        row = rng.permutation(np.repeat(np.arange(data.gpus), data.size))
        found.append((float(_even(load, row, data.gpus)), row.tolist()))
    return np.array(min(found)[1], dtype=np.int64)
