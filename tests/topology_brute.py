"""The best plan of a tiny instance of ``topology``, by looking at all of them in fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np

from moeopt.topology.data import TopologyData

Servers = tuple[int, ...]


def brute_topology(data: TopologyData) -> tuple[float, list[list[Servers]]]:
    """Least hops, rounded to nearest, and the servers of each expert; ``inf`` without a plan."""
    servers = range(data.servers)
    most = min(data.servers, 1 + data.replicas)
    sets = [s for size in range(1, most + 1) for s in combinations(servers, size)]
    share = list(map(Fraction, data.share.tolist()))
    hops = [[Fraction(h) for h in row] for row in data.hops.tolist()]
    # Layers share nothing but room and copies: the best of each use of them is enough.
    best: dict[Servers, tuple[Fraction, list[list[Servers]]]] = {
        (0,) * data.servers: (Fraction(0), [])
    }
    for l in range(data.layers):
        streams = list(zip(share, data.dispatch[l].tolist(), data.collect[l].tolist(), strict=True))
        mean = {
            held: sum(p * min(hops[d][s] + hops[s][c] for s in held) for p, d, c in streams)
            for held in sets
        }
        weight = list(map(Fraction, data.weight[l].tolist()))
        found: dict[Servers, tuple[Fraction, list[Servers]]] = {}
        for chosen in product(sets, repeat=data.experts):
            used = tuple(sum(s in held for held in chosen) for s in servers)
            if any(u > k for u, k in zip(used, data.capacity_per_layer, strict=True)):
                continue
            value = sum(
                (w * mean[held] for w, held in zip(weight, chosen, strict=True)), Fraction(0)
            )
            if used not in found or value < found[used][0]:
                found[used] = (value, list(chosen))
        grown: dict[Servers, tuple[Fraction, list[list[Servers]]]] = {}
        for (before, (sofar, rows)), (used, (value, row)) in product(best.items(), found.items()):
            total = tuple(a + b for a, b in zip(before, used, strict=True))
            if any(t > c for t, c in zip(total, data.capacity, strict=True)):
                continue
            if total not in grown or sofar + value < grown[total][0]:
                grown[total] = (sofar + value, [*rows, row])
        best = grown
    copies = data.layers * data.experts + data.replicas
    allowed = [plan for used, plan in best.items() if sum(used) <= copies]
    if not allowed:
        return math.inf, []
    value, plan = min(allowed, key=lambda plan: plan[0])
    return float(value), plan


def random_data(seed: int, *, replicas: int = 0, small: bool = False) -> TopologyData:
    """Whole or odd hops, ties among weights, one stream or several, scarce room."""
    rng = np.random.default_rng(seed)
    layers, experts = int(rng.integers(1, 3)), int(rng.integers(2, 4 if small else 7))
    servers, streams = int(rng.integers(2, 4 if small else 6)), int(rng.integers(1, 4))
    hops = rng.integers(0, 5, (servers, servers)) * (1.0 if seed % 3 else 0.1)
    np.fill_diagonal(hops, 0)
    weight = rng.integers(0, 5, (layers, experts)).astype(float)
    if seed % 2:
        weight = rng.lognormal(0, 1, (layers, experts))
    per_layer = np.full(servers, -(-experts // servers)) + rng.integers(0, 2, servers)
    capacity = np.minimum(layers * per_layer, rng.integers(1, layers * experts + 1, servers))
    while capacity.sum() < layers * experts:
        capacity = np.minimum(layers * per_layer, capacity + 1)
    share = np.ones(streams) if seed % 4 else rng.random(streams)
    return TopologyData(
        hops=hops,
        node_of_gpu=np.repeat(np.arange(servers), 2),
        dispatch=rng.integers(0, servers, (layers, streams)),
        collect=rng.integers(0, servers, (layers, streams)),
        share=share / share.sum(),
        weight=weight,
        capacity=capacity,
        capacity_per_layer=per_layer,
        replicas=replicas,
    )


def assert_fits(data: TopologyData, plan: np.ndarray) -> None:
    assert plan.any(axis=2).all()
    assert (plan.sum(axis=(0, 1)) <= data.capacity).all()
    assert (plan.sum(axis=1) <= data.capacity_per_layer).all()
    assert plan.sum() <= data.copies
