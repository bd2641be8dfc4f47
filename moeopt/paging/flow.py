"""The offline optimum of loads of unequal costs as a min-cost flow, in whole numbers.

Nodes are the moments between requests, and C units of room flow through them. A kept gap is an arc
over its requests that earns the cost of a load; through request t at least as many units flow as it
asks for pages, because these earn more than all gaps together. Paths of least cost, one after the
other (successive shortest paths): no solver, and no rounding.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.errors import InputError
from moeopt.paging.belady import require_room
from moeopt.paging.intervals import gaps_of
from moeopt.paging.requests import IntArray, Requests

#: Distances stay below this: far from what a 64-bit number holds.
_LARGEST = 2**61


def cheapest_loads(
    requests: Requests, cache: int, cost: IntArray
) -> tuple[int, npt.NDArray[np.bool_]]:
    """Least cost of all loads of pages of one size, for up to some hundred thousand uses.

    Parameters
    ----------
    cache : int
        Pages that it holds.
    cost : int array, shape (L·E,)
        Cost of loading a page, not negative.

    Returns
    -------
    cost : int
    again : bool array
        Gaps (:func:`moeopt.paging.intervals.gaps_of`) after which the page is loaded again.

    Raises
    ------
    InputError
        A request asks for more pages than the cache holds, or costs are too large.
    """
    require_room(requests, cache)
    gaps = gaps_of(requests)
    saved = cost[requests.page[gaps.use]]
    count = len(requests)
    asked = int(saved.sum()) + 1
    if asked * (count + 1) > _LARGEST:
        raise InputError("costs are too large for 64-bit numbers: give them in a coarser unit")
    moments = np.arange(count)
    tail = np.concatenate([moments, moments, gaps.begin])
    head = np.concatenate([moments + 1, moments + 1, gaps.end])
    capacity = np.concatenate([np.full(count, cache), requests.sizes, np.ones(len(gaps), np.int64)])
    price = np.concatenate([np.zeros(count, np.int64), np.full(count, -asked), -saved])
    arcs = np.stack([tail, head], axis=1).ravel()  # each arc and its reverse, by where they begin
    order = np.argsort(arcs, kind="stable")
    first = np.searchsorted(arcs[order], np.arange(count + 2))
    flow = _flow(order, first, head, tail, capacity, price, cache)
    again = flow[2 * count :] == 0
    loads = int(cost[np.unique(requests.page)].sum()) + int(saved[again].sum())
    return loads, again


@njit(cache=True)
def _flow(
    order: IntArray,
    first: IntArray,
    head: IntArray,
    tail: IntArray,
    capacity: IntArray,
    price: IntArray,
    units: int,
) -> IntArray:
    """Send units from the first to the last node; ``order``: arc · 2, plus 1 if reversed."""
    nodes = len(first) - 1
    flow = np.zeros(len(head), dtype=np.int64)
    far = np.int64(2**62)
    # Arcs lead from lower to higher nodes at first: least costs in the order of the nodes.
    potential = np.full(nodes, far)
    potential[0] = 0
    for v in range(nodes):
        for k in range(first[v], first[v + 1]):
            a = order[k] // 2
            if order[k] % 2 == 0 and capacity[a] > 0:
                potential[head[a]] = min(potential[head[a]], potential[v] + price[a])
    distance = np.empty(nodes, dtype=np.int64)
    reached_by = np.empty(nodes, dtype=np.int64)
    sent = 0
    while sent < units:
        distance[:] = far
        distance[0] = 0
        heap = [(0, 0)]
        while len(heap) > 0:
            d, v = heapq.heappop(heap)
            if d > distance[v]:
                continue
            for k in range(first[v], first[v + 1]):
                a = order[k] // 2
                if order[k] % 2 == 0:
                    w, room, cost = head[a], capacity[a] - flow[a], price[a]
                else:
                    w, room, cost = tail[a], flow[a], -price[a]
                if room > 0:
                    new = d + cost + potential[v] - potential[w]
                    if new < distance[w]:
                        distance[w] = new
                        reached_by[w] = order[k]
                        heapq.heappush(heap, (new, w))
        potential += distance
        push = units - sent
        v = nodes - 1
        while v != 0:
            a = reached_by[v] // 2
            forward = reached_by[v] % 2 == 0
            push = min(push, capacity[a] - flow[a] if forward else flow[a])
            v = tail[a] if forward else head[a]
        v = nodes - 1
        while v != 0:
            a = reached_by[v] // 2
            forward = reached_by[v] % 2 == 0
            flow[a] += push if forward else -push
            v = tail[a] if forward else head[a]
        sent += push
    return flow
