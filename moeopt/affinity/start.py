"""Plans to start from: loads even enough, whatever the affinity."""

from __future__ import annotations

import numpy as np

from moeopt.affinity.data import AffinityData, FloatArray, IntArray, contiguous


def start_plan(data: AffinityData) -> IntArray | None:
    """Return a plan within the largest load, shape (L, E); None if none was found.

    The contiguous layer where it is even enough; else heaviest expert first to the least loaded GPU
    with a free slot, then exchanges that lower the largest load.
    """
    place = contiguous(data)
    for l, most in enumerate(data.most_load.tolist()):
        loads = np.bincount(place[l], weights=data.load[l], minlength=data.gpus)
        if loads.max() > most:
            row = even_row(data.load[l], data.gpus, data.size, most)
            if row is None:
                return None
            place[l] = row
    return place


def even_row(load: FloatArray, gpus: int, size: int, most: float) -> IntArray | None:
    """Divide experts into GPUs of ``size`` with loads of at most ``most``; None if not found."""
    row = np.full(len(load), -1, dtype=np.int64)
    loads, held = np.zeros(gpus), np.zeros(gpus, dtype=np.int64)
    for e in np.argsort(-load, kind="stable").tolist():
        g = int(np.where(held < size, loads, np.inf).argmin())
        row[e], loads[g], held[g] = g, loads[g] + load[e], held[g] + 1
    while loads.max() > most:
        g = int(loads.argmax())
        mine, others = np.flatnonzero(row == g), np.flatnonzero(row != g)
        less = load[mine][:, None] - load[others]  # what g loses by each exchange
        after = np.maximum(loads[g] - less, loads[row[others]] + less)
        i, j = np.unravel_index(int(after.argmin()), after.shape)
        if after[i, j] >= loads[g]:
            return None
        e, f = mine[i], others[j]
        loads[g], loads[row[f]] = loads[g] - less[i, j], loads[row[f]] + less[i, j]
        row[e], row[f] = row[f], g
    return row
