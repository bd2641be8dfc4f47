"""Lower bounds: traffic and loads that no plan, or no routing on a plan, undercuts.

All are counted in whole pairs of the measured batches themselves, with hindsight: the proofs are in
docs/grace.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from moeopt.grace.data import Batches, IntArray, Nodes, Plan
from moeopt.grace.routing_flow import least_largest


@dataclass(frozen=True)
class PairBounds:
    """Pairs that no plan with as many copies of each layer avoids, under any routing.

    ``remote``: computed on another node than the token's home; ``off_gpu``: on another GPU.
    """

    remote: int
    off_gpu: int


def pair_counts(batches: Batches, place_of_gpu: IntArray, experts: int) -> IntArray:
    """Pairs of each place where tokens live, layer and expert, shape (places, L, E)."""
    layers = batches.ids.shape[2]
    places = int(place_of_gpu.max()) + 1
    count = np.zeros((places, layers, experts), dtype=np.int64)
    _count_pairs(batches.ids, place_of_gpu[batches.home], count)
    return count


@njit(cache=True, nogil=True)
def _count_pairs(ids: Any, place: Any, count: Any) -> None:
    batches, tokens, layers, top_k = ids.shape
    for b in range(batches):
        for t in range(tokens):
            for l in range(layers):
                for i in range(top_k):
                    count[place[t], l, ids[b, t, l, i]] += 1


def least_away(count: IntArray, extra: int) -> int:
    """Pairs of a layer computed away from their token's place, at least.

    Every expert has a copy at one place, at most ``extra`` copies are added. A pair is at home
    where its place has a copy, so at most the largest count of each expert, and the ``extra``
    largest others, are.

    Parameters
    ----------
    count : int array, shape (places, E)
    extra : int
        Copies beyond one of each expert.
    """
    ranked = np.sort(count, axis=0)[::-1]
    others = np.sort(ranked[1:], axis=None)[::-1]
    return int(count.sum() - ranked[0].sum() - others[:extra].sum())


def pair_bounds(nodes: Nodes, batches: Batches, experts: int, extra: IntArray) -> PairBounds:
    """Bound the traffic in pairs of all layers; ``extra`` copies of each layer, shape (L,)."""
    totals = []
    for place in (nodes.node_of, np.arange(nodes.gpus)):
        count = pair_counts(batches, place, experts)
        totals.append(sum(least_away(count[:, l], int(extra[l])) for l in range(len(extra))))
    return PairBounds(*totals)


def least_node_sends(plan: Plan, batches: Batches) -> int:
    """Copies to other nodes that no routing on this plan avoids.

    A token is sent at least once if its node lacks one of its experts. With two nodes that is also
    enough, and the routing ``nearest`` attains it.
    """
    shape = (*plan.hosts.shape[:2], plan.nodes.count, plan.nodes.gpus_per_node)
    on_node = np.asarray(plan.hosts.reshape(shape).any(axis=3), dtype=bool)
    return int(_count_sent(batches.ids, plan.nodes.node_of[batches.home], on_node))


@njit(cache=True, nogil=True)
def _count_sent(ids: Any, node: Any, on_node: Any) -> int:
    """Tokens and layers with an expert that their node lacks."""
    batches, tokens, layers, top_k = ids.shape
    sent = 0
    for b in range(batches):
        for t in range(tokens):
            for l in range(layers):
                for i in range(top_k):
                    if not on_node[l, ids[b, t, l, i], node[t]]:
                        sent += 1
                        break
    return sent


def least_imbalance(plan: Plan, batches: Batches) -> float:
    """Mean over batches and layers of the largest load over the mean, below which no routing is."""
    mean = batches.ids.shape[1] * batches.ids.shape[3] / plan.nodes.gpus
    return float((least_largest(plan, batches) / mean).mean())
