"""Mean node sends that no grouping with equal nodes and without copies undercuts.

A token with the experts S is sent to ``(1 − 1/N) nodes(S)`` nodes in the mean over homes: least
nodes touched, over all ways to divide the experts equally among the nodes, is the problem
``affinity`` inside a layer with nodes for GPUs, and its semidefinite bound is proved there.
"""

from __future__ import annotations

import numpy as np

from moeopt.affinity.bounding import psd_value
from moeopt.affinity.data import AffinityData
from moeopt.errors import InputError
from moeopt.grace.data import FloatArray, Nodes, Profile


def least_mean_sends(profile: Profile, nodes: Nodes, steps: int = 600) -> FloatArray:
    """Bound the mean node sends of a token in every layer, shape (L,).

    Parameters
    ----------
    profile : Profile
        Of the tokens that are measured: the bound holds for groupings made for these very tokens.
    steps : int
        Of the search for the bound.

    Raises
    ------
    InputError
        The experts cannot be divided equally among the nodes.
    """
    if profile.experts % nodes.count:
        raise InputError(
            f"{profile.experts} experts cannot be divided equally among {nodes.count} nodes"
        )
    if nodes.count == 1:
        return np.zeros(profile.layers)
    data = AffinityData(
        "intra",
        np.arange(nodes.count),
        profile.load.astype(np.float64),
        np.zeros((0, profile.experts, profile.experts)),
        profile.scenarios,
    )
    further = psd_value(data, steps=steps).by_part
    assert further is not None  # layer by layer, where the kind is "intra"
    # The last digits of a product of doubles are rounding.
    return np.asarray((1 - 1 / nodes.count) * (1 + further) * (1 - 1e-12))
