"""One copy of each expert: the best plan, by a flow of convex cost, and prices that prove it.

Servers at the same distance from a layer's tokens are alike to it: they form a *level*. For given
numbers of experts on each level the heaviest experts belong on the nearest level (rearrangement
inequality), so the hops of a layer with levels ``c_0 < c_1 < …`` are

    c_0 Σ w  +  Σ_j (c_j − c_(j−1)) · (sum of the F_j smallest weights)

where ``F_j`` experts are on level j or farther: convex in ``F_j``. That is a flow of L·E units
through chains of levels, from level to server (at most K[s] a layer) and from server to sink (at
most C[s]). Successive shortest paths with potentials solve it in whole numbers; the potentials are
the prices of :mod:`moeopt.topology.certificate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numba
import numpy as np

from moeopt.topology.certificate import certified
from moeopt.topology.data import BoolArray, IntArray, TopologyData
from moeopt.topology.exact import Grid, on_grid

_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Flow:
    """The best plan with one copy of each expert.

    Attributes
    ----------
    plan : bool array, shape (L, E, S)
    value : float
        Lower bound that the prices prove, in hops: the plan's, but for the rounding of the grid.
    server_price : int array, shape (S,)
    layer_price : int array, shape (L, S)
        In units of ``unit`` hops.
    """

    plan: BoolArray
    value: float
    server_price: IntArray
    layer_price: IntArray
    unit: float


def best_flow(data: TopologyData) -> Flow | None:
    """Place one copy of each expert so that its tokens need the fewest hops.

    Returns
    -------
    Flow or None
        None if the servers have not enough places.
    """
    grid = on_grid(data)
    order = np.argsort(-data.weight, axis=1, kind="stable")
    level, distance, levels = levels_of(grid)
    # Rounding keeps the order of the weights, up to ties.
    smallest = np.ascontiguousarray(np.take_along_axis(grid.weight, order, axis=1)[:, ::-1])
    at, price, sink = _flow(
        smallest, level, distance, levels, data.capacity, data.capacity_per_layer
    )
    if sink < 0:
        return None
    server, layer = _prices(data, level, price, sink)
    plan = _spread(data, at, order)
    value = certified(data, grid, server, layer)
    return Flow(plan, value, server, layer, float(grid.unit))


def levels_of(grid: Grid) -> tuple[IntArray, IntArray, IntArray]:
    """Return the level of each server in each layer, the levels' costs, and how many they are.

    Returns
    -------
    level : int array, shape (L, S)
    distance : int array, shape (L, J)
        Ascending; entries beyond a layer's levels repeat the last.
    levels : int array, shape (L,)
    """
    found = [np.unique(row, return_inverse=True) for row in grid.cost]
    levels = np.array([len(costs) for costs, _ in found], dtype=np.int64)
    most = int(levels.max())
    distance = np.stack([np.pad(costs, (0, most - len(costs)), mode="edge") for costs, _ in found])
    return np.stack([level for _, level in found]).astype(np.int64), distance, levels


def _prices(
    data: TopologyData, level: IntArray, price: IntArray, sink: int
) -> tuple[IntArray, IntArray]:
    """Prices of places from the potentials of the levels' and the servers' nodes."""
    layers = data.layers
    nodes = sink - price
    server = np.maximum(0, nodes[-data.servers :])  # a server with room costs nothing
    of_level = nodes[: -data.servers].reshape(layers, -1)
    wanted = np.take_along_axis(of_level, level, axis=1)  # what a place of the level is worth
    return server, np.maximum(0, wanted - server)


def _spread(data: TopologyData, at: IntArray, order: IntArray) -> BoolArray:
    """Give the heaviest experts of each layer to the nearest servers, ``at[l, s]`` to each."""
    plan = np.zeros((data.layers, data.experts, data.servers), dtype=bool)
    for l in range(data.layers):
        nearest = np.argsort(data.cost[l], kind="stable")
        plan[l, order[l], np.repeat(nearest, at[l][nearest])] = True
    return plan


@numba.njit(cache=True)
def _flow(
    smallest: np.ndarray,
    level: np.ndarray,
    distance: np.ndarray,
    levels: np.ndarray,
    capacity: np.ndarray,
    capacity_per_layer: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Send E units from each layer's first level to the sink.

    Nodes are the levels, ``l * J + j``, then the servers. Returns the experts of each layer on
    each server, the potentials of the nodes and that of the sink; -1 where not all units arrive.
    """
    layers, experts = smallest.shape
    most, servers = distance.shape[1], level.shape[1]
    first = layers * most  # node of server 0
    nodes = first + servers
    at = np.zeros((layers, servers), dtype=np.int64)
    held = np.zeros(servers, dtype=np.int64)
    beyond = np.zeros((layers, most), dtype=np.int64)  # F_j: units on arc (j - 1) -> j
    potential = np.zeros(nodes, dtype=np.int64)
    sink = 0
    dist = np.empty(nodes, dtype=np.int64)
    before = np.empty(nodes, dtype=np.int64)
    for source in range(layers):
        supplied = 0
        while supplied < experts:
            # Dijkstra on reduced costs, until a server with room is reached.
            dist[:] = _FAR
            dist[source * most] = 0
            before[source * most] = -1
            heap = [(np.int64(0), np.int64(source * most))]
            end = -1
            reach = _FAR
            while len(heap) > 0:
                d, u = heappop(heap)
                if d > dist[u]:
                    continue
                if d >= reach:
                    break
                if u >= first:
                    s = u - first
                    if held[s] < capacity[s]:
                        to_sink = d + potential[u] - sink
                        if to_sink < reach:
                            reach, end = to_sink, s
                    for l in range(layers):
                        if at[l, s] > 0:
                            v = l * most + level[l, s]
                            t = d + potential[u] - potential[v]
                            if t < dist[v]:
                                dist[v], before[v] = t, u
                                heappush(heap, (t, np.int64(v)))
                    continue
                l, j = u // most, u % most
                if j + 1 < levels[l] and beyond[l, j + 1] < experts:
                    v = u + 1
                    step = distance[l, j + 1] - distance[l, j]
                    t = d + step * smallest[l, beyond[l, j + 1]] + potential[u] - potential[v]
                    if t < dist[v]:
                        dist[v], before[v] = t, u
                        heappush(heap, (t, np.int64(v)))
                if j > 0 and beyond[l, j] > 0:
                    v = u - 1
                    step = distance[l, j] - distance[l, j - 1]
                    t = d - step * smallest[l, beyond[l, j] - 1] + potential[u] - potential[v]
                    if t < dist[v]:
                        dist[v], before[v] = t, u
                        heappush(heap, (t, np.int64(v)))
                for s in range(servers):
                    if level[l, s] == j and at[l, s] < capacity_per_layer[s]:
                        v = first + s
                        t = d + potential[u] - potential[v]
                        if t < dist[v]:
                            dist[v], before[v] = t, u
                            heappush(heap, (t, np.int64(v)))
            if end < 0:
                return at, potential, -1
            for v in range(nodes):
                potential[v] += min(dist[v], reach)
            sink += reach
            # As many units as the path takes at this cost: more than one where weights are equal.
            push = min(experts - supplied, capacity[end] - held[end])
            v = first + end
            while before[v] >= 0:
                u = before[v]
                if v >= first:
                    push = min(push, capacity_per_layer[v - first] - at[u // most, v - first])
                elif u >= first:
                    push = min(push, at[v // most, u - first])
                else:
                    l, j = v // most, max(u, v) % most
                    n = 1
                    f = beyond[l, j]
                    if v > u:
                        while f + n < experts and n < push and smallest[l, f + n] == smallest[l, f]:
                            n += 1
                    else:
                        while n < min(f, push) and smallest[l, f - 1 - n] == smallest[l, f - 1]:
                            n += 1
                    push = min(push, n)
                v = u
            supplied += push
            held[end] += push
            v = first + end
            while before[v] >= 0:
                u = before[v]
                if v >= first:
                    at[u // most, v - first] += push
                elif u >= first:
                    at[v // most, u - first] -= push
                elif v > u:
                    beyond[v // most, v % most] += push
                else:
                    beyond[u // most, u % most] -= push
                v = u
    return at, potential, sink
