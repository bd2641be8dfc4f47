"""Plans to compare with: round robin, contiguous, random, greedy; one copy of each expert.

They know the room of each server; a server without a place is passed over. Servers take the
experts of all layers, so an early layer may leave a later one no place of its own: where the
servers' room is scarce the last experts go wherever the flow finds one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moeopt.errors import InputError
from moeopt.topology.data import BoolArray, IntArray, TopologyData


def round_robin(data: TopologyData, seed: int = 0) -> BoolArray:
    """Expert e on server e mod S, whatever the layer."""
    wished = np.broadcast_to(np.arange(data.experts) % data.servers, data.weight.shape)
    return _placed(data, wished)


def contiguous(data: TopologyData, seed: int = 0) -> BoolArray:
    """The first E/S experts of each layer on server 0, and so on."""
    wished = np.arange(data.experts) * data.servers // data.experts
    return _placed(data, np.broadcast_to(wished, data.weight.shape))


def random(data: TopologyData, seed: int = 0) -> BoolArray:
    """As many experts of each layer on each server as in round robin, drawn at random."""
    rng = np.random.default_rng(seed)
    wished = np.stack([rng.permutation(data.experts) % data.servers for _ in range(data.layers)])
    return _placed(data, wished)


def greedy(data: TopologyData, seed: int = 0) -> BoolArray:
    """Heaviest expert first, over all layers, each on the nearest server with a place."""
    heaviest = np.argsort(-data.weight, axis=None, kind="stable")
    nearest = np.argsort(data.cost, axis=1, kind="stable")
    return _place_in_turn(data, heaviest, lambda l, e: nearest[l])


#: Baselines by the name that tables print.
BASELINES: dict[str, Callable[[TopologyData, int], BoolArray]] = {
    "round robin": round_robin,
    "contiguous": contiguous,
    "random": random,
    "greedy": greedy,
}


def _placed(data: TopologyData, wished: IntArray) -> BoolArray:
    """Each expert on the server wished for, or the next one with a place."""
    servers = np.arange(data.servers)
    return _place_in_turn(
        data, np.arange(wished.size), lambda l, e: (wished[l, e] + servers) % data.servers
    )


def _place_in_turn(
    data: TopologyData, order: IntArray, choices: Callable[[int, int], IntArray]
) -> BoolArray:
    plan = np.zeros((data.layers, data.experts, data.servers), dtype=bool)
    left = data.capacity.copy()
    free = np.tile(data.capacity_per_layer, (data.layers, 1))
    homeless = []
    for place in order.tolist():
        l, e = divmod(place, data.experts)
        servers = choices(l, e)
        open_ones = servers[(left[servers] > 0) & (free[l, servers] > 0)]
        if not len(open_ones):
            homeless.append((l, e))
            continue
        s = int(open_ones[0])
        plan[l, e, s] = True
        left[s] -= 1
        free[l, s] -= 1
    for l, e in homeless:
        _make_room(plan, left, free, l, e)
    return plan


def _make_room(plan: BoolArray, left: IntArray, free: IntArray, l: int, e: int) -> None:
    """Place an expert by moving others, one chain of moves found by breadth-first search."""
    # From server s, an expert of any layer may leave for a server with a place for that layer.
    reached: dict[int, tuple[int, int, int] | None] = {
        int(s): None for s in np.flatnonzero(free[l])
    }
    pending = list(reached)
    for s in pending:
        if left[s] > 0:
            while (step := reached[s]) is not None:
                source, layer, expert = step
                plan[layer, expert, [source, s]] = False, True
                free[layer, source] += 1
                free[layer, s] -= 1
                left[source] += 1
                left[s] -= 1
                s = source
            plan[l, e, s] = True
            left[s] -= 1
            free[l, s] -= 1
            return
        for layer, expert in np.argwhere(plan[:, :, s]).tolist():
            for t in np.flatnonzero(free[layer]).tolist():
                if t not in reached:
                    reached[t] = (s, layer, expert)
                    pending.append(t)
    raise InputError("the servers have not enough places for one copy of each expert")
