"""Linear programs behind the prices of places: what they say is a guess until it is certified.

Facility location by distances (Elloumi 2010): a stream pays ``step[p]`` more unless a server that
is near enough holds a copy. One block of columns x (a copy on each server) and z (the step is paid)
for each class of weights; blocks share the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from moeopt.topology.classes import Group
from moeopt.topology.data import FloatArray, IntArray, TopologyData


@dataclass(frozen=True)
class Prices:
    """Rents of places, in the groups' units, not rounded.

    Attributes
    ----------
    server : float array, shape (S,)
        Of any place on a server, μ.
    group : float array, shape (groups, S)
        Of a place for a layer of the group there, ν.
    copy : float
        Of any copy, λ.
    """

    server: FloatArray
    group: FloatArray
    copy: float


def solve_prices(
    data: TopologyData, groups: Sequence[Group], time_limit_s: float = np.inf
) -> Prices | None:
    """Solve the relaxation over all classes; None if it did not come to an end.

    A block stands for ``sizes`` experts of one knot's weight.
    """
    servers = data.servers
    blocks, costs, rooms = [], [], []
    for g, group in enumerate(groups):
        covering = _covering(group)
        for knot, size in zip(group.knots.tolist(), group.sizes.tolist(), strict=True):
            blocks.append(covering)
            costs += [np.zeros(servers), size * float(knot) * group.step]
            here = sparse.csr_array(([1.0], ([g], [0])), shape=(len(groups), 1))
            places = size * sparse.eye_array(servers)
            total = size * np.ones((1, servers))
            room = sparse.vstack([places, sparse.kron(here, places), sparse.csr_array(total)])
            none = sparse.csr_array((room.shape[0], len(group.step)))
            rooms.append(sparse.hstack([room, none]))
    cost = np.concatenate(costs)
    scale = float(cost.max(initial=0.0)) or 1.0
    matrix = sparse.vstack([sparse.block_diag(blocks), sparse.hstack(rooms)]).tocsr()
    covered = sum(block.shape[0] for block in blocks)
    by_group = [group.layers * data.capacity_per_layer for group in groups]
    limits = np.concatenate([data.capacity, *by_group, [data.copies]])
    rent = _duals(cost / scale, matrix, np.append(np.full(covered, -1.0), limits), time_limit_s)
    if rent is None:
        return None
    rent = rent[covered:] * scale
    return Prices(rent[:servers], rent[servers:-1].reshape(-1, servers), float(rent[-1]))


def solve_streams(group: Group, knot: int, rent: IntArray, least: int) -> tuple[FloatArray, float]:
    """Solve the relaxation of one expert with at least so many copies at these rents.

    Returns
    -------
    u : float array, shape (P,)
        What each pair of a stream and a distance pays; zeros if the program did not end.
    a : float
        What each of the copies that must be there pays.
    """
    paid = np.concatenate([rent, knot * group.step]).astype(np.float64)
    scale = float(paid.max(initial=0.0)) or 1.0
    covering = _covering(group)
    right = np.full(covering.shape[0], -1.0)
    right[-1] = -least
    dual = _duals(paid / scale, covering, right, np.inf)
    if dual is None:
        return np.zeros(len(group.step)), 0.0
    return dual[:-1] * scale, float(dual[-1]) * scale


def _covering(group: Group) -> sparse.csr_array:
    """Rows ``−z[p] − Σ_(s near) x[s] ≤ −1`` of every pair, and ``−Σ_s x[s] ≤ −1``."""
    pairs, servers = group.near.shape
    near = sparse.csr_array(group.near.astype(np.float64))
    first = sparse.hstack([near, sparse.eye_array(pairs)])
    last = np.concatenate([np.ones(servers), np.zeros(pairs)])[None]
    return sparse.csr_array(-sparse.vstack([first, sparse.csr_array(last)]))


def _duals(
    cost: FloatArray, matrix: sparse.csr_array, right: FloatArray, time_limit_s: float
) -> FloatArray | None:
    """Duals ≥ 0 of ``min cost·y, matrix y ≤ right, 0 ≤ y ≤ 1``; None without an optimum."""
    options = {} if time_limit_s == np.inf else {"time_limit": max(0.1, time_limit_s)}
    result = linprog(  # type: ignore[call-overload]  # its stubs know no sparse rows
        cost, matrix, right, bounds=(0.0, 1.0), method="highs", options=options
    )
    if result.status != 0:
        return None
    return np.asarray(-result.ineqlin.marginals, dtype=np.float64)
