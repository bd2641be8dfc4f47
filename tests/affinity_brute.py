"""Affinity by enumeration: all plans of a layer, and the shortest way through the layers."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from moeopt.affinity.data import AffinityData


def rows_of(experts: int, gpus: int) -> np.ndarray:
    """All ways to give each of the GPUs E/G experts, shape (plans, E)."""
    size = experts // gpus

    def ways(free: tuple[int, ...], g: int):
        if g == gpus:
            yield {}
            return
        for chosen in combinations(free, size):
            rest = tuple(e for e in free if e not in chosen)
            for way in ways(rest, g + 1):
                yield way | dict.fromkeys(chosen, g)

    found = [[way[e] for e in range(experts)] for way in ways(tuple(range(experts)), 0)]
    return np.array(found)


def brute_affinity(data: AffinityData) -> tuple[float, np.ndarray]:
    """Least cost and a plan of it, shape (L, E); infinite where no layer is even enough."""
    rows = rows_of(data.experts, data.gpus)
    allowed = []
    for load, most in zip(data.load, data.most_load, strict=True):
        loads = np.stack([np.bincount(r, weights=load, minlength=data.gpus) for r in rows])
        allowed.append(rows[loads.max(axis=1) <= most])
    if not all(len(a) for a in allowed):
        return float("inf"), np.zeros((0, 0))
    if data.kind == "intra":
        costs = [[_touch(data, l, row) for row in allowed[l]] for l in range(data.layers)]
        best = [int(np.argmin(c)) for c in costs]
        return sum(min(c) for c in costs), np.stack(
            [a[b] for a, b in zip(allowed, best, strict=True)]
        )
    apart = data.weight
    value, back = np.zeros(len(allowed[0])), []
    for l, flow in enumerate(data.flow):
        here, there = allowed[l], allowed[l + 1]
        # Each pair of rows: the sum of flow[e, f] · apart[here[e], there[f]], as a product of
        # indicators of (expert, GPU).
        paid = np.einsum("ef,gh->egfh", flow, apart).reshape(2 * (data.experts * data.gpus,))
        cost = _indicators(here, data.gpus) @ paid @ _indicators(there, data.gpus).T
        cost += value[:, None]
        back.append(cost.argmin(axis=0))
        value = cost.min(axis=0)
    chosen = [int(value.argmin())]
    for step in reversed(back):
        chosen.append(int(step[chosen[-1]]))
    plan = np.stack([a[c] for a, c in zip(allowed, reversed(chosen), strict=True)])
    return float(value.min()), plan


def _indicators(rows: np.ndarray, gpus: int) -> np.ndarray:
    return (rows[:, :, None] == np.arange(gpus)).reshape(len(rows), -1).astype(float)


def _touch(data: AffinityData, l: int, row: np.ndarray) -> float:
    scenarios = data.scenarios[l]
    total = 0.0
    for s, weight in enumerate(scenarios.weight.tolist()):
        gpus = set(row[scenarios.members(s)].tolist())
        nodes = {int(data.node[g]) for g in gpus}
        total += weight * (data.near * (len(gpus) - len(nodes)) + data.far * (len(nodes) - 1))
    return total
