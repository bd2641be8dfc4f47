"""A plan of servers and a proved bound: a flow where one copy is enough, else copies and rents."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeopt.topology.bounds import copies_are_useless
from moeopt.topology.copies import add_greedily
from moeopt.topology.data import BoolArray, TopologyData
from moeopt.topology.flow import best_flow
from moeopt.topology.prices import price_bound
from moeopt.topology.search import anneal

#: Names of the proofs in records and tables.
FLOW_METHOD, PRICE_METHOD = "server flow", "server rents"

_FLOW_PROOF = "prices of places on servers, the duals of a flow of convex cost, in whole numbers"
_PRICE_PROOF = "rents of places; every expert pays at least for its best set of servers"

#: Share of the time limit that the rents may take.
_BOUND_SHARE = 0.5


@dataclass(frozen=True)
class Found:
    """A plan, and a bound where there was time for one.

    Attributes
    ----------
    plan : bool array, shape (L, E, S)
    value : float or None
        Lower bound, in hops.
    method : str
        Name of its proof.
    """

    plan: BoolArray
    value: float | None
    method: str


def bound(
    data: TopologyData,
    *,
    time_limit_s: float = np.inf,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[str, float, str] | None:
    """Return name, value and proof of the best bound; None without time or room for it."""
    if copies_are_useless(data):
        flow = best_flow(data)
        return None if flow is None else (FLOW_METHOD, flow.value, _FLOW_PROOF)
    value = price_bound(data, time_limit_s=time_limit_s, stop=stop)
    return None if value is None else (PRICE_METHOD, value, _PRICE_PROOF)


def find_plan(
    data: TopologyData,
    *,
    seed: int = 0,
    time_limit_s: float = np.inf,
    stop: Callable[[], bool] = lambda: False,
) -> Found | None:
    """Place the experts; None if the servers have not enough places.

    Parameters
    ----------
    seed : int
        Of the search for copies.
    time_limit_s : float
        For rents and search; the flow takes no time.
    """
    begin = time.monotonic()
    flow = best_flow(data)
    if flow is None:
        return None
    if copies_are_useless(data):
        return Found(flow.plan, flow.value, FLOW_METHOD)
    value = price_bound(data, time_limit_s=_BOUND_SHARE * time_limit_s, stop=stop)
    left = time_limit_s - (time.monotonic() - begin)
    plan = anneal(data, add_greedily(data, flow.plan), seed=seed, time_limit_s=left, stop=stop)
    return Found(plan, value, PRICE_METHOD)
