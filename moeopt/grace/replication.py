"""Step 2, replication: copies beyond the first. Every strategy by its name.

All but ``none`` add as many copies to a layer as they are told; by default as many as the published
rule adds to the same grouping, so that strategies differ in what they copy, not in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeopt.balance.data import balance_data
from moeopt.balance.even import improve_layer
from moeopt.balance.greedy import greedy_counts
from moeopt.balance.hosts import hosts_of, plan_of
from moeopt.balance.layer import Effort
from moeopt.errors import InputError
from moeopt.grace.data import BoolArray, FloatArray, IntArray, Nodes, Plan, Profile, even_loads

#: Effort of the search for balance, for a layer.
_EFFORT = Effort(rounds=6, steps=20_000)


@dataclass(frozen=True)
class HotCopies:
    """The published rule on one layer.

    Attributes
    ----------
    heaviest : int
        GPU with the largest load.
    hot : int array
        Experts copied, most loaded first.
    targets : int array
        GPUs that get a copy of each, least loaded first.
    predicted : float array, shape (G,)
        Loads that the published prediction (equation 4) expects.
    """

    heaviest: int
    hot: IntArray
    targets: IntArray
    predicted: FloatArray


def hot_copies(
    gpu: IntArray, load: IntArray, gpus: int, *, load_of_copies: bool = False
) -> HotCopies:
    """Apply the published rule to a grouping (E,) of one layer.

    ``n = min(max(1, ⌊W_max / mean W⌋), G − 1)`` copies (equation 3) of the hot experts of the
    heaviest group: the most loaded ones, as few as have together more than ``W_max n / (n + 1)``.
    Predicted loads (equation 4): ``W_max − W_r + W_p`` there, ``W_i + W_p`` where copies are.

    Parameters
    ----------
    gpu, load : int arrays, shape (E,)
    load_of_copies : bool
        The paper writes ``W_p = W_max / (n + 1)``, and says that the load of the copied experts,
        ``W_r``, is split evenly, which is ``W_p = W_r / (n + 1)``. False: as it is written.

    Source: Han et al., arXiv 2509.25041, §4.2 and §4.3.
    """
    loads: FloatArray = np.bincount(gpu, load, minlength=gpus).astype(np.float64)
    heaviest = int(loads.argmax())
    largest, total = int(loads[heaviest]), int(load.sum())
    count = min(max(1, largest * gpus // max(total, 1)), gpus - 1)
    members = np.flatnonzero(gpu == heaviest)
    ranked = members[np.argsort(-load[members], kind="stable")]
    # In whole numbers: the sum times (n + 1) against W_max times n.
    enough = np.cumsum(load[ranked]) * (count + 1) > largest * count
    hot = ranked[: int(enough.argmax()) + 1] if count and enough.any() else ranked[:0]
    others = np.argsort(loads, kind="stable")
    targets = others[others != heaviest][:count] if len(hot) else others[:0]
    predicted = loads.copy()
    if len(hot):
        copied = int(load[hot].sum())
        piece = (copied if load_of_copies else largest) / (count + 1)
        predicted[heaviest] += piece - copied
        predicted[targets] += piece
    return HotCopies(heaviest, hot, targets, predicted)


def none(profile: Profile, nodes: Nodes, gpu: IntArray, extra: IntArray) -> BoolArray:
    """No copies."""
    return first_copies(gpu, nodes)


def grace(profile: Profile, nodes: Nodes, gpu: IntArray, extra: IntArray) -> BoolArray:
    """Published: hot experts of the heaviest group, on the least loaded GPUs."""
    hosts = first_copies(gpu, nodes)
    for l in range(profile.layers):
        found = hot_copies(gpu[l], profile.load[l], nodes.gpus)
        hosts[l][np.ix_(found.hot, found.targets)] = True
    return hosts


def counts(profile: Profile, nodes: Nodes, gpu: IntArray, extra: IntArray) -> BoolArray:
    """DeepSeek EPLB's counts: a copy where load over copies is largest.

    First copies stay; the others go, largest piece first, to the GPU with the least load so far.
    """
    hosts = first_copies(gpu, nodes)
    for l in range(profile.layers):
        load = profile.load[l].astype(np.float64)
        copies = greedy_counts(load, profile.experts + int(extra[l]), nodes.gpus)
        piece = load / copies
        loads = np.bincount(gpu[l], piece, minlength=nodes.gpus)
        for e in np.argsort(-piece, kind="stable").tolist():
            for _ in range(int(copies[e]) - 1):
                g = int(np.where(hosts[l, e], np.inf, loads).argmin())
                hosts[l, e, g] = True
                loads[g] += piece[e]
    return hosts


def balance(profile: Profile, nodes: Nodes, gpu: IntArray, extra: IntArray) -> BoolArray:
    """Ours: the search of the problem ``balance`` from ``counts``, in the same slots.

    The grouping counts as the plan in use: no more copies are on GPUs that did not hold them than
    are added, so an expert may leave its first GPU only to make room for one that stays on its.
    """
    hosts = counts(profile, nodes, gpu, extra)
    first = first_copies(gpu, nodes)
    for l in range(profile.layers):
        slots = hosts[l].sum(axis=0)
        data = balance_data(profile.load[l], gpus=nodes.gpus, slots=slots)
        begin = plan_of(hosts[l : l + 1], slots)[0]
        plan = improve_layer(data, 0, begin, _EFFORT, first[l], int(extra[l]))
        hosts[l] = hosts_of(plan[None], slots, profile.experts)[0]
    return hosts


def locality(profile: Profile, nodes: Nodes, gpu: IntArray, extra: IntArray) -> BoolArray:
    """Ours: a copy to the node where it brings most tokens nearer to having all experts there.

    A token that lacks m experts on a node counts ``1/m²`` for each of them: one copy that ends its
    transmissions is worth more than one of many that must come. Within the node the copy goes to
    the GPU with the least load. When every node has every expert, copies go where ``counts`` would
    put them.
    """
    hosts = first_copies(gpu, nodes)
    shape = (profile.experts, nodes.count, nodes.gpus_per_node)
    for l in range(profile.layers):
        sets, weight, load = profile.sets[l], profile.weight[l], profile.load[l]
        on_node = hosts[l].reshape(shape).any(axis=2)
        for _ in range(int(extra[l])):
            loads = even_loads(hosts[l], load)
            if on_node.all():
                piece = np.where(hosts[l].all(axis=1), -1.0, load / hosts[l].sum(axis=1))
                e = int(piece.argmax())
                open_gpus = ~hosts[l, e]
            else:
                missing = ~on_node[sets]
                lacking = np.maximum(missing.sum(axis=1), 1)
                credit = missing * (weight[:, None] / lacking**2)[:, None]
                gain = np.zeros((profile.experts, nodes.count))
                for n in range(nodes.count):
                    gain[:, n] = np.bincount(
                        sets.ravel(), credit[:, :, n].ravel(), minlength=profile.experts
                    )
                gain[on_node] = -1.0
                e, n = divmod(int(gain.argmax()), nodes.count)
                on_node[e, n] = True
                open_gpus = (nodes.node_of == n) & ~hosts[l, e]
            g = int(np.where(open_gpus, loads, np.inf).argmin())
            hosts[l, e, g] = True
    return hosts


REPLICATIONS: dict[str, Callable[[Profile, Nodes, IntArray, IntArray], BoolArray]] = {
    "none": none,
    "grace": grace,
    "counts": counts,
    "balance": balance,
    "locality": locality,
}


def first_copies(gpu: IntArray, nodes: Nodes) -> BoolArray:
    """Hosts (L, E, G) of a grouping (L, E)."""
    return gpu[:, :, None] == np.arange(nodes.gpus)


def replicate(
    name: str,
    profile: Profile,
    nodes: Nodes,
    gpu: IntArray,
    *,
    extra: int | None = None,
    load_of_copies: bool = False,
) -> Plan:
    """Replicate by the strategy of this name.

    Parameters
    ----------
    gpu : int array, shape (L, E)
        The grouping.
    extra : int, optional
        Copies added to each layer; default: as many as the published rule adds to it. ``none`` and
        ``grace`` do not look at it.
    load_of_copies : bool
        See :func:`hot_copies`; for ``grace`` only, the loads of the others are those of even split.

    Raises
    ------
    InputError
        No such strategy, or more copies than GPUs hold.
    """
    if name not in REPLICATIONS:
        raise InputError(f"replication {name!r} is unknown (known: {', '.join(REPLICATIONS)})")
    if extra is not None and not 0 <= extra <= profile.experts * (nodes.gpus - 1):
        raise InputError(
            f"extra copies: between 0 and {profile.experts * (nodes.gpus - 1)}, not {extra}"
        )
    rules = [
        hot_copies(gpu[l], profile.load[l], nodes.gpus, load_of_copies=load_of_copies)
        for l in range(profile.layers)
    ]
    published = np.array([len(rule.hot) * len(rule.targets) for rule in rules])
    added = published if extra is None else np.full(profile.layers, extra)
    hosts = REPLICATIONS[name](profile, nodes, gpu, added)
    predicted = even_loads(hosts, profile.load)
    if name == "grace":
        predicted = np.stack([rule.predicted for rule in rules])
    held = np.take_along_axis(hosts, gpu[:, :, None], axis=2)[:, :, 0]
    return Plan(nodes, hosts, np.where(held, gpu, hosts.argmax(axis=2)), predicted)
