"""Plans of ``balance`` as hosts, and back: experts on GPUs instead of experts in slots."""

from __future__ import annotations

import numpy as np

from moeopt.balance.data import BoolArray, IntArray


def hosts_of(plan: IntArray, slots: IntArray, experts: int) -> BoolArray:
    """Return which GPU holds which expert, shape (L, E, G).

    Parameters
    ----------
    plan : int array, shape (L, P)
        Expert in every slot, -1 for an empty one.
    slots : int array, shape (G,)
    experts : int
    """
    gpu = np.repeat(np.arange(len(slots)), slots)
    hosts = np.zeros((len(plan), experts, len(slots)), dtype=bool)
    l, p = np.nonzero(plan >= 0)
    hosts[l, plan[l, p], gpu[p]] = True
    return hosts


def plan_of(hosts: BoolArray, slots: IntArray) -> IntArray:
    """Return the expert in every slot, shape (L, P): ascending on each GPU, -1 where it is empty.

    Parameters
    ----------
    hosts : bool array, shape (L, E, G)
        No GPU holds more experts than it has slots.
    slots : int array, shape (G,)

    Raises
    ------
    ValueError
        A GPU holds more experts than it has slots.
    """
    first = np.concatenate([[0], np.cumsum(slots)])
    plan = np.full((len(hosts), int(first[-1])), -1, dtype=np.int64)
    for l, g in np.ndindex(len(hosts), len(slots)):
        held = np.flatnonzero(hosts[l, :, g])
        if len(held) > slots[g]:
            raise ValueError(f"layer {l}: {len(held)} experts in the {slots[g]} slots of GPU {g}")
        plan[l, first[g] : first[g] + len(held)] = held
    return plan
