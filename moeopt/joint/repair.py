"""From layer plans to one plan: whose GPU is whose, where requests go, and whether all fits.

GPU labels of each layer are free. Taking the layers one by one and giving the GPU with the most
memory left the most replicas keeps the GPUs' memory as level as the layers' own counts allow.
Requests go one by one, largest cache first, to the GPU with the least cache of those with room;
then GPUs exchange requests as long as the largest cache shrinks, and two at a time share theirs
anew. Where they do not fit one by one, the GPUs are overfilled and exchange requests until none is,
if all together fit.
"""

from __future__ import annotations

import numpy as np

from moeopt.joint.memory import Memory
from moeopt.joint.whole_requests import level_caches
from moeopt.problem import IntArray

#: Most exchanges of requests between GPUs.
_EXCHANGES = 400
#: Classes up to which several requests are exchanged at once.
_FEW_CLASSES = 24

_MOST = np.iinfo(np.int64).max // 4


def label_gpus(hosts: list[np.ndarray], free_mib: np.ndarray, expert_mib: float) -> list[IntArray]:
    """Choose which GPU takes the part of which GPU of each layer's plan.

    Parameters
    ----------
    hosts : list of bool arrays, shape (E, G)
        One a layer.
    free_mib : float array, shape (G,)

    Returns
    -------
    list of int arrays, shape (G,)
        ``labels[l][g]``: the GPU that takes what the plan of layer l calls GPU g.
    """
    left = free_mib.astype(np.float64).copy()
    counts = [layer.sum(axis=0) for layer in hosts]
    labels: list[IntArray] = [np.arange(len(left)) for _ in hosts]
    # The layers that differ most from GPU to GPU first: the others level what they leave.
    for l in sorted(range(len(hosts)), key=lambda l: (-int(np.ptp(counts[l])), l)):
        fullest_first = np.argsort(-counts[l], kind="stable")
        most_left_first = np.argsort(-left, kind="stable")
        labels[l][fullest_first] = most_left_first
        left[most_left_first] -= expert_mib * counts[l][fullest_first]
    return labels


def place_requests(counts: IntArray, left: IntArray, memory: Memory) -> IntArray | None:
    """Place one wave's requests.

    Parameters
    ----------
    counts : int array, shape (C,)
    left : int array, shape (G,)
        Bytes that the experts leave.

    Returns
    -------
    int array, shape (C, G), or None
        None if they do not fit this way.
    """
    if (left < 0).any():
        return None
    return _place(counts, left, memory.kv, level=True)


def _place(counts: IntArray, left: IntArray, kv: IntArray, *, level: bool) -> IntArray | None:
    z = np.zeros((len(counts), len(left)), dtype=np.int64)
    room, used = left.copy(), np.zeros(len(left), dtype=np.int64)
    for c in np.argsort(-kv, kind="stable").tolist():
        for _ in range(int(counts[c])):
            # Level caches shorten attention; the most room left fails last.
            g = int(np.where(room >= kv[c], used, _MOST).argmin())
            if not level:
                g = int(room.argmax())
            if level and room[g] < kv[c]:
                return _place(counts, left, kv, level=False)
            z[c, g] += 1
            room[g] -= kv[c]
            used[g] += kv[c]
    if (room < 0).any():
        if room.sum() < 0:
            return None
        # As if all GPUs had the same room: the largest excess shrinks until there is none.
        _exchange(z, np.full_like(room, _MOST), -room, kv, 0)
        room = left - kv @ z
        used = kv @ z
        if (room < 0).any():
            return None
    _exchange(z, room, used, kv, -1)
    level_caches(z, left, kv)
    return z


def _exchange(z: IntArray, room: IntArray, used: IntArray, kv: IntArray, enough: int) -> None:
    """Exchange requests of the GPU with the largest ``used`` for smaller ones, or none; in place.

    Up to two of one class go, up to three of another come back; of many classes one and one. Ends
    when the largest is at most ``enough``.
    """
    few = len(kv) <= _FEW_CLASSES
    gone = [(i, c) for i in ((1, 2) if few else (1,)) for c in range(len(kv))]
    back = [(0, 0)] + [(j, d) for j in ((1, 2, 3) if few else (1,)) for d in range(len(kv))]
    (give, from_class), (take, of_class) = np.array(gone).T, np.array(back).T
    change = (give * kv[from_class])[:, None] - (take * kv[of_class])[None, :]
    for _ in range(_EXCHANGES):
        g = int(used.argmax())
        best, at = int(used[g]), (-1, -1, -1)
        if best <= enough:
            return
        for h in np.flatnonzero(used < used[g]).tolist():
            allowed = (z[from_class, g] >= give)[:, None] & (z[of_class, h] >= take)[None, :]
            allowed &= (change > 0) & (change <= room[h])
            after = np.maximum(used[g] - change, used[h] + change)
            after = np.where(allowed, after, _MOST)
            i, j = divmod(int(after.argmin()), len(back))
            if after[i, j] < best:
                best, at = int(after[i, j]), (h, i, j)
        h, i, j = at
        if h < 0:
            return
        for gpu, sign in ((g, -1), (h, 1)):
            z[from_class[i], gpu] += sign * give[i]
            z[of_class[j], gpu] -= sign * take[j]
            used[gpu] += sign * change[i, j]
            room[gpu] -= sign * change[i, j]
