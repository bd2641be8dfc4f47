"""A plan in use made feasible with few changes: nobody twice on a GPU, nobody nowhere."""

from __future__ import annotations

import numpy as np

from moeopt.balance.data import FloatArray, IntArray


def repaired(plan: IntArray, experts: int, slots: IntArray, weight: FloatArray) -> IntArray:
    """Return a feasible plan in the same slots; a feasible plan is returned as it is.

    Second copies on a GPU and empty slots get other experts; experts that are nowhere take them
    first, then slots of those with most copies. The heaviest pieces are served first.

    Parameters
    ----------
    plan : int array, shape (P,)
        -1 for an empty slot.
    experts : int
    slots : int array, shape (G,)
        None is above ``experts``.
    weight : float array, shape (E,)
    """
    plan = plan.copy()
    gpu = np.repeat(np.arange(len(slots)), slots)
    on = np.zeros((experts, len(slots)), dtype=bool)
    count = np.zeros(experts, dtype=np.int64)
    open_slots = []
    for p, (e, g) in enumerate(zip(plan.tolist(), gpu.tolist(), strict=True)):
        if e < 0 or on[e, g]:
            open_slots.append(p)
        else:
            on[e, g] = True
            count[e] += 1

    def put(p: int, e: int) -> None:
        plan[p] = e
        on[e, gpu[p]] = True
        count[e] += 1

    missing = sorted(np.flatnonzero(count == 0).tolist(), key=lambda e: -weight[e])
    for e in missing:
        if open_slots:
            put(open_slots.pop(), e)
            continue
        # Some expert has two replicas: there are at least as many slots as experts.
        p = int(np.argmax(count[plan]))
        on[plan[p], gpu[p]] = False
        count[plan[p]] -= 1
        put(p, e)
    for p in open_slots:
        free = np.flatnonzero(~on[:, gpu[p]])
        put(p, int(free[np.argmax(weight[free] / count[free])]))
    return plan
