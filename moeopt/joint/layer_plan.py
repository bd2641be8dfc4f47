"""Plans of one layer for each number of additional replicas, from its bound and a local search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.joint.cost import Cost
from moeopt.joint.layer_bound import Groups
from moeopt.joint.layer_search import search
from moeopt.problem import FloatArray, IntArray

#: Relative distance to the bound at which the search for a layer ends.
CLOSE = 1e-4


@dataclass(frozen=True)
class LayerPlan:
    """Hosts of one layer and how they share the tokens.

    Attributes
    ----------
    time : float
        Layer time of these tokens (charged as the search was told).
    share : float array, shape (E, G)
        Tokens of each replica; a host without tokens has none.
    hosts : bool array, shape (E, G)
    extra : int
        Replicas beyond one of each expert that was searched.
    """

    time: float
    share: FloatArray
    hosts: np.ndarray
    extra: int


def plan_layer(
    cost: Cost,
    tokens: FloatArray,
    gpus: int,
    extra: int,
    *,
    charged: IntArray,
    bound: float,
    groups: Groups | None,
    slots: int,
    kicks: int,
    seed: int,
) -> LayerPlan | None:
    """Search a plan with at most ``extra`` additional replicas; None if the slots are too few.

    Parameters
    ----------
    tokens : float array, shape (E,)
    charged : int array, shape (E,)
        Experts with tokens, and those without that are charged nevertheless, are searched; the
        others are left without a host.
    bound, groups
        Of :func:`moeopt.joint.layer_bound.layer_bound`: ``bound`` for ``extra``; groups for all.
    slots : int
        Most replicas on a GPU.
    """
    there = np.flatnonzero((tokens > 0) | (charged > 0))
    share = np.zeros((len(tokens), gpus))
    hosts = np.zeros((len(tokens), gpus), dtype=bool)
    w = np.ascontiguousarray(tokens[there], dtype=np.float64)
    if not len(there):
        return LayerPlan(0.0, share, hosts, 0)
    target = bound * (1.0 + CLOSE)
    time, y, x = np.inf, share[there], hosts[there]
    if groups is not None:
        time, y, x = _by_groups(cost, w, gpus, extra, groups, slots, kicks, seed, target)
    if time > target:
        other, other_y, other_x = search(cost, w, gpus, extra, slots, target, kicks, seed)
        if other < time:
            time, y, x = other, other_y, other_x
    if time == np.inf:
        return None
    share[there], hosts[there] = y, x
    return LayerPlan(float(time), share, hosts, int(x.sum()) - len(there))


def _by_groups(
    cost: Cost,
    w: FloatArray,
    gpus: int,
    extra: int,
    groups: Groups,
    slots: int,
    kicks: int,
    seed: int,
    target: float,
) -> tuple[float, FloatArray, np.ndarray]:
    """Plan each group of experts on GPUs of its own."""
    share = np.zeros((len(w), gpus))
    hosts = np.zeros((len(w), gpus), dtype=bool)
    first, slowest = 0, 0.0
    for j, size in enumerate(groups.size[extra].tolist()):
        members = np.flatnonzero(groups.group[extra] == j)
        if not size or not len(members):
            continue
        time, y, x = search(cost, w[members], size, size - 1, slots, target, kicks, seed)
        if time == np.inf:
            return np.inf, share, hosts
        slowest = max(slowest, float(time))
        share[members, first : first + size] = y
        hosts[members, first : first + size] = x
        first += size
    return slowest, share, hosts
