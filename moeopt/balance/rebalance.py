"""A drop-in for the published load balancer: its signature, its answers, better plans."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from moeopt.balance.data import BalanceData, FloatArray, IntArray, balance_data
from moeopt.balance.eplb import PublishedPlan, published_plan
from moeopt.balance.even import find_layer, mean_largest
from moeopt.balance.layer import FAST, Effort
from moeopt.errors import InputError

#: Between `FAST` and a search for a plan that is kept.
NORMAL = Effort(rounds=8, steps=30_000, tolerance=1e-3)


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    *,
    fast: bool = False,
    effort: Effort | None = None,
) -> tuple[Any, Any, Any]:
    """Place replicated experts; the signature of DeepSeek's ``eplb.rebalance_experts``.

    Parameters
    ----------
    weight : array_like or torch tensor, shape (L, E)
        Tokens of each expert.
    num_replicas : int
        Slots of a layer, P; a multiple of ``num_gpus``.
    num_groups : int
        Groups of consecutive experts, kept on one node each; if they cannot be divided among the
        nodes, groups and nodes are ignored.
    num_nodes, num_gpus : int
    fast : bool
        At most 10 ms for a layer of 256 experts and 288 slots.
    effort : Effort, optional
        Instead of ``fast``: how long to search.

    Returns
    -------
    phy2log : int array, shape (L, P)
        Expert of each slot; slots lie GPU by GPU.
    log2phy : int array, shape (L, E, X)
        Slots of each expert, -1 behind the last; X is the largest count.
    logcnt : int array, shape (L, E)
        Replicas of each expert.

    All are torch tensors if ``weight`` is one.

    Raises
    ------
    InputError
        The numbers do not divide each other, or the weights are not finite numbers from 0.

    Notes
    -----
    No layer's largest load is above that of the published heuristic, in double precision. No GPU
    holds an expert twice, unless the published plan does so and is better, or there are more slots
    on a GPU than experts that may be there.
    """
    loads = _as_array(weight)
    published = published_plan(loads, num_replicas, num_groups, num_nodes, num_gpus)
    plan = _better(loads, num_replicas, num_groups, num_nodes, num_gpus, published, fast, effort)
    answer = (plan, *logical_maps(plan, loads.shape[1]))
    if _is_tensor(weight):
        torch = sys.modules["torch"]
        return tuple(torch.from_numpy(part) for part in answer)
    return answer


def logical_maps(plan: IntArray, experts: int) -> tuple[IntArray, IntArray]:
    """Return slots of each expert, shape (L, E, X), -1 padded, and replica counts, (L, E)."""
    layers, replicas = plan.shape
    count = np.stack([np.bincount(row, minlength=experts) for row in plan])
    slots = np.full((layers, experts, int(count.max())), -1, dtype=np.int64)
    order = np.argsort(plan, axis=1, kind="stable")
    begin = np.cumsum(count, axis=1) - count
    for l, row in enumerate(order):
        e = plan[l, row]
        slots[l, e, np.arange(replicas) - begin[l, e]] = row
    return slots, count.astype(np.int64)


def _better(
    loads: FloatArray,
    replicas: int,
    groups: int,
    nodes: int,
    gpus: int,
    published: PublishedPlan,
    fast: bool,
    effort: Effort | None,
) -> IntArray:
    """Of the published plan and ours, the better one of each layer."""
    if groups % nodes:
        groups = nodes = 1
    parts = nodes if groups > 1 else 1
    if replicas // gpus > loads.shape[1] // parts:
        return published.slots  # some GPU must hold an expert twice
    data = balance_data(loads, gpus=gpus, replicas=replicas, nodes=nodes, groups=groups)
    effort = effort or (FAST if fast else NORMAL)
    return np.stack([_layer(data, l, published.slots[l], effort) for l in range(data.layers)])


def _layer(data: BalanceData, l: int, published: IntArray, effort: Effort) -> IntArray:
    plan = find_layer(data, l, effort)
    ours, theirs = mean_largest(data, l, plan), mean_largest(data, l, published)
    return published if theirs < ours else plan


def _is_tensor(weight: Any) -> bool:
    return type(weight).__module__.partition(".")[0] == "torch"


def _as_array(weight: Any) -> FloatArray:
    if _is_tensor(weight):
        weight = weight.detach().cpu().double().numpy()
    loads = np.asarray(weight, dtype=np.float64)
    if loads.ndim != 2 or loads.size == 0:
        raise InputError("weight: an array of shape (layers, experts) is needed")
    if not np.isfinite(loads).all() or (loads < 0).any():
        raise InputError("weight: finite numbers, not below 0, are needed")
    return loads
