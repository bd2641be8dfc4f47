"""Traffic and balance of a routing, counted token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from moeopt.errors import MoeoptError
from moeopt.grace.data import Batches, ByteArray, IntArray, Nodes, Plan
from moeopt.grace.routing import routing_problems


@dataclass(frozen=True)
class Traffic:
    """What was counted in B batches of T tokens and L layers.

    Attributes
    ----------
    token_layers : int
        Tokens times layers, ``B T L``.
    same_gpu, same_node, remote : int
        Pairs (token, expert) computed on the token's home, on another GPU of its node, elsewhere.
    node_sends : int
        Copies of tokens sent to another node: one for each node that computes any of its experts.
    gpu_sends : int
        Copies sent within a node, as hierarchical communication does: on the home node to each
        computing GPU but the home; on another node to each computing GPU but the one at the
        home's place, which received the token.
    load : int array, shape (B, L, G)
        Pairs that each GPU computes.
    """

    token_layers: int
    same_gpu: int
    same_node: int
    remote: int
    node_sends: int
    gpu_sends: int
    load: IntArray

    @property
    def imbalance(self) -> float:
        """Largest load over mean load, mean over batches and layers."""
        return float((self.load.max(axis=2) / self.load.mean(axis=2)).mean())

    @property
    def deviation(self) -> float:
        """Standard deviation of the loads over their mean, mean over batches and layers."""
        return float((self.load.std(axis=2) / self.load.mean(axis=2)).mean())

    def per_token(self, count: int) -> float:
        """A count for each token and layer."""
        return count / self.token_layers


@njit(cache=True, nogil=True)
def _count(served: Any, home: Any, per_node: int, nodes: int, load: Any, totals: Any) -> None:
    batches, tokens, layers, top_k = served.shape
    on_gpu = np.zeros(nodes * per_node, dtype=np.bool_)
    for b in range(batches):
        for t in range(tokens):
            h = home[t]
            for l in range(layers):
                on_gpu[:] = False
                for i in range(top_k):
                    g = served[b, t, l, i]
                    load[b, l, g] += 1
                    on_gpu[g] = True
                    tier = 0 if g == h else 1 if g // per_node == h // per_node else 2
                    totals[tier] += 1
                for n in range(nodes):
                    # The GPU of this node that has the token without a copy within the node.
                    at = n * per_node + h % per_node
                    computing, others = 0, 0
                    for g in range(n * per_node, (n + 1) * per_node):
                        computing += on_gpu[g]
                        others += on_gpu[g] and g != at
                    totals[4] += others
                    if computing > 0 and n != h // per_node:
                        totals[3] += 1


def count_traffic(nodes: Nodes, batches: Batches, served: ByteArray) -> Traffic:
    """Count the traffic and loads of a routing (B, T, L, k)."""
    b, t, l, _ = served.shape
    load = np.zeros((b, l, nodes.gpus), dtype=np.int64)
    totals = np.zeros(5, dtype=np.int64)
    _count(served, batches.home, nodes.gpus_per_node, nodes.count, load, totals)
    same_gpu, same_node, remote, node_sends, gpu_sends = totals.tolist()
    return Traffic(b * t * l, same_gpu, same_node, remote, node_sends, gpu_sends, load)


def measure(plan: Plan, batches: Batches, served: ByteArray) -> Traffic:
    """Check a routing, then count it.

    Raises
    ------
    MoeoptError
        A pair is computed where the expert is not: an error of moeopt.
    """
    if lines := routing_problems(plan, batches, served):
        raise MoeoptError(["the routing is not feasible: report this", *lines])
    return count_traffic(plan.nodes, batches, served)
