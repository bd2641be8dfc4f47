"""The published grouping: spectral clusters, sizes controlled, nodes first and then GPUs.

Source: Han et al., *GRACE-MoE*, arXiv 2509.25041, §4.1 and Algorithms 1 and 2.
"""

from __future__ import annotations

import math

import numpy as np

from moeopt.errors import InputError
from moeopt.grace.data import FloatArray, IntArray, Nodes, Profile
from moeopt.grace.spectral import spectral_clusters

#: Share by which the sizes of groups may differ from their mean, as in the paper.
RATIO = 0.15
#: Shares among which :func:`knee` chooses.
CANDIDATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)


def size_limits(experts: int, groups: int, ratio: float) -> tuple[int, int]:
    """Return the least and the largest size of a group (Algorithm 2).

    Around ``E = ⌊n / D⌋``, ``δ = max(1, round(E r))``; with ``r = 0`` sizes are as equal as can be,
    which Algorithm 2, with its ``δ ≥ 1``, cannot say. An infinite ``r`` leaves sizes free.
    """
    mean = experts // groups
    if ratio == 0:
        return mean, -(-experts // groups)
    if math.isinf(ratio):
        return 1, experts
    slack = max(1, round(mean * ratio))
    return max(1, mean - slack), mean + slack


def controlled_groups(
    affinity: FloatArray, groups: int, least: int, most: int, seed: int
) -> IntArray:
    """Divide experts into groups of a size between two limits (Algorithm 2).

    Spectral clusters that are too large keep the experts with the highest affinity to the others of
    the cluster; each of those left over goes to the group with room to which its affinity is
    highest; then groups that are too small get the experts whose affinity to their own group (of
    those that can spare one) is lowest. Affinity of an expert to a group is the sum over its
    members: by so much Algorithm 1's score grows (twice, in fact: it counts a pair both ways).

    Parameters
    ----------
    affinity : float array, shape (n, n)
        Zeros on the diagonal.
    least, most : int
        ``groups · least <= n <= groups · most``.

    Returns
    -------
    int array, shape (n,)
        Group of each expert.
    """
    n = len(affinity)
    if not groups * least <= n <= groups * most:
        raise InputError(f"{n} experts do not make {groups} groups of {least} to {most}")
    group = spectral_clusters(affinity, groups, seed)
    left: list[int] = []
    for d in range(groups):
        members = np.flatnonzero(group == d)
        if len(members) > most:
            score = affinity[np.ix_(members, members)].sum(axis=1)
            weakest = members[np.argsort(-score, kind="stable")[most:]]
            group[weakest] = -1
            left += weakest.tolist()
    for e in left:
        closeness = _closeness(affinity, group, groups, e)
        closeness[np.bincount(group[group >= 0], minlength=groups) >= most] = -1.0
        group[e] = closeness.argmax()
    return _filled(affinity, group, groups, least)


def _filled(affinity: FloatArray, group: IntArray, groups: int, least: int) -> IntArray:
    """Give groups that are too small the weakest experts of those that can spare one."""
    size = np.bincount(group, minlength=groups)
    while (size < least).any():
        needy = int(size.argmin())
        spare = np.flatnonzero(size[group] > least)
        own = np.array([_closeness(affinity, group, groups, e)[group[e]] for e in spare.tolist()])
        e = int(spare[own.argmin()])
        size[group[e]] -= 1
        group[e] = needy
        size[needy] += 1
    return group


def _closeness(affinity: FloatArray, group: IntArray, groups: int, e: int) -> FloatArray:
    """Affinity of an expert to each group, shape (groups,)."""
    placed = group >= 0
    return np.bincount(group[placed], affinity[e, placed], minlength=groups).astype(np.float64)


def grouped(
    profile: Profile, nodes: Nodes, seed: int, ratio: float = RATIO, node_ratio: float = math.inf
) -> IntArray:
    """Group the experts of every layer: nodes, and the GPUs of each node.

    Parameters
    ----------
    ratio : float
        Of the groups on GPUs, within each node. 0: as equal as can be; infinite: any size.
    node_ratio : float
        Of the nodes; the paper leaves their sizes free.

    Returns
    -------
    int array, shape (L, E)
        GPU of each expert. Every GPU has at least one: a node has at least as many experts as
        GPUs, which the paper does not say.

    Raises
    ------
    InputError
        There are fewer experts than GPUs, or a ratio is negative.
    """
    if not (ratio >= 0 and node_ratio >= 0):
        raise InputError(f"ratios of group sizes must not be negative: {ratio}, {node_ratio}")
    if profile.experts < nodes.gpus:
        raise InputError(f"{profile.experts} experts are too few for {nodes.gpus} GPUs")
    gpu = np.zeros((profile.layers, profile.experts), dtype=np.int64)
    least, most = size_limits(profile.experts, nodes.count, node_ratio)
    for l, affinity in enumerate(profile.affinity):
        node = controlled_groups(affinity, nodes.count, max(least, nodes.gpus_per_node), most, seed)
        for n in range(nodes.count):
            here = np.flatnonzero(node == n)
            limits = size_limits(len(here), nodes.gpus_per_node, ratio)
            local = controlled_groups(
                affinity[np.ix_(here, here)], nodes.gpus_per_node, *limits, seed
            )
            gpu[l, here] = n * nodes.gpus_per_node + local
    return gpu


def utilisation(affinity: FloatArray, group: IntArray) -> float:
    """Share of the affinity that lies within groups, ``U(r)`` (equation 1)."""
    total = float(affinity.sum())
    same = group[:, None] == group[None, :]
    return float(affinity[same].sum()) / total if total > 0 else 1.0


def size_deviation(group: IntArray, groups: int) -> float:
    """Root mean square deviation of group sizes from ``n / D``, ``S(r)`` (equation 2)."""
    size = np.bincount(group, minlength=groups)
    return float(np.sqrt(((size - len(group) / groups) ** 2).mean()))


def knee(deviation: FloatArray, use: FloatArray) -> int:
    """Index of the knee of the points (S, U): farthest above the line from first to last.

    The paper chooses r at the knee and does not say how it is found; both axes are scaled to 1.
    """
    spread = np.ptp(deviation), np.ptp(use)
    if min(spread) == 0:
        return 0
    x = (deviation - deviation[0]) / (deviation[-1] - deviation[0] or spread[0])
    y = (use - use[0]) / (use[-1] - use[0] or spread[1])
    return int((y - x).argmax())


def ratio_curve(
    profile: Profile, nodes: Nodes, seed: int, candidates: tuple[float, ...] = CANDIDATES
) -> tuple[FloatArray, FloatArray, float]:
    """Return S and U (means over layers) of each candidate, and the candidate at the knee.

    As in the paper's Algorithm 2, all experts of a layer are divided among all GPUs, without nodes.
    """
    deviation, use = np.zeros(len(candidates)), np.zeros(len(candidates))
    for i, ratio in enumerate(candidates):
        limits = size_limits(profile.experts, nodes.gpus, ratio)
        for affinity in profile.affinity:
            group = controlled_groups(affinity, nodes.gpus, *limits, seed)
            deviation[i] += size_deviation(group, nodes.gpus) / profile.layers
            use[i] += utilisation(affinity, group) / profile.layers
    return deviation, use, candidates[knee(deviation, use)]
