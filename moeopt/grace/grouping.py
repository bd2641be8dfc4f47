"""Step 1, grouping: which GPU has the first copy of each expert. Every strategy by its name."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from moeopt.balance.data import balance_data
from moeopt.balance.eplb import published_plan
from moeopt.balance.layer import Effort as BalanceEffort
from moeopt.balance.solve import find_plan
from moeopt.errors import InputError
from moeopt.grace.connectivity import Effort, anneal_layer, into_nodes
from moeopt.grace.data import BoolArray, IntArray, Nodes, Profile
from moeopt.grace.grouping_published import RATIO, grouped
from moeopt.heuristics import anneal

#: The largest load of `affinity-balanced`, over that of `balance`.
BALANCE_SLACK = 1.1
#: Proposals of the annealing for makespans, for a layer.
_PLACEMENT_STEPS = 20_000
_BALANCE = BalanceEffort(rounds=6, steps=20_000)


def contiguous(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Expert e on GPU ``e·G // E``."""
    row = np.arange(profile.experts) * nodes.gpus // profile.experts
    return np.tile(row, (profile.layers, 1))


def random(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Equal numbers on every GPU, in a random order."""
    return np.random.default_rng(seed).permuted(contiguous(profile, nodes, seed), axis=1)


def load_balanced(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Equal numbers, heaviest first to the lightest GPU (DeepSeek EPLB's packing, no replicas)."""
    plan = published_plan(profile.load, profile.experts, 1, 1, nodes.gpus).slots
    gpu = np.zeros_like(plan)
    row = contiguous(profile, nodes, seed)
    np.put_along_axis(gpu, plan, row, axis=1)
    return gpu


def grace(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Published: nodes of any size, groups within 15 % (at least 1) of the mean of their node."""
    return grouped(profile, nodes, seed)


def grace_uniform(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Published with equal sizes: spectral clusters, cut and filled."""
    return grouped(profile, nodes, seed, ratio=0.0, node_ratio=0.0)


def grace_free(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Published, fully non-uniform: sizes are what the affinity makes them."""
    return grouped(profile, nodes, seed, ratio=math.inf)


def grace_improved(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Ours: the published groups, experts exchanged for fewer transmissions; no load rises.

    Sizes stay, and no exchange lifts the load of a GPU above the largest of the published groups.
    """
    return _annealed(profile, nodes, seed, grace(profile, nodes, seed), 1.0)


def placement(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Ours: annealing of the expected largest number of experts of a token on one GPU."""
    slots = -(-profile.experts // nodes.gpus)
    start = _hosts(contiguous(profile, nodes, seed)[0], nodes)
    rows = []
    for l, scenarios in enumerate(profile.scenarios):
        hosts, _ = anneal.anneal_layer(
            scenarios, start, slots, replicas=False, seed=seed, iterations=_PLACEMENT_STEPS
        )
        rows.append(into_nodes(profile, l, hosts.argmax(axis=1), nodes))
    return np.stack(rows)


def balance(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Ours: the least largest load, equal numbers; then groups used together on one node."""
    sizes = np.bincount(contiguous(profile, nodes, seed)[0], minlength=nodes.gpus)
    data = balance_data(profile.load, gpus=nodes.gpus, slots=sizes)
    plan = find_plan(data, BalanceEffort(_BALANCE.rounds, _BALANCE.steps, seed=seed))
    gpu = np.zeros_like(plan)
    np.put_along_axis(gpu, plan, data.gpu_of_slot[None], axis=1)
    # Renaming moves sizes as well: only where all are equal may they be renamed.
    if len(set(sizes.tolist())) > 1:
        return gpu
    return np.stack([into_nodes(profile, l, row, nodes) for l, row in enumerate(gpu)])


def affinity(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Ours: annealing of the expected transmissions, equal numbers, any loads."""
    return _annealed(profile, nodes, seed, balance(profile, nodes, seed), math.inf)


def affinity_balanced(profile: Profile, nodes: Nodes, seed: int) -> IntArray:
    """Ours: the same, no load more than 10 % above the largest of ``balance``."""
    start = balance(profile, nodes, seed)
    return _annealed(profile, nodes, seed, start, BALANCE_SLACK)


def _annealed(profile: Profile, nodes: Nodes, seed: int, start: IntArray, slack: float) -> IntArray:
    """Anneal every layer; no load above ``slack`` times the largest of the start."""
    rows = []
    for l in range(profile.layers):
        largest = float(np.bincount(start[l], profile.load[l], minlength=nodes.gpus).max())
        rows.append(anneal_layer(profile, l, start[l], nodes, slack * largest, Effort(), seed))
    return np.stack(rows)


def _hosts(gpu: IntArray, nodes: Nodes) -> BoolArray:
    return gpu[:, None] == np.arange(nodes.gpus)


GROUPINGS: dict[str, Callable[[Profile, Nodes, int], IntArray]] = {
    "grace": grace,
    "grace-uniform": grace_uniform,
    "grace-free": grace_free,
    "grace-improved": grace_improved,
    "contiguous": contiguous,
    "random": random,
    "load-balanced": load_balanced,
    "placement": placement,
    "balance": balance,
    "affinity": affinity,
    "affinity-balanced": affinity_balanced,
}


def group(
    name: str,
    profile: Profile,
    nodes: Nodes,
    seed: int,
    *,
    ratio: float | None = None,
    node_ratio: float | None = None,
) -> IntArray:
    """Group by the strategy of this name; GPU of each expert, shape (L, E).

    Parameters
    ----------
    ratio, node_ratio : float, optional
        Sizes of the groups of ``grace`` on GPUs and on nodes (:func:`.grouped`); no other strategy
        looks at them. Default: as published.

    Raises
    ------
    InputError
        No such strategy, or it does not take these numbers of experts and GPUs.
    """
    if name not in GROUPINGS:
        raise InputError(f"grouping {name!r} is unknown (known: {', '.join(GROUPINGS)})")
    if profile.experts < nodes.gpus:
        raise InputError(f"{profile.experts} experts are too few for {nodes.gpus} GPUs")
    if name == "grace":
        return grouped(
            profile,
            nodes,
            seed,
            RATIO if ratio is None else ratio,
            math.inf if node_ratio is None else node_ratio,
        )
    return GROUPINGS[name](profile, nodes, seed)
