"""Hosts that suit every wave: where memory is left, a wave gets replicas for a split of its own.

If only activated replicas are charged, hosts that a wave does not use cost it nothing but memory.
So the best plan of each wave alone, its GPUs matched with those of the hosts that are there already
so that few replicas are new, is added to them: the largest gain for a replica first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from moeopt.joint.cost import Cost
from moeopt.joint.layer_plan import LayerPlan
from moeopt.joint.wave_dispatch import dispatch_wave
from moeopt.problem import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]


def add_hosts(
    cost: Cost,
    tokens: FloatArray,
    steps: IntArray,
    base: list[BoolArray],
    shares: FloatArray,
    own: Callable[[int, int], LayerPlan | None],
    *,
    replicas: int,
    slots: int,
) -> tuple[list[BoolArray], FloatArray]:
    """Add hosts to the layers, and splits of the waves that use them.

    Parameters
    ----------
    tokens : float array, shape (W, L, E)
    steps : int array, shape (W,)
    base : list of bool arrays, shape (E, G)
        Hosts of each layer so far.
    shares : float array, shape (W, L, E, G)
        How waves split their tokens over them.
    own : callable
        Plan of (wave, layer) alone.
    replicas : int
        Most hosts to add, in all layers.
    slots : int
        Most experts of a layer on a GPU.

    Returns
    -------
    hosts, shares
        New ones.
    """
    hosts, shares = [layer.copy() for layer in base], shares.copy()
    offers = []
    for w in np.flatnonzero(steps).tolist():
        for l, layer in enumerate(base):
            plan = own(w, l)
            if plan is None:
                continue
            now, _ = dispatch_wave(cost, tokens[w, l], layer, shares[w, l], False)
            gain = float(steps[w]) * (now - plan.time)
            if gain > 1e-9 * float(steps[w]) * now:
                new = int((plan.hosts & ~layer[:, _matched(plan.hosts, layer)]).sum())
                offers.append((gain / max(new, 0.5), w, l, plan))
    for _, w, l, plan in sorted(offers, key=lambda offer: -offer[0]):
        place = _matched(plan.hosts, hosts[l])
        together = hosts[l].copy()
        together[:, place] |= plan.hosts
        new = int(together.sum() - hosts[l].sum())
        if new > replicas or int(together.sum(axis=0).max()) > slots:
            continue
        replicas -= new
        hosts[l] = together
        shares[w, l] = 0.0
        shares[w, l][:, place] = plan.share
    return hosts, shares


def _matched(plan: BoolArray, hosts: BoolArray) -> IntArray:
    """GPU of the hosts that takes the part of each GPU of the plan, most replicas in common."""
    common = plan.astype(np.int64).T @ hosts.astype(np.int64)
    place: IntArray = linear_sum_assignment(common, maximize=True)[1]
    return place
