"""Dispatch rules of serving systems, as tokens of each GPU: what a placement really gets.

A rule turns the counts of one batch on one layer into an array (E, G) of tokens.

- ``even``: the replicas of an expert share its tokens evenly, in whole tokens; those left over go
  to its first replicas, turned by the expert's number, so that they do not gather on low GPUs.
- ``round-robin``: token by token in turn, from a random replica on (seeded).
- ``nearest``: every source GPU sends all its tokens for an expert to one replica: on its own GPU,
  else the first on its own node if not all replicas are there, else a fair choice: the source GPUs
  left are dealt out evenly over all replicas, in random order (seeded). SGLang's rule where
  experts are reached by all-to-all communication.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.problem import IntArray, LayerTime

BoolArray = npt.NDArray[np.bool_]


def even(hosts: BoolArray, counts: IntArray, nodes: IntArray, seed: int) -> IntArray:
    """Tokens (E, G) under an even split; counts by source are added up."""
    return _dealt(hosts, _total(counts), np.arange(len(hosts)))


def round_robin(hosts: BoolArray, counts: IntArray, nodes: IntArray, seed: int) -> IntArray:
    """Tokens (E, G) dealt in turn from a random replica on; counts by source are added up."""
    begin = np.random.default_rng(seed).integers(2**31, size=len(hosts))
    return _dealt(hosts, _total(counts), begin)


def nearest(hosts: BoolArray, counts: IntArray, nodes: IntArray, seed: int) -> IntArray:
    """Tokens (E, G) to the nearest replica; ``counts`` has shape (G, E), by source GPU.

    Raises
    ------
    InputError
        Counts are not by source GPU.
    """
    gpus = hosts.shape[1]
    if counts.ndim != 2 or len(counts) != gpus:
        raise InputError(f"rule nearest: counts of each of the {gpus} source GPUs are needed")
    _require_hosts(hosts, counts.sum(axis=0))
    random = np.random.default_rng(seed)
    tokens = np.zeros(hosts.shape, dtype=np.int64)
    for e in np.flatnonzero(counts.any(axis=0)).tolist():
        np.add.at(tokens[e], _chosen(np.flatnonzero(hosts[e]), nodes, random), counts[:, e])
    return tokens


def _chosen(held: IntArray, nodes: IntArray, random: np.random.Generator) -> IntArray:
    """The replica's GPU that each source GPU sends to, shape (G,)."""
    chosen = np.full(len(nodes), -1, dtype=np.int64)
    chosen[held] = held
    for node in np.unique(nodes[held]).tolist():
        near = held[nodes[held] == node]
        if len(near) < len(held):
            chosen[(nodes == node) & (chosen < 0)] = near[0]
    left = np.flatnonzero(chosen < 0)
    rounds, over = divmod(len(left), len(held))
    dealt = np.concatenate([np.tile(held, rounds), random.choice(held, over, replace=False)])
    chosen[left] = random.permutation(dealt)
    return chosen


def _require_hosts(hosts: BoolArray, counts: IntArray) -> None:
    if nowhere := np.flatnonzero((counts > 0) & ~hosts.any(axis=1)).tolist():
        raise InputError(f"no GPU hosts expert {nowhere[0]}, which has tokens")


def _total(counts: IntArray) -> IntArray:
    return counts if counts.ndim == 1 else counts.sum(axis=0)


def _dealt(hosts: BoolArray, counts: IntArray, turn: IntArray) -> IntArray:
    """Whole tokens dealt over each expert's replicas, from replica ``turn`` mod copies on."""
    _require_hosts(hosts, counts)
    copies = np.maximum(hosts.sum(axis=1), 1)
    place = np.cumsum(hosts, axis=1) - 1
    each, over = np.divmod(counts, copies)
    late = (place - turn[:, None]) % copies[:, None]
    return np.where(hosts, each[:, None] + (late < over[:, None]), 0)


#: (hosts (E, G), counts (E,) or by source (G, E), node of each GPU (G,), seed) -> tokens (E, G).
RULES: dict[str, Callable[[BoolArray, IntArray, IntArray, int], IntArray]] = {
    "even": even,
    "nearest": nearest,
    "round-robin": round_robin,
}


def rule_time(tokens: IntArray, layer_time: LayerTime) -> float:
    """``max_g f(A_g, N_g)`` of tokens (E, G)."""
    return float(layer_time.of((tokens > 0).sum(axis=0), tokens.sum(axis=0)).max())


def balancedness(tokens: IntArray) -> float:
    """Mean tokens of a GPU over the largest; 1 without tokens."""
    loads = tokens.sum(axis=0)
    return float(loads.mean() / loads.max()) if loads.max() > 0 else 1.0


def spread_evenly(counts: IntArray, gpus: int) -> IntArray:
    """Counts (E,) as if every source GPU sent equally many: (G, E), whole, the rest in turn."""
    each, over = np.divmod(counts, gpus)
    turn = np.cumsum(over) - over
    late = (np.arange(gpus)[:, None] - turn) % gpus
    return each + (late < over)
